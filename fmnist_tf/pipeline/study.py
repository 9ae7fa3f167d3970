"""The trials of a sweep: what they vary, which are tried, and how several processes share them.

Optuna draws the points and decides what is pruned. Importing this module imports Optuna and pandas
(0.5 s), so commands import it inside functions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from fmnist_tf.cli.terminal import say
from fmnist_tf.errors import RunExistsError, UsageError, suggest
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import LOCK, SWEEP, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.flags import read_value, setting_names
from fmnist_tf.settings.types import flag_of
from fmnist_tf.system.files import locked, remove

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]
Point = dict[str, Any]
"""Setting -> a number within a range, or the text of a choice."""

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
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
_SAME_FOR_ALL = {
    *("phase", "data", "test_data", "labels", "label_column", "val_fraction", "limit"),
    *("limit_test", "cache", "precision", "test_time_flip"),
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
    choices = values.split(",")
    if len({_read_choice(name, choice) for choice in choices}) < len(choices):
        raise UsageError("expected each value once")
    return CategoricalDistribution(choices)


def _read_choice(name: str, text: str) -> Any:
    """Read a value as its flag does, with `+` in place of the commas of a list."""
    is_list = isinstance(RunConfig.model_fields[name].default, tuple)
    return read_value(name, text.replace("+", ",") if is_list else text)


def decode(point: Point) -> dict[str, Any]:
    """Return a point's settings as `RunConfig` takes them."""
    return {k: _read_choice(k, v) if isinstance(v, str) else v for k, v in point.items()}


def show_point(point: Point) -> str:
    """Return a point as a grid takes it, floats with six digits; empty if nothing is varied."""
    shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in point.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


@dataclass(frozen=True)
class Trial:
    """One trial, as `sweep.json` records it."""

    number: int  # from 1
    seed: int
    point: Point | None  # None if it depends on results that are not there yet
    attempts: int = 0  # how often it was begun
    state: str = "waiting"  # waiting, running (or interrupted), complete, pruned or failed
    figures: dict[str, Any] = field(default_factory=dict)  # some of `FIGURES`, once it has ended
    val_accuracy: dict[str, float] = field(default_factory=dict)  # by epoch, unless it failed


def plan_trials(space: Space, sampler: str, n_points: int | None, seeds: range) -> list[Trial]:
    """Return the trials of a sweep; every point has its first seed before any has its second.

    Args:
        space: what is varied; may be empty.
        sampler: grid, random or tpe; the points of tpe are chosen later, by earlier results.
        n_points: how many different points, or fewer if the space has no more; None: all.
        seeds: of each point.

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
    points: list[Any] = corners(space) if sampler == "grid" else []
    while sampler == "random" and len(points) < n_points:
        points.append(_draw_point(RandomSampler, space, seeds[0], [], points))
    # A pooled head averages the feature maps that a Flatten head has cached.
    points.sort(key=lambda point: point.get("head") == "gap")
    repeated = itertools.product(seeds, points or [None] * n_points)
    return [Trial(number, *pair) for number, pair in enumerate(repeated, 1)]


def corners(space: Space) -> list[Point]:
    """Return the combinations of choices and ends of ranges, the last setting fastest."""
    ends = (
        d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)
        for d in space.values()
    )
    combinations = itertools.islice(itertools.product(*ends), MAX_TRIALS)
    return [dict(zip(space, values, strict=True)) for values in combinations]


def _count_values(distribution: Distribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    is_int = isinstance(distribution, IntDistribution)
    return distribution.high - distribution.low + 1 if is_int else math.inf


def _draw_point(
    kind: type[RandomSampler | TPESampler],
    space: Space,
    seed: int,
    earlier: Sequence[Trial],
    taken: Sequence[Point | None],
) -> Point:
    """Return a point that is not taken; it depends on the arguments only."""
    own_seed = int(np.random.SeedSequence([seed, len(taken)]).generate_state(1)[0])
    study = create_study(space, earlier, sampler=kind(seed=own_seed))
    while (point := study.ask({**space}).params) in taken:
        pass
    return {name: point[name] for name in space}


def create_study(space: Space, trials: Sequence[Trial], **options: Any) -> optuna.Study:
    """Return an Optuna study in memory that has the finished trials under their numbers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", **options)
    study.add_trial(create_trial(state=TrialState.FAIL))  # Optuna counts from 0
    for trial in trials:
        is_complete = trial.state == "complete"
        study.add_trial(
            create_trial(
                state=_STATES.get(trial.state, TrialState.FAIL),
                value=trial.figures["correct"] / trial.figures["total"] if is_complete else None,
                params=trial.point,
                distributions={**space} if trial.point else {},
                intermediate_values={int(k): v for k, v in trial.val_accuracy.items()},
            )
        )
    return study


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone trains."""

    trial: Trial
    directory: RunDir  # of the trial, locked
    is_trained: bool  # an earlier attempt was interrupted after the end of training
    attempt: optuna.Trial  # decides whether it is pruned

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
    is not locked was interrupted. It is trained again before new trials, so that sampling and
    pruning see the same results in the same order as without interruption.
    """

    def __init__(self, directory: RunDir, space: Space, sampler: str) -> None:
        self._directory, self._space, self._sampler = directory, space, sampler
        self._turn = partial(locked, directory.path, on_wait=lambda holder: None)
        trials = self.read_trials()
        self.n_points = sum(trial.seed == trials[0].seed for trial in trials)
        self._to_retry = {trial.number for trial in trials if trial.state == "failed"}

    def read_trials(self) -> list[Trial]:
        """Return all trials of the sweep."""
        return [Trial(**trial) for trial in self._directory.read_record(SWEEP)["trials"]]

    def directory_of(self, number: int) -> RunDir:
        """Return the directory of a trial."""
        return RunDir(self._directory.output(f"trial-{number:03d}"))

    def claims(self) -> Generator[Claim]:
        """Yield one trial after another to train, until those of all processes have ended.

        Finish each before the next. Close the generator, which holds the lock of the last one.
        """
        while True:
            with ExitStack() as held:
                with self._turn():
                    claim, busy = self._claim(held)
                if claim is not None:
                    yield claim
                    continue
            if busy is None:
                return
            with locked(busy, on_wait=lambda holder: say(f"waiting for the trial of {holder}")):
                pass

    def _claim(self, held: ExitStack) -> tuple[Claim | None, Path | None]:
        """Return a trial that `held` has locked, or a directory that another process has locked."""
        trials, busy = self.read_trials(), None
        self._directory.write_text(TABLE, tabulate(trials, self._space).to_csv(index=False))
        for trial in sorted(trials, key=lambda trial: trial.attempts >= _MAX_ATTEMPTS):
            if trial.state not in ("waiting", "running") and trial.number not in self._to_retry:
                continue
            own = self.directory_of(trial.number)
            own.path.mkdir(exist_ok=True)
            try:
                held.enter_context(own.locked())
            except RunExistsError:
                busy = own.path
                continue
            self._to_retry.discard(trial.number)
            return self._begin(trial, trials, own), None
        return None, busy

    def _begin(self, trial: Trial, trials: Sequence[Trial], own: RunDir) -> Claim:
        point = trials[(trial.number - 1) % self.n_points].point
        if point is None:
            earlier, seed = trials[: trial.number - 1], trials[0].seed
            taken = [trial.point for trial in earlier]
            point = _draw_point(TPESampler, self._space, seed, earlier, taken)
        begun = Trial(trial.number, trial.seed, point, trial.attempts + 1, "running")
        self._record(begun)
        is_trained = own.is_complete
        for path in () if is_trained else own.path.iterdir():  # what an earlier attempt left
            if path.name != LOCK:
                remove(path)
        is_pruned = self._sampler != "grid"
        pruner = optuna.pruners.MedianPruner(5, 2) if is_pruned else optuna.pruners.NopPruner()
        study = create_study(self._space, trials, pruner=pruner)
        study.enqueue_trial(point)
        return Claim(begun, own, is_trained, study.ask({**self._space}))

    def finish(self, claim: Claim, state: str, **figures: Any) -> None:
        """Record how a trial ended: complete, pruned or failed, and some of `FIGURES`."""
        history = [] if state == "failed" else claim.directory.read_history()
        curve = {str(row.epoch): row.val_accuracy for row in history}
        with self._turn():
            self._record(replace(claim.trial, state=state, figures=figures, val_accuracy=curve))

    def _record(self, trial: Trial) -> None:
        content = self._directory.read_record(SWEEP)
        content["trials"][trial.number - 1] = asdict(trial)
        self._directory.write_record(SWEEP, content)


def tabulate(trials: Sequence[Trial], space: Space) -> pd.DataFrame:
    """Return the trials that ended as trials.csv has them: floats with every digit."""
    rows = [
        {"trial": trial.number, "seed": trial.seed, "state": trial.state}
        | (trial.point or {})
        | trial.figures
        for trial in trials
        if trial.state not in ("waiting", "running")
    ]
    columns = ["trial", "seed", *space, "state", *FIGURES]
    return pd.DataFrame(rows, columns=columns, dtype="object").astype({"trial": int, **FIGURES})
