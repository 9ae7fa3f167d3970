"""Temperature scaling: one number that makes a network's probabilities match its accuracy.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

model.keras, predictions.npz and the figures of val and test are those of the network as trained;
predict, demo and exports divide its logits by the temperature. The accuracy stays.

N examples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmnist_tf.results.analysis import measure_calibration
from fmnist_tf.results.evaluation import Evaluation, losses

_LARGEST = 10.0


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the softmax of the logits divided by the temperature, (N, K) float64.

    The logits are the logarithms of the probabilities (N, K) but for a constant.
    """
    if temperature == 1:
        return probabilities
    from scipy.special import softmax

    tiny = np.finfo(np.float32).tiny
    scaled: np.ndarray = softmax(
        np.log(np.maximum(probabilities, tiny, dtype=np.float64)) / temperature, axis=1
    )
    return scaled


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature 0.1..10 with the lowest cross entropy on held-out examples.

    It is 1 where there is no minimum, as of a network without a mistake.
    """
    from scipy.optimize import minimize_scalar

    bound = np.log(_LARGEST)

    def loss(log: float) -> float:
        return float(losses(labels, scale(probabilities, float(np.exp(log)))).mean())

    found = minimize_scalar(loss, bounds=(-bound, bound))
    # A loss that only falls towards a bound has no minimum.
    return float(np.exp(found.x)) if found.fun < min(loss(-bound), loss(bound)) else 1.0


def measure_scaling(
    labels: np.ndarray, probabilities: np.ndarray, temperature: float
) -> dict[str, Any]:
    """Return the entry `calibration` of `evaluation.json`: test images before and after."""
    entry: dict[str, Any] = {"temperature": temperature}
    for name, some in (("before", probabilities), ("after", scale(probabilities, temperature))):
        ece = measure_calibration(labels, some).ece
        entry[name] = {"ece": ece, "loss": Evaluation.from_probabilities(labels, some).loss}
    return entry


def describe_scaling(calibration: Mapping[str, Any]) -> str:
    """Return the entry that `measure_scaling` made as a phrase of at most 80 characters."""
    before, after = calibration["before"], calibration["after"]
    return (
        f"calibration error (ECE) {before['ece']:.4f}; at temperature "
        f"{calibration['temperature']:.3f} {after['ece']:.4f}, loss {after['loss']:.4f}"
    )
