"""Learning rates by hand, by the published formulas, and by Keras' schedule and callback."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.settings.config import WITH_WARMUP
from fmnist_tf.training.schedules import RatePlan, count_reductions, rate_at

few = settings(deadline=None, max_examples=80)


def rates(plan: RatePlan, val_losses: tuple[float, ...] = ()) -> list[float]:
    return [rate_at(plan, step, val_losses) for step in range(plan.total_steps)]


BY_HAND = {
    "constant": (RatePlan("constant", 0.3, 3, 1), [0.3, 0.3, 0.3]),
    # A quarter of the way in the first step, the peak when the warm-up is over.
    "constant, warm-up": (
        RatePlan("constant", 0.4, 3, 2, warmup_steps=3),
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4],
    ),
    "warm-up only": (RatePlan("constant", 1.0, 3, 1, warmup_steps=3), [0.25, 0.5, 0.75]),
    # (1 + cos(k * 45 degrees)) / 2
    "cosine": (RatePlan("cosine", 1.0, 2, 2), [1.0, 0.8535533906, 0.5, 0.1464466094]),
    # 1 + 8 * (1 + cos(k * 60 degrees)) / 2 after the warm-up
    "cosine, warm-up, minimum": (
        RatePlan("cosine", 9.0, 3, 2, warmup_steps=3, minimum=1.0),
        [3.0, 5.0, 7.0, 9.0, 7.0, 3.0],
    ),
    # The second top is half as high above the minimum, the third a quarter.
    "triangular2": (
        RatePlan("triangular2", 9.0, 5, 2, minimum=1.0, cycle_steps=4),
        [1.0, 5.0, 9.0, 5.0, 1.0, 3.0, 5.0, 3.0, 1.0, 2.0],
    ),
    "one step": (RatePlan("cosine", 1.0, 1, 1, minimum=0.25), [1.0]),
    "one step of triangular2": (
        RatePlan("triangular2", 1.0, 1, 1, minimum=0.25, cycle_steps=2),
        [0.25],
    ),
}


@pytest.mark.parametrize(("plan", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_rates_by_hand(plan: RatePlan, expected: list[float]) -> None:
    assert rates(plan) == pytest.approx(expected)


def test_triangular2_is_smiths_formula() -> None:
    plan = RatePlan("triangular2", 0.006, 50, 4, minimum=0.001, cycle_steps=34)
    for step, rate in enumerate(rates(plan)):
        # Listing of Smith 2017, with half a cycle as his stepsize.
        cycle = math.floor(1 + step / (2 * 17))
        x = abs(step / 17 - 2 * cycle + 1)
        expected = 0.001 + (0.006 - 0.001) * max(0, 1 - x) / 2 ** (cycle - 1)
        assert rate == pytest.approx(expected)


def test_thousands_of_cycles() -> None:
    plan = RatePlan("triangular2", 1.0, 10_000, 1, minimum=0.25, cycle_steps=2)
    assert rate_at(plan, 9_999) == 0.25


def test_plateau() -> None:
    plan = RatePlan("plateau", 0.8, 2, 6, factor=0.5, patience=2, threshold=0.1, minimum=0.3)
    losses = (
        3.0,  # the best
        2.95,  # lower, but by less than the threshold: one epoch waited
        3.1,  # two
        2.0,  # the best
        2.0,  # equal is not lower: one
        2.0,  # two, but nothing follows
    )
    table = [
        0.8, 0.8,  # the first epoch has no loss to look at
        0.8, 0.8,
        0.8, 0.8,
        0.4, 0.4,  # after the two epochs without improvement
        0.4, 0.4,
        0.4, 0.4,
    ]  # fmt: skip
    assert rates(plan, losses) == pytest.approx(table)
    longer = replace(plan, epochs=7)
    assert rates(longer, losses)[-1] == 0.3  # a quarter of 0.8 would be below the minimum


def test_plateau_ignores_later_epochs() -> None:
    plan = RatePlan("plateau", 1.0, steps_per_epoch=3, epochs=9, patience=1)
    losses = (2.0, 3.0, 1.0, 1.0, 4.0, 0.5, 0.6, 0.7, 0.8)
    for step in range(plan.total_steps):
        assert rate_at(plan, step, losses) == rate_at(plan, step, losses[: step // 3])
    with pytest.raises(ValueError, match="step 6 needs 2"):
        rate_at(plan, 6, losses[:1])


def test_nan_is_no_improvement() -> None:
    assert count_reductions([math.nan, math.nan, 1.0, math.nan], patience=2, threshold=0) == 1


# Dyadic numbers: their differences are exact, so a tie is a tie in float32 too.
losses_of_a_run = st.lists(st.integers(0, 24).map(lambda n: n / 8), max_size=30)


@few
@given(losses_of_a_run, st.integers(1, 4), st.sampled_from([0.0, 0.25]))
def test_plateau_is_keras_reduce_lr_on_plateau(
    losses: list[float], patience: int, threshold: float
) -> None:
    plan = RatePlan(
        "plateau", 0.8, 1, len(losses) + 1, minimum=0.05, factor=0.5,
        patience=patience, threshold=threshold,
    )  # fmt: skip
    optimizer = SimpleNamespace(learning_rate=plan.peak)
    callback = keras.callbacks.ReduceLROnPlateau(
        factor=plan.factor, patience=patience, min_delta=threshold, min_lr=plan.minimum
    )
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    of_keras = [optimizer.learning_rate]
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        of_keras.append(optimizer.learning_rate)
    assert rates(plan, tuple(losses)) == pytest.approx(of_keras)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_cosine_is_keras_cosine_decay(warmup_steps: int) -> None:
    plan = RatePlan("cosine", 0.5, 10, 3, warmup_steps=warmup_steps, minimum=0.02)
    start = plan.minimum + (plan.peak - plan.minimum) / (warmup_steps + 1)
    of_keras = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=start,
        decay_steps=plan.total_steps - warmup_steps,
        alpha=plan.minimum / plan.peak,
        warmup_target=plan.peak,
        warmup_steps=warmup_steps,
    )
    expected = [float(of_keras(step)) for step in range(plan.total_steps)]
    assert rates(plan) == pytest.approx(expected, rel=1e-5)


@st.composite
def plans(draw: Any) -> RatePlan:
    schedule = draw(st.sampled_from(["constant", "cosine", "triangular2", "plateau"]))
    peak = draw(st.floats(1e-6, 10))
    steps_per_epoch, epochs = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    steps = steps_per_epoch * epochs
    return RatePlan(
        schedule,
        peak,
        steps_per_epoch,
        epochs,
        minimum=peak * draw(st.floats(0, 1)),
        warmup_steps=draw(st.integers(0, steps)) if schedule in WITH_WARMUP else 0,
        cycle_steps=draw(st.integers(2, 20)),
        factor=draw(st.floats(0.01, 0.99)),
        patience=draw(st.integers(1, 4)),
    )


@few
@given(plans(), st.lists(st.floats(0, 10), min_size=6, max_size=6))
def test_rates_are_between_minimum_and_peak(plan: RatePlan, losses: list[float]) -> None:
    for rate in rates(plan, tuple(losses)):
        assert plan.minimum * (1 - 1e-9) <= rate <= plan.peak * (1 + 1e-9)
        assert rate >= 0


@pytest.mark.parametrize("step", [-1, 4])
def test_step_outside_the_run(step: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.3"):
        rate_at(RatePlan("cosine", 1.0, 2, 2), step)


def test_a_schedule_without_a_formula_is_refused() -> None:
    with pytest.raises(ValueError, match="found linear"):
        rate_at(RatePlan("linear", 1.0, 2, 2), 0)
