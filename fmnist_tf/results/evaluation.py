"""Integer counts of correct and wrong predictions, and the metrics that follow from the counts.

N examples, K classes. The prediction is the most probable class, the first of equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_SUM_TOLERANCE = 1e-3  # how far the probabilities of one example may be from a sum of 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of a classifier on one split."""

    confusion: np.ndarray  # (K, K) int64 counts, read-only; rows are true labels
    loss: float  # mean cross entropy in nats

    @classmethod
    def from_probabilities(cls, labels: np.ndarray, probabilities: np.ndarray) -> Evaluation:
        """Count the predictions by true label.

        Args:
            labels: (N,) integers 0..K-1, N at least 1.
            probabilities: (N, K) floats 0..1, each row summing to 1 within 1e-3.

        Raises:
            ValueError: a shape, type or range is not as above.
        """
        check_predictions(labels, probabilities)
        n_classes = probabilities.shape[1]
        cells = labels.astype(np.int64) * n_classes + probabilities.argmax(axis=1)
        confusion = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
        confusion.setflags(write=False)
        # fsum is exact, so the order of the examples cannot change the last digit.
        return cls(confusion, math.fsum(losses(labels, probabilities)) / len(labels))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evaluation:
        """Return what `to_json` made the record from."""
        confusion = np.array(record["confusion"], np.int64)
        confusion.setflags(write=False)
        return cls(confusion, record["loss"])

    @property
    def total(self) -> int:
        """Number of examples."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """`correct / total`."""
        return self.correct / self.total

    @property
    def interval_95(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy (E. B. Wilson, JASA 22, 1927, 209-212)."""
        from scipy.stats import binomtest

        interval = binomtest(self.correct, self.total).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of one split in `evaluation.json`."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "interval_95": list(self.interval_95),
            "confusion": self.confusion.tolist(),
        }


def check_predictions(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Check that the arrays can be the true labels and predictions of N examples.

    Raises:
        ValueError: a shape, type or range is not as `Evaluation.from_probabilities` wants it.
    """
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(f"probabilities: expected shape (N, K), found {probabilities.shape}")
    n_examples, n_classes = probabilities.shape
    if labels.shape != (n_examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected {n_examples} integers, found {labels.dtype}{labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"labels: expected 0..{n_classes - 1}, found {labels.min()}..{labels.max()}"
        )
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ValueError(f"probabilities: expected floats, found {probabilities.dtype}")
    low, high = probabilities.min(), probabilities.max()
    if not (low >= 0 and high <= 1 + _SUM_TOLERANCE):  # NaN, too
        raise ValueError(f"probabilities: expected 0..1, found {low}..{high}")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    furthest = sums[np.abs(sums - 1).argmax()]
    if abs(furthest - 1) > _SUM_TOLERANCE:
        raise ValueError(f"probabilities: expected rows that sum to 1, found a sum of {furthest}")


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return (N,) float64: the cross entropy of each example in nats, 0 to 87.3.

    A probability of zero counts as the smallest normal float32, 2**-126, to keep the sum finite.
    """
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    logs: np.ndarray = np.log(np.clip(of_label, np.finfo(np.float32).tiny, 1))
    return -logs


def worst_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of at most `count` wrong predictions, the worst first.

    The order is: lowest probability of the true label, highest probability of the prediction,
    position.
    """
    mistakes = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    of_label = probabilities[mistakes, labels[mistakes]]
    confidence = probabilities[mistakes].max(axis=1)
    return mistakes[np.lexsort((-confidence, of_label))][:count]
