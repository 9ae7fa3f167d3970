"""What the learning-rate finder's losses mean for the run: its rate, its files, its warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_tf.errors import FmnistError
from fmnist_tf.pipeline.plan import use_suggested_rate
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan

FLAT, FALLING = [1.0] * 50, [200.0 - step for step in range(120)]


def choose(path: Path, losses: list[float], given: float | None, minimum: float = 0.0) -> float:
    """Return the peak rate of the plan after the finder had these losses."""
    rates = RatePlan("cosine", peak=max(1.0, minimum), steps_per_epoch=9, epochs=1, minimum=minimum)
    plan = TrainingPlan(rates, batch_size=8, seed=0)
    heading = Heading("a title")
    return use_suggested_rate(plan, losses, given, RunDir(path), heading).rates.peak


def test_the_suggestion_is_used_and_written(tmp_path: Path, capsys) -> None:
    assert choose(tmp_path, FALLING, None) == 0.1  # a tenth of the largest rate
    assert "--learning-rate" in capsys.readouterr().err  # a larger one may do better
    assert (tmp_path / "lr_finder.csv").read_text().splitlines()[0] == "rate,loss,smoothed"
    assert (tmp_path / "lr_finder.png").stat().st_size > 1000


@pytest.mark.parametrize("losses", [FLAT, []], ids=["flat", "diverged at once"])
def test_without_a_suggestion_a_rate_must_be_given(tmp_path: Path, losses: list[float]) -> None:
    with pytest.raises(FmnistError, match="--learning-rate"):
        choose(tmp_path, losses, None)
    assert (tmp_path / "lr_finder.png").is_file() == bool(losses)


def test_a_given_rate_wins(tmp_path: Path) -> None:
    assert choose(tmp_path, FALLING, 0.5) == 0.5
    assert choose(tmp_path, FLAT, 1.0) == 1.0


def test_the_minimum_bounds_the_suggestion(tmp_path: Path) -> None:
    assert choose(tmp_path, FALLING, None, minimum=9.0) == 9.0
