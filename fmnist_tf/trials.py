"""What a sweep tries, and what came of it.

In: the text of a grid, results of trials. Out: the settings of every trial, a ranking, table rows,
a file for W&B's own sweeps. Everything here is pure. This module must not know how a trial is run
or where it is kept.

A grid is words of `setting=value,value`. A value is what the setting's flag takes, with `+` in
place of the comma of a list, and true or false for a switch; `low..high` is a range to draw from,
`:log` after it draws evenly in the logarithm.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.settings.config import (
    WANDB_PROJECT,
    check_names,
    flag_text,
    value_type,
)
from fmnist_tf.settings.flags import read_value, setting_names

Point = dict[str, Any]
"""Knob -> value, of the settings that a sweep varies."""

_ELSEWHERE = {
    "seed": "--seeds N repeats every trial with N seeds",
    "phase": "--phase says it for all trials",
    **dict.fromkeys(
        ("data", "test_data", "label_column", "val_fraction", "limit"),
        "trials are compared on the same images, so it is said once, by its flag",
    ),
    **dict.fromkeys(("cache", "precision"), "it is said once, by its flag"),
    "test_time_flip": "it changes what is said of an epoch, not which one is best",
}
_LISTS = ("unfreeze", "augment")
_MOST_TRIALS = 10_000
_NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly or evenly in the logarithm.

    Attributes:
        low: the least.
        high: the greatest, above `low`.
        is_log: evenly in the logarithm; `low` is above 0.
        is_whole: whole numbers alone, both ends among them.
    """

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, rng: random.Random) -> float | int:
        """Return one number."""
        if self.is_whole and not self.is_log:
            return rng.randint(int(self.low), int(self.high))
        if self.is_log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = rng.uniform(self.low, self.high)
        # No more digits than a person repeats.
        drawn = min(max(float(f"{drawn:.5g}"), self.low), self.high)
        return round(drawn) if self.is_whole else drawn


Space = dict[str, tuple[Any, ...] | Range]
"""Knob -> the values to try, or a range to draw from."""


@dataclass(frozen=True)
class Result:
    """What came of one trial.

    Attributes:
        correct: val images of the best epoch that were classified correctly.
        total: val images.
        loss: mean cross entropy in nats on them.
        epoch: the best one, 1-based; 0 where training never beat its start.
        seconds: of the trial's stages, as its run counts them; wall time where it failed.
        test_correct: test images classified correctly; None where the test was not read.
        test_total: test images.
        error: why the trial failed; then no other number but `seconds` is set.
    """

    correct: int = 0
    total: int = 0
    loss: float = 0.0
    epoch: int = 0
    seconds: float = 0.0
    test_correct: int | None = None
    test_total: int | None = None
    error: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of val images classified correctly, 0..1."""
        return self.correct / self.total

    @property
    def test_accuracy(self) -> float | None:
        """The same of test images; None where the test was not read."""
        if self.test_correct is None or not self.test_total:
            return None
        return self.test_correct / self.test_total


@dataclass(frozen=True)
class Trial:
    """One training: a point of the space with one seed.

    Attributes:
        number: 1-based, in the order in which trials run.
        point: the varied settings.
        seed: of order, initial weights and dropout; the split is that of the sweep.
    """

    number: int
    point: Point
    seed: int


@dataclass(frozen=True)
class Outcome:
    """A point of the space with the results of its seeds.

    Attributes:
        point: the varied settings.
        trials: one for each seed.
        results: theirs, in the same order; None where a trial has none yet.
    """

    point: Point
    trials: tuple[Trial, ...]
    results: tuple[Result | None, ...]

    @property
    def error(self) -> str | None:
        """Why a trial of this point failed, if one did."""
        return next((r.error for r in self.results if r is not None and r.error), None)

    @property
    def valid_pairs(self) -> list[tuple[Trial, Result]]:
        """The trials that ended and did not fail, with their results, which have figures."""
        pairs = zip(self.trials, self.results, strict=True)
        return [(trial, result) for trial, result in pairs if result and not result.error]

    @property
    def sound(self) -> list[Result]:
        """The results of these."""
        return [result for _, result in self.valid_pairs]

    @property
    def is_whole(self) -> bool:
        """Whether every seed has its result, and none failed."""
        return len(self.sound) == len(self.results)

    @property
    def accuracies(self) -> list[float]:
        """Share of val images classified correctly, 0..1, for each seed that has a result."""
        return [result.accuracy for result in self.sound]

    @property
    def test_accuracies(self) -> list[float]:
        """The same of test images, where the test was read."""
        return [r.test_accuracy for r in self.sound if r.test_accuracy is not None]

    @property
    def loss(self) -> float:
        """Mean over the seeds of the mean cross entropy on val, in nats."""
        return statistics.fmean(result.loss for result in self.sound)


def read_space(text: str) -> Space:
    """Read a grid such as `learning_rate=1e-5..1e-3:log units=0,512 augment=none,flip`.

    Raises:
        UsageError: a word is no `setting=values`, a setting is unknown, repeated or said elsewhere,
            or a value is none of the setting's.
    """
    known = set(setting_names()) - _ELSEWHERE.keys()
    space: Space = {}
    for word in text.split():
        name, equals, values = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not values:
            raise UsageError(
                f"--grid {printable(word)}: expected SETTING=VALUE,VALUE, such as "
                "learning_rate=1e-4,3e-4"
            )
        if name in _ELSEWHERE:
            raise UsageError(f"--grid {name}: cannot be varied; {_ELSEWHERE[name]}")
        check_names([name], known, "setting", "--grid")
        if name in space:
            raise UsageError(f"--grid {name}: expected once, found twice")
        space[name] = _read_values(name, values)
    return space


def _read_values(name: str, values: str) -> tuple[Any, ...] | Range:
    kind = value_type(name).kind
    if found := _RANGE.fullmatch(values):
        if kind not in (int, float):
            raise UsageError(f"--grid {name}={printable(values)}: {name} is no number to draw")
        low, high = (_read_value(name, end) for end in found.groups()[:2])
        if not low < high or (found[3] and low <= 0):
            expected = "two numbers above 0, rising" if found[3] else "two rising numbers"
            raise UsageError(f"--grid {name}={printable(values)}: expected {expected}")
        return Range(low, high, bool(found[3]), kind is int)
    read = tuple(_read_value(name, value) for value in values.split(","))
    if len(set(read)) < len(read):
        raise UsageError(f"--grid {name}={printable(values)}: a value stands there twice")
    return read


def _read_value(name: str, text: str) -> Any:
    try:
        return read_value(name, text.replace("+", ",") if name in _LISTS else text)
    except UsageError as error:
        raise UsageError(f"--grid: {error}") from error


def plan_points(space: Space, n_random: int | None, seed: int) -> list[Point]:
    """Return every point of a grid, or some drawn at random.

    Args:
        space: as `read_space` returned it; empty has one point, which varies nothing.
        n_random: how many to draw, all different, fewer if there are no more; None takes the whole
            grid, last setting fastest.
        seed: of the draw.

    Raises:
        UsageError: a range without a number of draws, or too many points.
    """
    grid = {name: values for name, values in space.items() if isinstance(values, tuple)}
    ranges = space.keys() - grid.keys()
    if ranges and n_random is None:
        raise UsageError(
            f"--grid {min(ranges)}: a range is drawn from; expected --random N with it, or values"
        )
    size = math.inf if ranges else math.prod(map(len, grid.values()))
    n_points = size if n_random is None else min(n_random, size)
    if n_points > _MOST_TRIALS:
        raise UsageError(f"--grid: expected at most {_MOST_TRIALS:,} points")
    if n_points == size:
        return [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    rng = random.Random(seed)
    points: dict[tuple[Any, ...], Point] = {}
    for _ in range(100 * int(n_points)):  # a narrow range may hold fewer different numbers
        point = {
            name: values.draw(rng) if isinstance(values, Range) else rng.choice(values)
            for name, values in space.items()
        }
        points.setdefault(tuple(point.values()), point)
        if len(points) == n_points:
            break
    return list(points.values())


def plan_trials(points: Sequence[Point], seeds: Sequence[int]) -> list[Trial]:
    """Return a trial for each point and seed; every point has its first seed before any second.

    Raises:
        UsageError: too many.
    """
    if len(points) * len(seeds) > _MOST_TRIALS:
        raise UsageError(
            f"{len(points):,} points with {len(seeds):,} seeds: expected at most "
            f"{_MOST_TRIALS:,} trials"
        )
    pairs = itertools.product(seeds, points)
    return [Trial(number, point, seed) for number, (seed, point) in enumerate(pairs, start=1)]


def rank_outcomes(trials: Collection[Trial], results: Mapping[int, Result]) -> list[Outcome]:
    """Return a sweep's outcomes: whole ones first, best first, by mean val accuracy, then loss.

    Args:
        trials: of the sweep.
        results: by a trial's number, of those that ended.
    """
    of_point: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        of_point.setdefault(tuple(trial.point.values()), []).append(trial)
    outcomes = [
        Outcome(own[0].point, tuple(own), tuple(results.get(trial.number) for trial in own))
        for own in of_point.values()
    ]

    def worth(outcome: Outcome) -> tuple[bool, float, float]:
        if not outcome.sound:
            return (False, 0.0, 0.0)
        # Of sums, not of shares: rounding would tell equals apart.
        share = sum(r.correct for r in outcome.sound) / sum(r.total for r in outcome.sound)
        return (outcome.is_whole, share, -outcome.loss)

    return sorted(outcomes, key=worth, reverse=True)


def describe_spread(shares: Sequence[float]) -> str:
    """Return mean, and sample standard deviation where there are several: `0.9012 ± 0.0021`."""
    if not shares:
        return "-"
    mean = f"{statistics.fmean(shares):.4f}"
    return mean if len(shares) == 1 else f"{mean} ± {statistics.stdev(shares):.4f}"


def show_value(value: Any) -> str:
    """Return a setting's value as a grid takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "+".join(value) or "none"
    return "none" if value is None else str(value)


def show_point(point: Point) -> str:
    """Return a point as a grid takes it; empty for the one that varies nothing."""
    return " ".join(f"{name}={printable(show_value(value))}" for name, value in point.items())


def tabulate(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table that people read, a row for each point."""
    is_tested = any(outcome.test_accuracies for outcome in outcomes)
    settings = list(outcomes[0].point)
    header = ["trials", *settings, "val accuracy", *["test accuracy"] * is_tested]
    header += ["n", "best epoch", "seconds"]
    rows = []
    for outcome in outcomes:
        ended = [result for result in outcome.results if result is not None]
        row = [",".join(str(trial.number) for trial in outcome.trials)]
        row += [printable(show_value(value)) for value in outcome.point.values()]
        row.append(
            f"failed: {printable(outcome.error, 40)}"
            if outcome.error
            else describe_spread(outcome.accuracies)
        )
        if is_tested:
            row.append(describe_spread(outcome.test_accuracies))
        row.append(str(len(outcome.sound)))
        row.append(",".join(str(result.epoch) for result in outcome.sound) or "-")
        row.append(f"{sum(result.seconds for result in ended):.0f}")
        rows.append(row)
    return header, rows


def describe_for_wandb(space: Space, n_random: int | None, flags: Sequence[str]) -> dict[str, Any]:
    """Return the same search as W&B's own agents take it, to be written as YAML.

    Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys

    Args:
        space: to search.
        n_random: the number of runs of a random search; None: a grid.
        flags: of `fmnist_tf.train`, the same in each run.
    """
    parameters: dict[str, Any] = {}
    for name, values in space.items():
        flag = name.replace("_", "-")  # the agent makes --learning-rate=1e-4 of it
        if not isinstance(values, Range):
            parameters[flag] = {
                "values": [v if isinstance(v, (int, float)) else flag_text(v) for v in values]
            }
        elif values.is_whole and values.is_log:
            # W&B draws no whole numbers evenly in the logarithm.
            ratio = values.high / values.low
            steps = [round(values.low * ratio ** (i / 31)) for i in range(32)]
            parameters[flag] = {"values": sorted(set(steps))}
        else:
            kind = "int_uniform" if values.is_whole else "uniform"
            parameters[flag] = {
                "distribution": "log_uniform_values" if values.is_log else kind,
                "min": values.low,
                "max": values.high,
            }
    # Agents leave out what is false; the recipe must not say true then.
    switches = [
        f"--no-{name.replace('_', '-')}"
        for name, values in space.items()
        if isinstance(values, tuple) and isinstance(values[0], bool)
    ]
    return {
        "project": WANDB_PROJECT,
        "program": "fmnist_tf.train",
        "method": "grid" if n_random is None else "random",
        **({} if n_random is None else {"run_cap": n_random}),
        "metric": {"name": "epoch/val_accuracy", "goal": "maximize"},
        "parameters": parameters,
        "command": [
            *("${env}", "${interpreter}", "-m", "fmnist_tf.train"),
            *flags,
            *switches,
            "${args_no_boolean_flags}",
        ],
    }
