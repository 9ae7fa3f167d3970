"""The whole benchmark: every task in every system, in alternating rounds.

Each system and stage has a process of its own, so that threads and memory are its own; this process
imports no framework. One worker computes at a time while it is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.bounds import count_physical_cores, flop_per_cycle, read_clock_mhz
from benchmarks.plan import MAX_IMAGES, PREPARE, TASKS, Job, plan_systems
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


class Worker:
    """A process that opens a job's stage and measures it; it ends with this one at the latest."""

    _stage: Stage
    """Of the worker process."""

    def __init__(self, job: Job) -> None:
        self._log = job.folder / f"{job.system.name}.log"
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _start, (self._log,))
        self.opened = self._pool.submit(_answer, _open, job)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def measure(self, units: int) -> tuple[int, float, int]:
        """Return images, seconds and peak memory of one measurement; raises as `wait`."""
        found: tuple[int, float, int] = self.wait(self._pool.submit(_answer, _measure, units))
        return found

    def wait(self, future: Future[Any]) -> Any:
        """Return the process' answer, of the opening its stage's facts and outputs.

        Raises:
            WorkerError: the stage failed, or the process died.
        """
        try:
            return future.result()
        except BrokenProcessPool:
            lines = self._log.read_text(errors="replace").strip().splitlines() or [""]
            reason = f"the process died, perhaps out of memory: {printable(lines[-1], 200)}"
            raise WorkerError(reason) from None


def _start(log: Path) -> None:
    """Prepare the process of a worker."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(ENVIRONMENT)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return the function's result; not every library's exceptions can be sent to the parent."""
    try:
        return function(argument)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise WorkerError(f"{package} is not installed: pip install -e '.[bench]'") from None
    except Exception as error:
        message = printable(" ".join(str(error).split()), 300)
        raise WorkerError(f"{type(error).__name__}: {message}") from None


def _open(job: Job) -> tuple[dict[str, Any], np.ndarray]:
    if job.system.uses_tensorflow:
        import_tensorflow()  # its settings have no effect on a TensorFlow imported before
    Worker._stage = pkgutil.resolve_name(job.system.stage)(job)
    return Worker._stage.facts, np.asarray(Worker._stage.outputs, np.float32)


def _measure(units: int) -> tuple[int, float, int]:
    started = time.perf_counter()
    images = Worker._stage.measure(units)
    return images, time.perf_counter() - started, peak_memory_bytes()


def measure_task(jobs: Sequence[Job], rounds: int, round_seconds: float) -> list[Measurement]:
    """Measure one task in several systems, a round of about `round_seconds` of each in turn.

    A slow system computes one batch. One that fails loses its own measurement; the others go on.
    """
    units: dict[str, int] = {}

    def prepare(measurement: Measurement, worker: Worker) -> None:
        measurement.facts, measurement.outputs = worker.wait(worker.opened)

    def calibrate(measurement: Measurement, worker: Worker) -> None:
        worker.measure(1)  # compiles
        images, seconds, _ = worker.measure(1)
        ratio = min(round_seconds / seconds, MAX_IMAGES / images)
        units[measurement.job.system.name] = max(1, round(ratio))

    def measure(measurement: Measurement, worker: Worker) -> None:
        images, seconds, peak_bytes = worker.measure(units[measurement.job.system.name])
        measurement.rates.append(images / seconds)
        measurement.peak_bytes = peak_bytes

    measurements = [Measurement(job) for job in jobs]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(job)) for job in jobs]
        show = stack.enter_context(progress_bar(jobs[0].task.stage, "step"))
        pairs = list(zip(measurements, workers, strict=True))
        steps = [
            (step, *pair) for step in (prepare, calibrate, *[measure] * rounds) for pair in pairs
        ]
        for number, (step, measurement, worker) in enumerate(steps, start=1):
            if measurement.reason is None:
                try:
                    step(measurement, worker)
                except WorkerError as error:
                    measurement.reason = str(error)
            show(number, len(steps))
    return measurements


def run_benchmark(
    cases: Iterable[tuple[str, int]], tasks: Sequence[str], rounds: int, round_seconds: float
) -> dict[str, Any]:
    """Measure everything and return `machine`, `settings` and `rows` as JSON values.

    At 224 pixels the temporary folder takes up to 2 GB.

    Args:
        cases: names of `find_backbone_spec`, and sides in pixels.
        tasks: names of `TASKS`.
        rounds: of each system and task, at least 1.
        round_seconds: of each round.

    Raises:
        BenchmarkError: the weights could not be prepared, or nothing could be measured.
    """
    machine = describe_machine()
    measured: list[list[Measurement]] = []
    for backbone, side in cases:
        say(f"{backbone} at {side} pixels")
        measured.append([])
        with tempfile.TemporaryDirectory(prefix="fmnist_tf-benchmarks-") as name:
            prepared = Job(PREPARE, TASKS["features"], backbone, side, 1, Path(name))
            facts = _prepare(prepared)
            systems = plan_systems(facts["precision"], facts["cpu_precision"])
            for task in (TASKS[name] for name in tasks):
                size = task.batch_size or facts["feature_batch"]
                job = replace(prepared, task=task, batch_size=size, on_gpu=bool(facts["gpus"]))
                of_task = [s for s in systems if s.trains or task.head is None]
                jobs = [replace(job, system=system) for system in of_task]
                measured[-1] += measure_task(jobs, rounds, round_seconds)
    reasons = [measurement.reason for of_case in measured for measurement in of_case]
    if None not in reasons:
        raise BenchmarkError(f"nothing could be measured: {reasons[0]}")
    # A GPU does not tell its bound.
    clock_mhz, n_cores = None if facts["gpus"] else read_clock_mhz(), count_physical_cores()
    bounds: dict[str, float | None] = {}
    for precision in ("float32", "bfloat16"):
        flop = flop_per_cycle(machine["features"], precision)
        bounds[precision] = n_cores * clock_mhz * 1e6 * flop if flop and clock_mhz else None
    return {
        "machine": {
            **machine,
            **facts,
            "physical_cores": n_cores,
            "clock_mhz": clock_mhz,
            "flop_per_second_bound": bounds,
        },
        "settings": {"rounds": rounds, "round_seconds": round_seconds},
        "rows": [row for of_case in measured for row in compose_rows(of_case, bounds)],
    }


def _prepare(job: Job) -> dict[str, Any]:
    """Write the common files, in a process of its own; return what it says of the machine."""
    try:
        with Worker(job) as worker:
            facts: dict[str, Any] = worker.wait(worker.opened)[0]
            return facts
    except WorkerError as error:
        raise BenchmarkError(f"the weights could not be prepared: {error}") from None
