"""The whole measurement: workers started, asked in turn, and ended.

In: settings and a folder to work in. Out: the result as JSON values. It imports no TensorFlow: what
is heavy happens in the workers, one for each system in each stage, each with threads and memory of
its own. Only one of them works while it is measured. This module must not know how a system
computes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.benchmark.bounds import count_physical_cores, flop_per_cycle
from fmnist_tf.benchmark.plan import (
    MOST_IMAGES,
    Job,
    Settings,
    System,
    Task,
    plan_systems,
)
from fmnist_tf.benchmark.rows import Measurement, compose_rows
from fmnist_tf.benchmark.workers import COMMAND, Worker, WorkerError, running
from fmnist_tf.errors import FmnistError
from fmnist_tf.results.provenance import describe_machine
from fmnist_tf.system.cpu import usable_cpus

PRECISIONS = ("float32", "bfloat16")


class BenchError(FmnistError):
    """Nothing could be measured; the message says why."""


@dataclass
class _Turn:
    """One system in one task, while its worker lives.

    Attributes:
        system: which.
        task: which.
        worker: None before it is started.
        facts: what the worker says of itself.
        outputs: of the checked images.
        units: size of a measurement, as the worker counts.
        rates: images a second, one a round so far.
        last: the worker's last answer to a measurement.
        reason: why the worker is not asked any more.
    """

    system: System
    task: Task
    worker: Worker | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: np.ndarray | None = None
    units: int = 1
    rates: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def measure(self) -> None:
        self.last = self.started.ask(ask="measure", units=self.units)
        self.rates.append(self.last["images"] / self.last["seconds"])

    @property
    def started(self) -> Worker:
        if self.worker is None:
            raise WorkerError("the worker was not started")
        return self.worker

    def conclude(self) -> Measurement:
        if self.reason is not None:
            return Measurement(self.system, self.task, reason=self.reason)
        return Measurement(
            self.system,
            self.task,
            tuple(self.rates),
            self.last["peak_bytes"],
            self.last["anonymous_bytes"],
            self.facts,
            self.outputs,
        )


@dataclass
class _Suite:
    """What the tasks share.

    Attributes:
        settings: how much is measured.
        folder: where workers read and write.
        command: starts a worker.
        show: hears (done, total) steps.
        feature_batch: batch of the feature pass, known once it is prepared.
        on_gpu: whether TensorFlow has one; known then too.
        n_steps: in all.
        n_done: so far.
        clocks_mhz: seen while something was measured.
        reached: precision -> the highest rate of one product so far, FLOP/s.
    """

    settings: Settings
    folder: Path
    command: Sequence[str]
    show: Callable[[int, int], None]
    feature_batch: int = 1
    on_gpu: bool = False
    n_steps: int = 0
    n_done: int = 0
    clocks_mhz: list[float] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)

    def prepare(self) -> dict[str, Any]:
        """Have the common files written; return the facts of network and machine."""
        system = System("prepare", "prepare", "float32", trains=False)
        try:
            with running(self._job(system, self.settings.tasks[0]), self.command) as worker:
                facts: dict[str, Any] = worker.receive()["facts"]
                return facts
        except WorkerError as error:
            raise BenchError(
                f"nothing can be measured, the weights were not made: {error}"
            ) from None

    def measure_all(self, systems: Sequence[System]) -> list[Measurement]:
        """Measure every task in every system that has it."""
        plan = [
            (task, [s for s in systems if s.trains or task.head is None])
            for task in self.settings.tasks
        ]
        self.n_steps = sum(
            len(those) * (3 + self.settings.rounds + (task.stage == "feature_pass"))
            for task, those in plan
        )
        return [m for task, those in plan for m in self._measure_task(task, those)]

    def _measure_task(self, task: Task, systems: Sequence[System]) -> list[Measurement]:
        turns = [_Turn(system, task) for system in systems]
        with ExitStack() as stack:
            self._each(turns, partial(self._start, stack))
            self._each(turns, self._check)
            self._each(turns, self._calibrate)
            for _ in range(self.settings.rounds):
                self._each(turns, self._measure)
            if task.stage == "feature_pass":
                self._each(turns, self._probe)
        return [turn.conclude() for turn in turns]

    def _each(self, turns: Sequence[_Turn], step: Callable[[_Turn], None]) -> None:
        """Take one step with each worker in turn; one that fails is left alone from then on."""
        for turn in turns:
            if turn.reason is None:
                try:
                    step(turn)
                except WorkerError as error:
                    turn.reason = str(error)
            self.n_done += 1
            self.show(self.n_done, self.n_steps)

    def _start(self, stack: ExitStack, turn: _Turn) -> None:
        job = self._job(turn.system, turn.task)
        turn.worker = stack.enter_context(running(job, self.command))

    def _check(self, turn: _Turn) -> None:
        turn.facts = turn.started.receive()["facts"]
        path = Path(turn.started.ask(ask="outputs")["path"])
        turn.outputs = np.load(path)
        path.unlink()

    def _calibrate(self, turn: _Turn) -> None:
        turn.measure()  # compiles, which can take many times as long
        turn.measure()
        images, seconds = turn.last["images"], turn.last["seconds"]
        turn.units = max(1, round(min(self.settings.round_seconds / seconds, MOST_IMAGES / images)))
        # A second one as large as the rounds will be is the first of them.
        turn.rates = turn.rates[1:] if turn.units == 1 else []

    def _measure(self, turn: _Turn) -> None:
        if len(turn.rates) == self.settings.rounds:
            return
        turn.measure()
        if turn.last["clock_mhz"] is not None:
            self.clocks_mhz.append(turn.last["clock_mhz"])

    def _probe(self, turn: _Turn) -> None:
        rate = turn.started.ask(ask="probe")["flop_per_second"]
        if rate is not None:
            precision = turn.facts["precision"]
            self.reached[precision] = max(rate, self.reached.get(precision, 0.0))

    def _job(self, system: System, task: Task) -> Job:
        return Job(
            kind=system.kind,
            precision=system.precision,
            stage=task.stage,
            head=task.head,
            batch_size=task.batch_size or self.feature_batch,
            image_size=self.settings.image_size,
            backbone=self.settings.backbone,
            folder=str(self.folder),
            on_gpu=self.on_gpu,
        )


def run_benchmark(
    settings: Settings,
    folder: Path,
    *,
    say: Callable[[str], None],
    show: Callable[[int, int], None],
    command: Sequence[str] = COMMAND,
) -> dict[str, Any]:
    """Measure everything and return machine, settings and rows, each as in `benchmark.rows`.

    Args:
        settings: how much is measured.
        folder: existing and empty; takes up to 2 GB at 224 pixels.
        say: hears what takes time.
        show: hears (done, total) steps.
        command: starts a worker.

    Raises:
        BenchError: nothing could be measured.
    """
    suite = _Suite(settings, folder, command, show)
    say("making weights and images")
    facts = suite.prepare()
    machine = describe_machine()
    systems = plan_systems(facts["precision"], machine["features"])
    say(f"measuring {', '.join(system.name for system in systems)}, one at a time")
    suite.feature_batch, suite.on_gpu = facts["feature_batch"], bool(facts["gpus"])
    measurements = suite.measure_all(systems)
    if all(measurement.reason is not None for measurement in measurements):
        raise BenchError(f"nothing could be measured: {measurements[0].reason}")
    clock_mhz = statistics.median(suite.clocks_mhz) if suite.clocks_mhz else None
    n_cores = count_physical_cores(usable_cpus())
    arithmetic: dict[str, float | None] = dict.fromkeys(PRECISIONS)
    for precision in PRECISIONS:
        flop = flop_per_cycle(machine["features"], precision)
        # What a GPU can do is not told; its rows stand against the fastest product alone.
        if flop and clock_mhz and not facts["gpus"]:
            arithmetic[precision] = n_cores * clock_mhz * 1e6 * flop
    reached = {precision: suite.reached.get(precision) for precision in PRECISIONS}
    return {
        "machine": {
            **machine,
            "gpus": facts["gpus"],
            "versions": facts["versions"],
            "physical_cores": n_cores,
            "clock_mhz": clock_mhz,
            "flop_per_cycle_and_core": {
                precision: flop_per_cycle(machine["features"], precision)
                for precision in PRECISIONS
            },
            "flop_per_second_arithmetic": arithmetic,
            "flop_per_second_reached": reached,
            "precision": facts["precision"],
            "precision_why": facts["why"],
        },
        "settings": {
            "quick": settings.quick,
            "image_size": settings.image_size,
            "rounds": settings.rounds,
            "round_seconds": settings.round_seconds,
            "multiplications_an_image": facts["multiplications"],
        },
        "rows": compose_rows(measurements, facts["multiplications"], arithmetic, reached),
    }
