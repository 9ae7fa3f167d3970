"""The learning-rate finder on curves whose best rate is known."""

from __future__ import annotations

import math

import pytest

from fmnist_tf.training.lr_finder import has_diverged, plan_rates, smooth_losses, suggest_rate


def test_rates_are_a_geometric_progression() -> None:
    rates = plan_rates(1e-4, 1.0, 5)
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_smoothing_is_bias_corrected() -> None:
    assert smooth_losses([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth_losses([1.0, 3.0])[1] == pytest.approx((0.9 * 1 + 3) / 1.9)


def test_the_suggestion_is_a_tenth_of_the_best_rate() -> None:
    rates = plan_rates()
    losses = [2 + abs(math.log10(rate) + 2) for rate in rates]  # lowest at 0.01
    suggestion = suggest_rate(rates, losses)
    # Smoothing delays the minimum by a few steps.
    assert 1e-3 <= suggestion <= 1e-3 * (rates[1] / rates[0]) ** 10


def test_one_bad_batch_is_no_divergence() -> None:
    assert not has_diverged([2.0])
    assert not has_diverged([1.0] * 10 + [8.0])
    assert has_diverged([1.0] * 10 + [8.0] * 10)
    assert has_diverged([1.0, math.nan])
    assert has_diverged([math.inf])


def test_the_first_losses_may_differ() -> None:
    # Batches of one image, or of a network that has learned already.
    assert not any(has_diverged([0.02, *[0.5] * n]) for n in range(120))
    assert not any(has_diverged([0.02, *[5.0] * n]) for n in range(10))
    assert has_diverged([*[0.5] * 12, *[5.0] * 10])


def test_a_lucky_first_batch_does_not_matter() -> None:
    rates = plan_rates()
    losses = [0.01, *(0.3 + 0.02 * abs(math.log10(rate) + 2) for rate in rates[1:])]
    assert 1e-3 <= suggest_rate(rates, losses) <= 1e-3 * (rates[1] / rates[0]) ** 10


@pytest.mark.parametrize(
    "losses", [[], [1.0], [math.log(10)] * 120, [1 + step / 9 for step in range(120)]]
)
def test_without_a_falling_loss_there_is_no_suggestion(losses: list[float]) -> None:
    assert suggest_rate(plan_rates(), losses) is None


def test_a_loss_that_falls_to_the_end_suggests_a_tenth_of_the_largest_rate() -> None:
    rates = plan_rates()
    assert suggest_rate(rates, [200 - step for step in range(120)]) == rates[-1] / 10
