"""The trials of a sweep as an Optuna study: space, sampling, and a queue for several processes.

Importing this module imports Optuna (0.2 s), so commands import it inside functions.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import itertools
import math
import re
import shutil
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from fmnist_tf.cli.terminal import say
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import DONE, LOCK, RunDir
from fmnist_tf.settings.flags import read_value, setting_names
from fmnist_tf.system import signals

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]
Point = dict[str, Any]
"""Setting -> value as Optuna stores it: number, bool, None or text."""
Row = dict[str, Any]
"""A line of trials.csv: `trial` (1-based), `seed`, the point, and what it has of `FIGURES`."""

FIGURES = (
    "state",  # complete, pruned or failed
    "correct",  # predictions on the val rows, at the best epoch
    "total",  # val rows
    "loss",  # mean cross entropy in nats on them
    "epoch",  # the best one, 1-based, 0 if training never beat its start; if pruned, the last one
    "seconds",  # of the run's stages; wall time if pruned or failed
    "test_correct",  # the same on test rows, if they were tested
    "test_total",
    "error",  # why the trial failed
)

MAX_TRIALS = 10_000
_MAX_ATTEMPTS = 3  # then a trial waits for the others: it may kill its process every time
_WAIT_SECONDS = 0.5
_NOT_VARIED = {
    "seed": "--seeds N repeats every trial with N seeds",
    "phase": "--phase sets it for all trials",
    **dict.fromkeys(
        ("data", "test_data", "label_column", "val_fraction", "limit"),
        "trials are compared on the same images; use its flag",
    ),
    **dict.fromkeys(("cache", "precision"), "use its flag"),
    "test_time_flip": "it changes the figures of an epoch, not which epoch is best",
}
_NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")


def read_space(text: str) -> Space:
    """Read a grid such as `learning_rate=1e-5..1e-3:log units=0,512 augment=none,flip+erasing`.

    Raises:
        UsageError: a word is not `setting=values`, a setting is unknown, repeated or cannot vary,
            or a value is not one of the setting's.
    """
    space: Space = {}
    for word in text.split():
        name, _, values = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        try:
            if not values:
                raise UsageError("expected SETTING=VALUE,VALUE, such as learning_rate=1e-4,3e-4")
            if name in _NOT_VARIED:
                raise UsageError(f"{name} cannot be varied; {_NOT_VARIED[name]}")
            if name not in setting_names():
                near = difflib.get_close_matches(name, setting_names()) or setting_names()
                raise UsageError(f"unknown setting {name}; expected {' or '.join(near)}")
            if name in space:
                raise UsageError(f"expected {name} once, found twice")
            space[name] = _read_distribution(name, values)
        except UsageError as error:
            raise UsageError(f"--grid {word}: {error}") from error
    return space


def _read_distribution(name: str, values: str) -> Distribution:
    if found := _RANGE.fullmatch(values):
        low, high = (read_value(name, end) for end in found.groups()[:2])
        if type(low) not in (int, float):
            raise UsageError(f"expected values; {name} is not a number")
        if not low < high or (found[3] and low <= 0):
            raise UsageError(f"expected LOW..HIGH with {'0 < ' if found[3] else ''}LOW < HIGH")
        kind = IntDistribution if type(low) is int else FloatDistribution
        return kind(low, high, log=bool(found[3]))
    choices = [_read_choice(name, value) for value in values.split(",")]
    if len(set(choices)) < len(choices):
        raise UsageError("expected each value once")
    # Optuna stores no tuples.
    return CategoricalDistribution([show(c) if isinstance(c, tuple) else c for c in choices])


def _read_choice(name: str, text: str) -> Any:
    """Read a value as its flag does, with `+` in place of the commas of a list."""
    with contextlib.suppress(UsageError):
        if isinstance(read_value(name, "none"), tuple):
            text = text.replace("+", ",")
    return read_value(name, text)


def decode(point: Point) -> dict[str, Any]:
    """Return a point's settings as `RunConfig` takes them."""
    return {k: _read_choice(k, v) if isinstance(v, str) else v for k, v in point.items()}


def show(value: Any) -> str:
    """Return a value as a grid takes it; floats with six significant digits."""
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_point(point: Point) -> str:
    """Return a point as a grid takes it; empty if nothing is varied."""
    return " ".join(f"{name}={show(value)}" for name, value in point.items())


@dataclass(frozen=True)
class Plan:
    """Which trials a sweep has. Trial numbers are 1-based.

    Attributes:
        space: what is varied; if empty, there is one point that varies nothing.
        sampler: grid, random or tpe.
        n_points: number of different points.
        points: all of them; of tpe none, because it chooses them by earlier results.
        seeds: of each point; every point has its first seed before any point its second.
    """

    space: Space
    sampler: str
    n_points: int
    points: tuple[Point, ...]
    seeds: range

    @classmethod
    def make(cls, space: Space, sampler: str, n_points: int | None, seeds: range) -> Plan:
        """Return the plan for `n_points` points, or fewer if the space has no more.

        Raises:
            UsageError: a grid has a range, or there are too many trials.
        """
        ranges = [n for n, d in space.items() if not isinstance(d, CategoricalDistribution)]
        if sampler == "grid" and ranges:
            raise UsageError(f"--grid {ranges[0]}: a range needs --random N or --tpe N")
        size = math.prod(_count(distribution) for distribution in space.values())
        n_points = int(size if n_points is None else min(n_points, size))
        if n_points * len(seeds) > MAX_TRIALS:
            found = f"{n_points:,} points with {len(seeds):,} seeds"
            raise UsageError(f"{found}: expected at most {MAX_TRIALS:,} trials")
        points: list[Point] = _corners(space) if sampler == "grid" else []
        while sampler == "random" and len(points) < n_points:
            points.append(_sample(optuna.samplers.RandomSampler, space, seeds[0], [], points))
        # A pooled head averages the feature maps that a Flatten head has cached.
        points.sort(key=lambda point: point.get("head") == "gap")
        return cls(space, sampler, n_points, tuple(points), seeds)

    @property
    def n_trials(self) -> int:
        """Points times seeds."""
        return self.n_points * len(self.seeds)

    @property
    def checked_points(self) -> list[Point]:
        """Points whose settings are checked before any work; of tpe the corners of the space."""
        return list(self.points) or _corners(self.space)

    def seed_of(self, number: int) -> int:
        """Return the seed of a trial."""
        return self.seeds[(number - 1) // self.n_points]

    def point_of(self, number: int, earlier: Sequence[FrozenTrial] = ()) -> Point:
        """Return the point of a trial; tpe needs all trials before it."""
        place = (number - 1) % self.n_points
        if self.points:
            return self.points[place]
        taken = [{name: trial.params[name] for name in self.space} for trial in earlier]
        if place < len(taken):
            return taken[place]
        return _sample(optuna.samplers.TPESampler, self.space, self.seeds[0], earlier, taken)

    def describe(self, number: int, point: Point) -> str:
        """Return a trial as people see it."""
        seed = f"seed={self.seed_of(number)}" if len(self.seeds) > 1 else ""
        words = " ".join(filter(None, (show_point(point), seed)))
        return f"trial {number} of {self.n_trials}: {words}".removesuffix(": ")


def _count(distribution: Distribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    is_int = isinstance(distribution, IntDistribution)
    return distribution.high - distribution.low + 1 if is_int else math.inf


def _corners(space: Space) -> list[Point]:
    """Return the combinations of choices and ends of ranges, the last setting fastest."""
    ends = (
        d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)
        for d in space.values()
    )
    combinations = itertools.islice(itertools.product(*ends), MAX_TRIALS)
    return [dict(zip(space, values, strict=True)) for values in combinations]


def _sample(
    kind: type[optuna.samplers.RandomSampler | optuna.samplers.TPESampler],
    space: Space,
    seed: int,
    history: Sequence[FrozenTrial],
    taken: Sequence[Point],
) -> Point:
    """Return a point that is not taken; it depends on the arguments only."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own_seed = int(np.random.SeedSequence([seed, len(taken)]).generate_state(1)[0])
    study = optuna.create_study(direction="maximize", sampler=kind(seed=own_seed))
    study.add_trials(history)
    while (point := study.ask({**space}).params) in taken:
        pass
    return {name: point[name] for name in space}


def read_figures(directory: RunDir, *, is_tested: bool) -> dict[str, Any] | None:
    """Return the `FIGURES` of a finished training; None if it has not finished."""
    if not directory.file(DONE if is_tested else "evaluation.json").is_file():
        return None
    said, provenance = (directory.read_json(f"{n}.json") for n in ("evaluation", "provenance"))
    figures = {name: said["val"][name] for name in ("correct", "total", "loss")}
    if is_tested:
        figures |= {f"test_{name}": said["test"][name] for name in ("correct", "total")}
    seconds = round(sum(provenance["seconds"].values()), 3)
    return {**figures, "epoch": said["chosen_epoch"], "seconds": seconds}


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone trains, in a directory that it has locked."""

    number: int
    point: Point
    directory: RunDir
    attempt: optuna.Trial

    def report(self, row: HistoryRow, *, epochs: int) -> None:
        """Record an epoch's validation accuracy.

        Raises:
            TrialPruned: it is below the median of the complete trials after this epoch.
        """
        with warnings.catch_warnings(action="ignore"):  # an interrupted attempt reported it too
            self.attempt.report(row.val_accuracy, row.epoch)
        if row.epoch < epochs and self.attempt.should_prune():
            raise optuna.TrialPruned


class _KernelLock(JournalFileOpenLock):
    """A lock of the study's file that the kernel frees when a process is killed.

    Optuna's own lock files stay behind then, and others wait 30 s for them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock; remove the part of a line that a full disk left."""
        self._file = self._path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read() != b"\n":
                self._file.seek(0)
                self._file.truncate(self._file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Free the lock."""
        self._file.close()


@contextlib.contextmanager
def taking_turns(directory: Path) -> Iterator[None]:
    """Wait until no other process changes the sweep in this directory."""
    with (directory / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class SweepStudy:
    """The trials of one sweep in `study.log`, shared by all processes that work at it.

    A process locks its trial's directory until the trial has ended. A running trial whose lock is
    free was interrupted or has failed. It is trained again under its number and before new trials,
    so that sampling and pruning see the same results in the same order as without interruption.
    """

    def __init__(self, directory: RunDir, plan: Plan) -> None:
        """Open the study, or create it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path, median = directory.file("study.log"), optuna.pruners.MedianPruner(5, 2)
        with taking_turns(directory.path):
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path), _KernelLock(path))),
                sampler=optuna.samplers.RandomSampler(),  # is not asked: every point is given
                pruner=optuna.pruners.NopPruner() if plan.sampler == "grid" else median,
                study_name="sweep",
                direction="maximize",
                load_if_exists=True,
            )
        self._directory, self._plan = directory, plan
        self._retried = {trial.number for trial in self._trials if _has_failed(trial)}

    @property
    def _trials(self) -> list[FrozenTrial]:
        """The trials so far; Optuna's numbers are ours less 1."""
        return self._study.get_trials(deepcopy=False)

    @property
    def n_finished(self) -> int:
        """Complete and pruned trials."""
        return sum(trial.state.is_finished() for trial in self._trials)

    def directory_of(self, number: int) -> RunDir:
        """Return the directory of trial `number` (1-based), which is made if it is missing."""
        directory = RunDir(self._directory.file(f"trial-{number:03d}"))
        directory.path.mkdir(mode=0o700, exist_ok=True)
        return directory

    def claims(self) -> Generator[Claim]:
        """Yield one trial after another to train, until those of all processes have ended.

        Finish each before the next. Close the generator, which holds the lock of the last one.
        """
        is_told = False
        while True:
            with contextlib.ExitStack() as held:
                with taking_turns(self._directory.path):
                    claim, is_busy = self._claim(held)
                if claim is not None:
                    yield claim
                    continue
            if not is_busy:
                return
            if not is_told:
                say("waiting for the trials of other processes")
            is_told = True
            time.sleep(_WAIT_SECONDS)
            signals.check()

    def _claim(self, held: contextlib.ExitStack) -> tuple[Claim | None, bool]:
        """Return a trial that `held` has locked, and whether any process has a trial."""
        trials, stopped, is_busy = self._trials, [], False
        for number in [t.number for t in trials if t.state == TrialState.RUNNING]:
            try:
                with self.directory_of(number + 1).locked():
                    trial = self._trials[number]  # it may have ended before its lock was free
            except RunExistsError:
                is_busy = True
                continue
            if not trial.state.is_finished() and (
                number in self._retried or not _has_failed(trial)
            ):
                stopped.append(trial)
        stopped.sort(key=lambda trial: _count_attempts(trial) >= _MAX_ATTEMPTS)
        number = len(trials) + 1
        is_new = number <= self._plan.n_trials
        if stopped and not (is_new and _count_attempts(stopped[0]) >= _MAX_ATTEMPTS):
            number = stopped[0].number + 1
        elif is_new:
            new = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=self._plan.point_of(number, trials),
                distributions={**self._plan.space},
                user_attrs={"seed": self._plan.seed_of(number)},
            )
            self._study.add_trial(new)  # in one step, which no kill can divide
        else:
            return None, is_busy
        own, stored = self.directory_of(number), self._trials[number - 1]
        held.enter_context(own.locked())
        self._retried.discard(stored.number)
        attempt = optuna.Trial(self._study, stored._trial_id)
        attempt.set_user_attr("attempts", _count_attempts(stored) + 1)
        attempt.set_user_attr("figures", None)
        if read_figures(own, is_tested=not self._plan.space) is None:
            _empty(own.path)
        point = {name: stored.params[name] for name in self._plan.space}
        return Claim(number, point, own, attempt), True

    def finish(self, claim: Claim, state: str, **figures: Any) -> None:
        """Record how a trial ended: complete, pruned or failed, and others of `FIGURES`."""
        claim.attempt.set_user_attr("figures", {"state": state, **figures})
        if state == "complete":
            self._study.tell(claim.attempt, figures["correct"] / figures["total"])
        elif state == "pruned":
            self._study.tell(claim.attempt, state=TrialState.PRUNED)
        # Optuna does not reopen what it knows as failed, but the next command tries again.

    def renumber(self) -> optuna.Study:
        """Return a copy in which Optuna's numbers, and so its figures, are 1-based as ours."""
        study = optuna.create_study(direction="maximize")
        study.add_trials([optuna.trial.create_trial(state=TrialState.FAIL), *self._trials])
        return study

    def read_rows(self) -> list[Row]:
        """Return the trials that ended, in the order of the plan."""
        return [
            {"trial": trial.number + 1, **trial.user_attrs, **trial.params, **figures}
            for trial in self._trials
            if (figures := trial.user_attrs.get("figures"))
        ]


def _has_failed(trial: FrozenTrial) -> bool:
    return (trial.user_attrs.get("figures") or {}).get("state") == "failed"


def _count_attempts(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempts", 0))


def _empty(directory: Path) -> None:
    """Delete what an earlier attempt left, except the lock."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
