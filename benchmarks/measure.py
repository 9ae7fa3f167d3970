"""The whole benchmark: every task in every system, in alternating rounds.

This process imports no framework. One worker computes at a time while it is measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bounds import count_physical_cores, flop_per_cycle
from benchmarks.plan import MAX_IMAGES, PREPARE, Job, Settings, System, plan_systems
from benchmarks.rows import Measurement, compose_rows
from benchmarks.worker import Worker, WorkerError, running
from fmnist_tf.errors import FmnistError
from fmnist_tf.results.provenance import describe_machine


class BenchmarkError(FmnistError):
    """Nothing could be measured; the message says why."""


def measure_task(
    jobs: Sequence[Job], settings: Settings, step_done: Callable[[], None] = lambda: None
) -> list[Measurement]:
    """Measure one task in several systems, a round of each in turn.

    A system that fails loses its own measurement; the others go on.

    Args:
        jobs: one for each system; their folder holds the common files.
        settings: how much is measured.
        step_done: called `settings.rounds` + 2 times for each job.
    """
    units: dict[System, int] = {}

    def prepare(measurement: Measurement, worker: Worker) -> None:
        measurement.facts, measurement.outputs = worker.open()

    def calibrate(measurement: Measurement, worker: Worker) -> None:
        worker.measure(1)  # compiles
        sample = worker.measure(1)
        ratio = min(settings.round_seconds / sample.seconds, MAX_IMAGES / sample.images)
        units[measurement.system] = max(1, round(ratio))

    def measure(measurement: Measurement, worker: Worker) -> None:
        sample = worker.measure(units[measurement.system])
        measurement.rates.append(sample.images / sample.seconds)
        measurement.peak_bytes, measurement.clock_mhz = sample.peak_bytes, sample.clock_mhz

    measurements = [Measurement(job.system, job.task, job.batch_size) for job in jobs]
    with ExitStack() as stack:
        workers = [stack.enter_context(running(job, settings.timeout_seconds)) for job in jobs]
        for step in (prepare, calibrate, *[measure] * settings.rounds):
            for measurement, worker in zip(measurements, workers, strict=True):
                if measurement.reason is None:
                    try:
                        step(measurement, worker)
                    except WorkerError as error:
                        measurement.reason = str(error)
                step_done()
    return measurements


def run_benchmark(
    settings: Settings,
    *,
    say: Callable[[str], None],
    show: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measure everything and return `machine`, `settings` and `rows` as JSON values.

    Args:
        settings: how much is measured; at 224 pixels the temporary folder takes up to 2 GB.
        say: prints a line of progress.
        show: shows (done, total) steps.

    Raises:
        BenchmarkError: nothing could be measured.
    """
    machine, side, done = describe_machine(), settings.image_size, 0
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="fmnist_tf-benchmarks-") as name:
        folder = Path(name)
        say("preparing weights and images")
        try:
            job = Job(PREPARE, settings.tasks[0], 1, side, folder)
            with running(job, settings.timeout_seconds) as worker:
                facts, _ = worker.open()
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

        def step_done() -> None:
            nonlocal done
            done += 1
            show(done, n_steps)

        for jobs in plan:
            measurements += measure_task(jobs, settings, step_done)
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
            "image_size": side,
            "rounds": settings.rounds,
            "round_seconds": settings.round_seconds,
        },
        "rows": compose_rows(measurements, bounds, side),
    }
