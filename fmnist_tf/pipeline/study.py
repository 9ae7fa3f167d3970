"""The trials of a sweep: what they vary, which are tried, and how several processes share them.

Optuna draws the points and decides what is pruned. Importing this module imports Optuna and pandas
(0.5 s), so commands import it inside functions.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from fmnist_tf.cli.terminal import say
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import DONE, LOCK, RunDir
from fmnist_tf.settings.config import flag_of, suggest, value_type
from fmnist_tf.settings.flags import read_value, setting_names
from fmnist_tf.system.files import locked

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]
Point = dict[str, Any]
"""Setting -> value as Optuna and JSON store it: number, bool, None or text."""

TABLE = "trials.csv"
FIGURES = {
    "correct": "Int64",  # predictions on the val rows, at the best epoch
    "total": "Int64",  # val rows
    "loss": "float",  # mean cross entropy in nats on them
    "epoch": "Int64",  # the best one, 0 if training never beat its start; if pruned, the last one
    "seconds": "float",  # of the run's stages; wall time if pruned or failed
    "test_correct": "Int64",  # the same on test rows, if they were tested
    "test_total": "Int64",
    "error": "object",  # why the trial failed
}
"""Columns of trials.csv after `trial`, `seed`, the settings and `state`, with their dtypes."""

MAX_TRIALS = 10_000
_MAX_ATTEMPTS = 3  # then a trial waits for the others: it may kill its process every time
_SAME_FOR_ALL = {
    *("phase", "data", "test_data", "label_column", "val_fraction", "limit"),
    *("cache", "precision", "test_time_flip"),
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
            if name == "seed":
                raise UsageError("--seeds N repeats every trial with N seeds")
            if name in _SAME_FOR_ALL:
                raise UsageError(f"{name} is the same for all trials; set it with {flag_of(name)}")
            if name not in setting_names():
                raise UsageError(f"unknown setting {name}; {suggest(name, setting_names())}")
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
    is_list = get_origin(value_type(name).kind) is tuple
    return read_value(name, text.replace("+", ",") if is_list else text)


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
class Trial:
    """One trial, which `trial-001.json` and so on record.

    Attributes:
        number: 1-based.
        attempts: how often it was begun.
        state: running (or interrupted), complete, pruned or failed.
        figures: some of `FIGURES`, once it has ended.
        val_accuracy: by epoch, unless it failed.
    """

    number: int
    seed: int
    point: Point
    attempts: int = 0
    state: str = "running"
    figures: dict[str, Any] = field(default_factory=dict)
    val_accuracy: dict[str, float] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether it is not tried again."""
        return self.state in ("complete", "pruned")


@dataclass(frozen=True)
class Plan:
    """Which trials a sweep has.

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
        size = math.prod(map(_count_values, space.values()))
        n_points = int(size if n_points is None else min(n_points, size))
        if n_points * len(seeds) > MAX_TRIALS:
            found = f"{n_points:,} points with {len(seeds):,} seeds"
            raise UsageError(f"{found}: expected at most {MAX_TRIALS:,} trials")
        points: list[Point] = _corners(space) if sampler == "grid" else []
        while sampler == "random" and len(points) < n_points:
            points.append(_draw_point(RandomSampler, space, seeds[0], [], points))
        # A pooled head averages the feature maps that a Flatten head has cached.
        points.sort(key=lambda point: point.get("head") == "gap")
        return cls(space, sampler, n_points, tuple(points), seeds)

    @property
    def n_trials(self) -> int:
        """Points times seeds."""
        return self.n_points * len(self.seeds)

    @property
    def is_tested(self) -> bool:
        """Whether each trial is a finished run: nothing is chosen among points."""
        return not self.space

    @property
    def checked_points(self) -> list[Point]:
        """Points whose settings are checked before any work; of tpe the corners of the space."""
        return list(self.points) or _corners(self.space)

    def make_trial(self, number: int, earlier: Sequence[Trial] = ()) -> Trial:
        """Return a trial that has not begun; of tpe, after all earlier ones."""
        repeat, place = divmod(number - 1, self.n_points)
        points = self.points or [trial.point for trial in earlier]
        if place < len(points):
            point = points[place]
        else:
            point = _draw_point(TPESampler, self.space, self.seeds[0], earlier, points)
        return Trial(number, self.seeds[repeat], point)

    def describe(self, trial: Trial) -> str:
        """Return a trial as people see it."""
        seed = f"seed={trial.seed}" if len(self.seeds) > 1 else ""
        words = " ".join(filter(None, (show_point(trial.point), seed)))
        return f"trial {trial.number} of {self.n_trials}: {words}".removesuffix(": ")


def _count_values(distribution: Distribution) -> float:
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


def _draw_point(
    kind: type[RandomSampler | TPESampler],
    space: Space,
    seed: int,
    earlier: Sequence[Trial],
    taken: Sequence[Point],
) -> Point:
    """Return a point that is not taken; it depends on the arguments only."""
    own_seed = int(np.random.SeedSequence([seed, len(taken)]).generate_state(1)[0])
    study = create_study(space, earlier, sampler=kind(seed=own_seed))
    while (point := study.ask({**space}).params) in taken:
        pass
    return {name: point[name] for name in space}


def create_study(space: Space, trials: Sequence[Trial], **options: Any) -> optuna.Study:
    """Return an Optuna study in memory with these trials under their numbers.

    Those that are running count as failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", **options)
    study.add_trial(create_trial(state=TrialState.FAIL))  # Optuna counts from 0
    for trial in trials:
        is_complete = trial.state == "complete"
        study.add_trial(
            create_trial(
                state=TrialState[trial.state.upper()] if trial.is_finished else TrialState.FAIL,
                value=trial.figures["correct"] / trial.figures["total"] if is_complete else None,
                params=trial.point,
                distributions={**space},
                intermediate_values={int(k): v for k, v in trial.val_accuracy.items()},
            )
        )
    return study


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone trains.

    Attributes:
        trial: as it begins.
        directory: of the trial, locked.
        is_trained: whether an earlier attempt was interrupted after the end of training.
        attempt: answers whether it is pruned.
    """

    trial: Trial
    directory: RunDir
    is_trained: bool
    attempt: optuna.Trial

    def report(self, row: HistoryRow, *, epochs: int) -> None:
        """Take note of an epoch's validation accuracy.

        Raises:
            TrialPruned: it is below the median of the complete trials after this epoch.
        """
        self.attempt.report(row.val_accuracy, row.epoch)
        if row.epoch < epochs and self.attempt.should_prune():
            raise optuna.TrialPruned


class SweepStudy:
    """The trials of one sweep, shared by all processes that work at it.

    A process locks its trial's directory until the trial has ended. A running trial whose directory
    is not locked was interrupted. It is trained again under its number and before new trials, so
    that sampling and pruning see the same results in the same order as without interruption.
    """

    def __init__(self, directory: RunDir, plan: Plan) -> None:
        self._directory, self._plan = directory, plan
        self._to_retry = {t.number for t in self.read_trials() if t.state == "failed"}

    def read_trials(self) -> list[Trial]:
        """Return the trials begun so far, by number."""
        names = map(_record_name, itertools.count(1))
        begun = itertools.takewhile(lambda name: self._directory.file(name).is_file(), names)
        return [Trial(**self._directory.read_json(name)) for name in begun]

    def directory_of(self, number: int) -> RunDir:
        """Return the directory of a trial."""
        return RunDir(self._directory.file(f"trial-{number:03d}"))

    def claims(self) -> Generator[Claim]:
        """Yield one trial after another to train, until those of all processes have ended.

        Finish each before the next. Close the generator, which holds the lock of the last one.
        """
        while True:
            with ExitStack() as held:
                with locked(self._directory.path, on_wait=_wait_silently):
                    claim, busy = self._claim(held)
                if claim is not None:
                    yield claim
                    continue
            if busy is None:
                return
            with locked(busy, on_wait=lambda holder: say(f"waiting for a trial of {holder}")):
                pass

    def _claim(self, held: ExitStack) -> tuple[Claim | None, Path | None]:
        """Return a trial that `held` has locked, or a directory that another process has locked."""
        trials, busy = self.read_trials(), None
        self._directory.write_text(TABLE, tabulate(trials, self._plan.space).to_csv(index=False))
        study = create_study(self._plan.space, trials, pruner=self._pruner)
        if len(trials) < self._plan.n_trials:
            trials.append(self._plan.make_trial(len(trials) + 1, trials))
        for trial in sorted(trials, key=lambda trial: trial.attempts >= _MAX_ATTEMPTS):
            if trial.state != "running" and trial.number not in self._to_retry:
                continue
            own = self.directory_of(trial.number)
            own.path.mkdir(mode=0o700, exist_ok=True)
            try:
                held.enter_context(own.locked())
            except RunExistsError:
                busy = own.path
                continue
            self._to_retry.discard(trial.number)
            begun = Trial(trial.number, trial.seed, trial.point, trial.attempts + 1)
            self._record(begun)
            is_trained = own.file(DONE if self._plan.is_tested else "evaluation.json").is_file()
            if not is_trained:
                _empty(own.path)
            study.enqueue_trial(trial.point)
            return Claim(begun, own, is_trained, study.ask({**self._plan.space})), None
        return None, busy

    @property
    def _pruner(self) -> optuna.pruners.BasePruner:
        if self._plan.sampler == "grid":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)

    def finish(self, claim: Claim, state: str, **figures: Any) -> None:
        """Record how a trial ended: complete, pruned or failed, and some of `FIGURES`."""
        history = [] if state == "failed" else claim.directory.read_history()
        curve = {str(row.epoch): row.val_accuracy for row in history}
        ended = replace(claim.trial, state=state, figures=figures, val_accuracy=curve)
        with locked(self._directory.path, on_wait=_wait_silently):
            self._record(ended)

    def _record(self, trial: Trial) -> None:
        self._directory.write_json(_record_name(trial.number), asdict(trial))


def tabulate(trials: Sequence[Trial], space: Space) -> pd.DataFrame:
    """Return the trials that ended as trials.csv has them: floats with every digit."""
    rows = [
        {"trial": trial.number, "seed": trial.seed, "state": trial.state}
        | {k: v if isinstance(v, float) else show(v) for k, v in trial.point.items()}
        | trial.figures
        for trial in trials
        if trial.state != "running"
    ]
    columns = ["trial", "seed", *space, "state", *FIGURES]
    return pd.DataFrame(rows, columns=columns, dtype="object").astype({"trial": int, **FIGURES})


def _record_name(number: int) -> str:
    return f"trial-{number:03d}.json"


def _wait_silently(holder: str) -> None:
    """Wait for another process that holds the sweep: it takes a moment."""


def _empty(directory: Path) -> None:
    """Delete what an earlier attempt left, except the lock."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
