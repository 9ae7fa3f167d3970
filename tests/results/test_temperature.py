"""Temperature scaling: what it finds, and what it leaves as it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from fmnist_tf.results.temperature import (
    describe_scaling,
    fit_temperature,
    measure_scaling,
    scale,
)

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(20_000, 5))
# Labels drawn from the softmax of the logits: that of the logits times T is calibrated at T.
LABELS = np.array([RNG.choice(5, p=row) for row in softmax(LOGITS, axis=1)])


def predict(temperature: float) -> np.ndarray:
    return softmax(LOGITS * temperature, axis=1).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_a_network_needs_is_found(temperature: float) -> None:
    found = fit_temperature(LABELS, predict(temperature))
    assert found == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(
        scale(predict(temperature), temperature), softmax(LOGITS, axis=1), atol=1e-5
    )


def test_calibration_before_and_after() -> None:
    probabilities = predict(3.0)
    entry = measure_scaling(LABELS, probabilities, 3.0)
    assert entry["temperature"] == 3
    assert entry["before"]["ece"] > 0.1 > 0.02 > entry["after"]["ece"]
    assert entry["before"]["loss"] > entry["after"]["loss"] + 0.1
    assert len(describe_scaling(entry)) <= 80


def test_classes_and_their_order_stay() -> None:
    probabilities = predict(1.0)
    probabilities[0], probabilities[1] = [1, 0, 0, 0, 0], [0.4, 0.4, 0.2, 0, 0]
    for temperature in (0.1, 10.0):
        scaled = scale(probabilities, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
        assert np.isfinite(scaled).all()


def test_without_a_minimum_nothing_is_scaled() -> None:
    sure = np.full((9, 3), 0.1, np.float32)
    sure[:, 1] = 0.8
    assert fit_temperature(np.ones(9, int), sure) == 1  # no mistake: the sharper the better
    assert fit_temperature(np.zeros(9, int), sure) == 1  # only mistakes: the flatter the better
    assert fit_temperature(np.ones(9, int), np.eye(3, dtype=np.float32)[[1] * 9]) == 1
    assert scale(sure, 1) is sure
