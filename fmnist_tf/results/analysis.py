"""Class scores, calibration, examples worth a look, PCA and McNemar's test.

N examples, K classes; labels (N,) int64 0..K-1 and probabilities (N, K) floats as
`evaluation.check_predictions` accepts them. The prediction is the most probable class, the first of
equal ones. Indices are 0..N-1. The same input gives the same result: ties have a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.results.evaluation import Evaluation, worst_mistakes

if TYPE_CHECKING:
    import pandas as pd

_WORST, _LEAST_SURE, LABEL_ISSUES = 24, 12, 12  # examples
_EXAMPLES_OF_A_CELL, _EXAMPLES_OF_ALL_CELLS = 6, 600
_EXPLAINED_CLASSES = 20  # at most two examples each
ALL_CLASSES = 30  # up to this many classes, tables show every class
FEW_CLASSES = 20  # of more classes they show this many


def score_classes(confusion: np.ndarray) -> pd.DataFrame:
    """Return `precision`, `recall`, `f1`, 0 where undefined, and `support` of each class.

    `confusion` are (K, K) counts; rows are true labels, columns predictions.
    """
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    labels, predictions = np.indices(confusion.shape).reshape(2, -1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, sample_weight=confusion.ravel(), zero_division=0
    )
    columns = {"precision": precision, "recall": recall, "f1": f1}
    return pd.DataFrame({**columns, "support": confusion.sum(axis=1)})


@dataclass(frozen=True)
class ConfusedPair:
    """A class predicted as another: how often, and for which fraction of its examples."""

    label: int
    prediction: int
    count: int
    fraction: float


def rank_confusions(confusion: np.ndarray, count: int = 10) -> list[ConfusedPair]:
    """Return at most `count` pairs of (K, K) counts, the most frequent first, ties by row."""
    support = confusion.sum(axis=1)
    cells = np.argwhere(confusion * (1 - np.eye(len(confusion), dtype=np.int64)))
    counts = confusion[tuple(cells.T)]
    order = np.argsort(-counts, kind="stable")[:count]
    ranked = np.column_stack([cells, counts])[order].tolist()
    return [ConfusedPair(k, other, n, n / int(support[k])) for k, other, n in ranked]


def choose_classes(confusion: np.ndarray) -> list[int]:
    """Return the classes of a confusion matrix to show: all, or of many the most confused."""
    classes = list(range(len(confusion)))
    if len(classes) <= ALL_CLASSES:
        return classes
    pairs = rank_confusions(confusion, len(classes))
    ranked = dict.fromkeys(k for pair in pairs for k in (pair.label, pair.prediction))
    return sorted(list(ranked)[:FEW_CLASSES]) or classes[:FEW_CLASSES]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Accuracy against confidence, the probability of the prediction, in B bins of equal width.

    Attributes:
        edges: (B+1,) float64, 0..1; a bin includes its right edge, not its left.
        counts: (B,) int64, examples in each bin.
        confidence: (B,) float64, mean confidence; NaN in an empty bin.
        accuracy: (B,) float64; NaN in an empty bin.
        ece: expected calibration error 0..1, the mean gap between the two over all examples.
        mce: maximum calibration error 0..1, the widest gap of a bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    mce: float


def measure_calibration(
    labels: np.ndarray, probabilities: np.ndarray, n_bins: int = 15
) -> Calibration:
    """Compare confidence and accuracy in bins of equal width.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    correct = probabilities.argmax(axis=1) == labels
    confidence = np.minimum(probabilities.max(axis=1), 1).astype(np.float64)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges, confidence) - 1
    counts = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, confidence, n_bins) / counts
        accuracy = np.bincount(bins, correct, n_bins) / counts
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    ece = float(gaps @ counts / len(labels))
    return Calibration(edges, counts, mean_confidence, accuracy, ece, float(gaps.max()))


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` indices whose label may be wrong, the most suspect first.

    An example is suspect if its prediction differs from its label and reaches the threshold of the
    predicted class: the mean probability of that class over the examples with its label. The order
    is: highest probability of the prediction, lowest probability of the label, position.

    Only for held-out predictions: a network agrees with the wrong labels it was trained on.

    Source: Northcutt et al., Confident Learning, JAIR 70, 2021, section 3.1: the off-diagonal part
    of the confident joint, without examples whose prediction stays below its threshold.
    """
    n_classes = probabilities.shape[1]
    of_label = probabilities[np.arange(len(labels)), labels]
    sizes = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, of_label, n_classes)
    # A class without examples has no threshold, so nothing reaches it.
    thresholds = np.divide(sums, sizes, out=np.full(n_classes, np.inf), where=sizes > 0)
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    suspects = np.flatnonzero((predictions != labels) & (confidence >= thresholds[predictions]))
    return suspects[np.lexsort((of_label[suspects], -confidence[suspects]))][:count]


@dataclass(frozen=True, eq=False)
class Selection:
    """The examples that a report shows. All arrays are int64 indices.

    Attributes:
        worst: at most 24, see `evaluation.worst_mistakes`.
        least_sure: at most 12, the smallest margin between the two top classes first.
        cells: of the confusion matrix of `choose_classes`, by (label, prediction): at most 6
            examples of each cell, of many cells fewer, the highest confidence first.
        explained: for each class the most confident correct prediction and the worst mistake, if
            any; at most 20 classes, those with the most mistakes.
    """

    worst: np.ndarray
    least_sure: np.ndarray
    cells: dict[tuple[int, int], np.ndarray]
    explained: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All indices above, ascending, each once."""
        groups = [self.worst, self.least_sure, *self.cells.values(), self.explained]
        return np.unique(np.concatenate(groups))


def select_examples(labels: np.ndarray, probabilities: np.ndarray) -> Selection:
    """Choose the examples that a report shows.

    Raises:
        ValueError: the arrays do not fit together, or are no labels and probabilities.
    """
    import pandas as pd

    confusion = Evaluation.from_probabilities(labels, probabilities).confusion
    shown = choose_classes(confusion)
    filled = [(k, other) for k in shown for other in shown if confusion[k, other]]
    count = max(1, min(_EXAMPLES_OF_A_CELL, _EXAMPLES_OF_ALL_CELLS // max(len(filled), 1)))
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    table = pd.DataFrame({"label": labels, "prediction": probabilities.argmax(axis=1)})
    table["is_correct"] = table["label"] == table["prediction"]
    surest_first = table.iloc[np.argsort(-first, kind="stable")]
    in_cell = surest_first.groupby(["label", "prediction"]).groups
    mistakes = worst_mistakes(labels, probabilities, len(labels))
    # The first correct and the first wrong prediction of each class, by class.
    ranked = pd.concat([surest_first[surest_first["is_correct"]], table.iloc[mistakes]])
    firsts = ranked.groupby(["label", "is_correct"]).head(1).sort_values("label", kind="stable")
    n_mistakes = (~table["is_correct"]).groupby(table["label"]).sum()
    explained = n_mistakes.sort_values(ascending=False, kind="stable").index[:_EXPLAINED_CLASSES]
    return Selection(
        worst=mistakes[:_WORST],
        least_sure=np.argsort(first - second, kind="stable")[:_LEAST_SURE],
        cells={cell: in_cell[cell][:count].to_numpy() for cell in filled},
        explained=firsts[firsts["label"].isin(explained)].index.to_numpy(),
    )


def project(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project (N, D) finite feature vectors onto their first two principal components.

    A component is zero where there is no such direction: D is 1, or the features are constant.

    Source: sklearn.decomposition.PCA, https://scikit-learn.org/stable/modules/decomposition.html

    Returns:
        Coordinates (N, 2) float32, and the fraction 0..1 of the variance that each component
        explains, (2,) float64.
    """
    from sklearn.decomposition import PCA

    points, variance_ratio = np.zeros((len(features), 2), np.float32), np.zeros(2)
    # Constant features minus one of them are exact zeros; minus their mean they may not be.
    shifted = features.astype(np.float64) - features[0]
    if shifted.any():
        n_components = min(2, *features.shape)
        # scikit-learn chooses a randomized solver for large input.
        pca = PCA(n_components, random_state=0)
        points[:, :n_components] = pca.fit_transform(shifted)
        variance_ratio[:n_components] = pca.explained_variance_ratio_
    return points, variance_ratio


@dataclass(frozen=True)
class McNemar:
    """How many examples both, one or neither of two classifiers predicts correctly.

    `p_value` is that of the exact two-sided test, 0..1.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the p-value is below 0.05."""
        return self.p_value < 0.05

    @property
    def points(self) -> float:
        """Accuracy of the second less that of the first, in percentage points."""
        total = self.both + self.only_first + self.only_second + self.neither
        return 100 * (self.only_second - self.only_first) / total


def compare_runs(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """Test whether two classifiers have different error rates, from their probabilities (N, K).

    Exact two-sided binomial test on the examples that exactly one of them classifies correctly.

    Sources: McNemar, Psychometrika 12, 1947, 153-157; Dietterich, Neural Computation 10, 1998,
    section 3.1.
    """
    from scipy.stats import binomtest

    a, b = (probabilities.argmax(axis=1) == labels for probabilities in (first, second))
    neither, only_second, only_first, both = np.bincount(2 * a + b, minlength=4).tolist()
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(both, only_first, only_second, neither, p_value)
