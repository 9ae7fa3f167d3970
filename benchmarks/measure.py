"""The whole benchmark: every task in every system, in alternating rounds.

Each system and stage has a process of its own, so that threads and memory are its own; this process
imports no framework. One worker computes at a time while it is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.bounds import count_physical_cores, flop_per_cycle, read_clock_mhz
from benchmarks.plan import MAX_IMAGES, PREPARE, Job, Settings, plan_systems
from benchmarks.rows import Measurement, compose_rows
from fmnist_tf.cli.terminal import progress_bar, say
from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.results.provenance import describe_machine
from fmnist_tf.system.memory import peak_memory_bytes
from fmnist_tf.system.startup import import_tensorflow

# Several workers share a GPU: none may take all its memory. torch.compile would start a pool of
# processes that stay alive while others are measured.
ENVIRONMENT = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class BenchmarkError(FmnistError):
    """Nothing could be measured."""


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is the reason."""


class Stage(Protocol):
    """One stage of one system, as the callable that `System.stage` names returns it.

    Attributes:
        facts: what the parent process needs to know of it.
        outputs: of the first `N_CHECKED` images, features or probabilities before any training.
    """

    facts: dict[str, Any]
    outputs: np.ndarray

    def measure(self, units: int) -> int:
        """Do `units` times the least that can be measured; return how many images that were."""


class Sample(NamedTuple):
    """One measurement: images, wall time, peak resident memory so far, the processor's clock."""

    images: int
    seconds: float
    peak_bytes: int
    clock_mhz: float | None


class Worker:
    """A process that opens a job's stage and measures it; a context that ends the process.

    Its first answer is the stage's facts and outputs.
    """

    def __init__(self, job: Job, timeout_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._log, self._timeout = job.folder / f"{uuid.uuid4().hex}.log", timeout_seconds
        self._process = context.Process(target=_serve, args=(theirs, job, self._log), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def measure(self, units: int) -> Sample:
        """Measure the stage once; raises as `receive`."""
        with suppress(OSError):  # `receive` finds out why
            self._connection.send(units)
        sample: Sample = self.receive()
        return sample

    def receive(self) -> Any:
        """Return the worker's next answer.

        Raises:
            WorkerError: the stage failed, the process died, or it took too long.
        """
        try:
            if not self._connection.poll(self._timeout):
                self._process.kill()
                raise WorkerError(f"no answer within {self._timeout:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._describe_end()) from None
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def _describe_end(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        how += ", perhaps out of memory" * (code == -signal.SIGKILL)
        lines = self._log.read_text(errors="replace").strip().splitlines() or [""]
        return f"the process ended ({how}) {printable(lines[-1], 200)}".strip()


def _serve(connection: Connection, job: Job, log: Path) -> None:
    """Open the job's stage and answer the parent until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(ENVIRONMENT)
    try:
        if job.system.uses_tensorflow:
            import_tensorflow()  # its settings have no effect on a TensorFlow imported before
        stage: Stage = pkgutil.resolve_name(job.system.stage)(job)
        connection.send((stage.facts, np.asarray(stage.outputs, np.float32)))
        while True:
            units = connection.recv()
            started = time.perf_counter()
            images = stage.measure(units)
            seconds = time.perf_counter() - started
            connection.send(Sample(images, seconds, peak_memory_bytes(), read_clock_mhz()))
    except (EOFError, BrokenPipeError):
        return  # the parent has ended
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        reason = f"{package} is not installed: pip install -e '.[bench]'"
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
    connection.send(WorkerError(reason))


def measure_task(
    jobs: Sequence[Job], settings: Settings, step_done: Callable[[], None] = lambda: None
) -> list[Measurement]:
    """Measure one task in several systems, a round of each in turn.

    A system that fails loses its own measurement; the others go on. `step_done` is called
    `settings.rounds` + 2 times for each job, one for each system.
    """
    units: dict[str, int] = {}

    def prepare(measurement: Measurement, worker: Worker) -> None:
        measurement.facts, measurement.outputs = worker.receive()

    def calibrate(measurement: Measurement, worker: Worker) -> None:
        worker.measure(1)  # compiles
        sample = worker.measure(1)
        ratio = min(settings.round_seconds / sample.seconds, MAX_IMAGES / sample.images)
        units[measurement.job.system.name] = max(1, round(ratio))

    def measure(measurement: Measurement, worker: Worker) -> None:
        sample = worker.measure(units[measurement.job.system.name])
        measurement.rates.append(sample.images / sample.seconds)
        measurement.peak_bytes, measurement.clock_mhz = sample.peak_bytes, sample.clock_mhz

    measurements = [Measurement(job) for job in jobs]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(job, settings.timeout_seconds)) for job in jobs]
        for step in (prepare, calibrate, *[measure] * settings.rounds):
            for measurement, worker in zip(measurements, workers, strict=True):
                if measurement.reason is None:
                    try:
                        step(measurement, worker)
                    except WorkerError as error:
                        measurement.reason = str(error)
                step_done()
    return measurements


def run_benchmark(settings: Settings) -> dict[str, Any]:
    """Measure everything and return `machine`, `settings` and `rows` as JSON values.

    At 224 pixels the temporary folder takes up to 2 GB.

    Raises:
        BenchmarkError: nothing could be measured.
    """
    machine, side = describe_machine(), settings.image_size
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="fmnist_tf-benchmarks-")
        folder = Path(stack.enter_context(temporary))
        say("preparing weights and images")
        try:
            job = Job(PREPARE, settings.tasks[0], 1, side, folder)
            with Worker(job, settings.timeout_seconds) as worker:
                facts, _ = worker.receive()
        except WorkerError as error:
            raise BenchmarkError(f"the weights could not be prepared: {error}") from None
        systems = plan_systems(facts["precision"], machine["features"])
        say(f"measuring {', '.join(system.name for system in systems)}, one at a time")
        on_gpu = bool(facts["gpus"])
        plan = [
            [
                Job(system, task, task.batch_size or facts["feature_batch"], side, folder, on_gpu)
                for system in systems
                if system.uses_tensorflow or task.head is None
            ]
            for task in settings.tasks
        ]
        n_steps = (settings.rounds + 2) * sum(map(len, plan))
        show = stack.enter_context(progress_bar("benchmarks", "step"))
        steps = iter(range(1, n_steps + 1))
        measurements = [
            measurement
            for jobs in plan
            for measurement in measure_task(jobs, settings, lambda: show(next(steps), n_steps))
        ]
    reasons = [measurement.reason for measurement in measurements]
    if None not in reasons:
        raise BenchmarkError(f"nothing could be measured: {reasons[0]}")
    clocks_mhz = [m.clock_mhz for m in measurements if m.clock_mhz is not None]
    clock_mhz = statistics.median(clocks_mhz) if clocks_mhz else None
    n_cores = count_physical_cores()
    bounds: dict[str, float | None] = dict.fromkeys(("float32", "bfloat16"))
    for precision in bounds:
        flop = flop_per_cycle(machine["features"], precision)
        if flop and clock_mhz and not on_gpu:  # a GPU does not tell its bound
            bounds[precision] = n_cores * clock_mhz * 1e6 * flop
    return {
        "machine": {
            **machine,
            "gpus": facts["gpus"],
            "versions": facts["versions"],
            "physical_cores": n_cores,
            "clock_mhz": clock_mhz,
            "flop_per_second_bound": bounds,
            "precision": facts["precision"],
            "precision_why": facts["why"],
        },
        "settings": {
            key: getattr(settings, key) for key in ("image_size", "rounds", "round_seconds")
        },
        "rows": compose_rows(measurements, bounds),
    }
