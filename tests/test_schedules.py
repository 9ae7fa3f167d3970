"""Every step's factor, written out."""

from __future__ import annotations

import pytest

from fmnist_tf.training.schedules import rate_factor


def test_constant() -> None:
    assert [rate_factor("constant", step, 3) for step in range(3)] == [1, 1, 1]


def test_cosine() -> None:
    table = [
        1.0,  # the peak
        0.8535533906,  # (1 + cos 45 degrees) / 2
        0.5,  # half way
        0.1464466094,  # (1 + cos 135 degrees) / 2; zero would be the step after
    ]
    assert [rate_factor("cosine", step, 4) for step in range(4)] == pytest.approx(table)


def test_one_step_is_a_run_too() -> None:
    assert [rate_factor(schedule, 0, 1) for schedule in ("constant", "cosine")] == [1, 1]


@pytest.mark.parametrize("step", [-1, 4])
def test_step_outside_the_run(step: int) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        rate_factor("cosine", step, 4)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="'linear'; expected constant or cosine"):
        rate_factor("linear", 0, 4)
