"""A process of its own for each system and stage, so that threads and memory are its own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.bounds import read_clock_mhz
from benchmarks.plan import Job
from fmnist_tf.errors import printable
from fmnist_tf.system.memory import peak_memory_bytes
from fmnist_tf.system.startup import import_tensorflow

# Several workers share a GPU: none may take all its memory. torch.compile would start a pool of
# processes that stay alive while others are measured.
ENVIRONMENT = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
EXIT_SECONDS = 10


class Stage(Protocol):
    """One stage of one system, as `open_stage(job)` of its module returns it.

    Attributes:
        facts: what the parent process needs to know of it.
        outputs: of the first `N_CHECKED` images, features or probabilities before any training.
    """

    facts: dict[str, Any]
    outputs: np.ndarray

    def measure(self, units: int) -> int:
        """Do `units` times the least that can be measured; return how many images that were."""


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is the reason."""


@dataclass(frozen=True)
class Sample:
    """One measurement: images, wall time, peak resident memory so far, the processor's clock."""

    images: int
    seconds: float
    peak_bytes: int
    clock_mhz: float | None


@dataclass(frozen=True)
class Worker:
    """The parent's end of a worker; see `running`."""

    process: BaseProcess
    connection: Connection
    log: Path
    timeout_seconds: float

    def open(self) -> tuple[dict[str, Any], np.ndarray]:
        """Wait until the stage is open, and return its facts and outputs; needed once.

        Raises:
            WorkerError: the stage cannot be opened, the process died, or it took too long.
        """
        answer: tuple[dict[str, Any], np.ndarray] = self._receive()
        return answer

    def measure(self, units: int) -> Sample:
        """Measure the stage once.

        Raises:
            WorkerError: as in `open`.
        """
        with suppress(OSError):  # `_receive` finds out why
            self.connection.send(units)
        sample: Sample = self._receive()
        return sample

    def _receive(self) -> Any:
        try:
            if not self.connection.poll(self.timeout_seconds):
                self.process.kill()
                raise WorkerError(f"no answer within {self.timeout_seconds:g} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._describe_end()) from None
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def _describe_end(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        how += ", perhaps out of memory" * (code == -signal.SIGKILL)
        lines = self.log.read_text(errors="replace").strip().splitlines() or [""]
        return f"the process ended ({how}) {printable(lines[-1], 200)}".strip()


@contextmanager
def running(job: Job, timeout_seconds: float) -> Iterator[Worker]:
    """Start a worker process that opens the job's stage, and end it afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = job.folder / f"worker-{os.urandom(4).hex()}.log"
    log.touch()
    process = context.Process(target=_serve, args=(theirs, job, log), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Worker(process, ours, log, timeout_seconds)
        ours.close()  # an idle worker ends by itself
        process.join(EXIT_SECONDS)
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection, job: Job, log: Path) -> None:
    """Open the job's stage and answer the parent until it closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(ENVIRONMENT)
    try:
        if job.system.uses_tensorflow:
            import_tensorflow()  # its settings have no effect on a TensorFlow imported before
        stage: Stage = importlib.import_module(job.system.module).open_stage(job)
        connection.send((stage.facts, np.asarray(stage.outputs, np.float32)))
        while True:
            units = connection.recv()
            started = time.perf_counter()
            images = stage.measure(units)
            seconds = time.perf_counter() - started
            connection.send(Sample(images, seconds, peak_memory_bytes(), read_clock_mhz()))
    except (EOFError, BrokenPipeError):
        return  # the parent has closed the connection
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        reason = f"{package} is not installed: pip install -e '.[bench]'"
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
    connection.send(WorkerError(reason))
