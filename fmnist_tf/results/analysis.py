"""What the counts and the probabilities of a finished run have to say beyond the accuracy.

In: confusion counts, labels and probabilities, or feature vectors. Out: scores, indices of
examples worth a look, coordinates of a map. Every function is pure, and equals are put in a fixed
order. This module must not know which split it looks at, what the classes are called, nor touch
the disk.

N examples, K classes (at least two); labels (N,) int64 0..K-1, probabilities (N, K) floats as
`evaluation.check_predictions` accepts them; the guess is the most probable class, the first of
equals. An "index" is one of 0..N-1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fmnist_tf.results.evaluation import Evaluation, check_predictions, worst_mistakes

_WORST, _LEAST_SURE, LABEL_ISSUES = 36, 24, 24  # examples
_PAIRS, _EXAMPLES_OF_A_PAIR = 6, 6
_EXPLAINED_CLASSES = 20  # up to two examples each


@dataclass(frozen=True, eq=False)
class ClassScores:
    """How well each class is found.

    Attributes:
        precision: (K,) float64, the correct share of the guesses; 0 for a class never guessed.
        recall: (K,) float64, the share of the class that was found; 0 for a class without examples.
        f1: (K,) float64, the harmonic mean of the two; 0 where both are.
        support: (K,) int64, how many examples the class has.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have examples, each counting the same."""
        return float(self.f1[self.support > 0].mean())


def score_classes(confusion: np.ndarray) -> ClassScores:
    """Score each class from (K, K) counts, at least one; rows are the truth, columns the guess."""
    hits, support, guessed = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        precision=_shares(hits, guessed),
        recall=_shares(hits, support),
        f1=_shares(2 * hits, support + guessed),
        support=support,
    )


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, 0 where `whole` is."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


@dataclass(frozen=True)
class ConfusedPair:
    """One cell of the confusion matrix beside its diagonal.

    Attributes:
        truth: the class the examples are of.
        guess: the class they were taken for.
        count: how many, at least 1.
        share: the same as a share 0..1 of all examples of the class `truth`.
    """

    truth: int
    guess: int
    count: int
    share: float


def rank_confusions(confusion: np.ndarray, count: int = 10) -> list[ConfusedPair]:
    """Return at most `count` pairs of (K, K) counts, the most frequent first.

    Equals stand in the order of truth, then guess.
    """
    support = confusion.sum(axis=1)
    truths, guesses = np.nonzero(confusion)
    wrong = truths != guesses
    truths, guesses = truths[wrong], guesses[wrong]
    counts = confusion[truths, guesses]
    return [
        ConfusedPair(
            truth=int(truths[cell]),
            guess=int(guesses[cell]),
            count=int(counts[cell]),
            share=float(counts[cell] / support[truths[cell]]),
        )
        for cell in np.argsort(-counts, kind="stable")[:count]
    ]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether a guess of probability p is right in a share p of the cases; B bins.

    Attributes:
        edges: (B+1,) float64, 0..1; a bin holds its right edge, not its left.
        counts: (B,) int64, examples in each bin.
        confidence: (B,) float64, their mean probability of the guess; NaN in an empty bin.
        accuracy: (B,) float64, the correct share of them; NaN in an empty bin.
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

    Args:
        labels: (N,) integers 0..K-1.
        probabilities: (N, K) floats.
        n_bins: B, at least 1.

    Raises:
        ValueError: the arrays are not the truth and the guesses of N examples.
    """
    check_predictions(labels, probabilities)
    hits = probabilities.argmax(axis=1) == labels
    confidence = np.minimum(probabilities.max(axis=1), 1).astype(np.float64)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges, confidence) - 1
    counts = np.bincount(bins, minlength=n_bins)
    filled = counts > 0
    sums = np.bincount(bins, confidence, n_bins), np.bincount(bins, hits, n_bins)
    mean_confidence, accuracy = (
        np.divide(total, counts, out=np.full(n_bins, np.nan), where=filled) for total in sums
    )
    gaps = np.abs(accuracy - mean_confidence)[filled]
    return Calibration(
        edges=edges,
        counts=counts,
        confidence=mean_confidence,
        accuracy=accuracy,
        ece=float(gaps @ counts[filled] / len(labels)),
        mce=float(gaps.max()),
    )


def find_least_sure(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` indices, the least margin between first and second class first.

    Args:
        probabilities: (N, K) floats.
        count: at least 0.
    """
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return np.argsort(first - second, kind="stable")[:count]


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` indices whose label may be wrong, the surest contradiction first.

    The threshold of a class is the mean probability that examples with its label are given for it.
    An example is suspect if the guess is not its label and reaches the threshold of its class: the
    off-diagonal part of the confident joint, less examples whose guess stays under its threshold.
    Ordered by the probability of the guess, then the least probability of the label, then the
    earlier example.

    Only for predictions out of sample: a network agrees with the wrong labels it was trained on.

    Source: Northcutt et al., Confident Learning, JAIR 70, 2021, section 3.1.

    Args:
        labels: (N,) integers 0..K-1.
        probabilities: (N, K) floats.
        count: at least 0.
    """
    n_classes = probabilities.shape[1]
    for_label = probabilities[np.arange(len(labels)), labels]
    sizes = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, for_label, n_classes)
    # Without examples there is no threshold, and nothing can reach it.
    thresholds = np.divide(sums, sizes, out=np.full(n_classes, np.inf), where=sizes > 0)
    guesses, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    suspects = np.flatnonzero((guesses != labels) & (confidence >= thresholds[guesses]))
    return suspects[np.lexsort((for_label[suspects], -confidence[suspects]))][:count]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which examples a reader should see. All arrays are int64 indices.

    Attributes:
        worst: at most 36, see `evaluation.worst_mistakes`.
        least_sure: at most 24, see `find_least_sure`.
        label_issues: at most 24, see `find_label_issues`.
        confused: the at most 6 most confused pairs, each with at most 6 of its examples, the one
            with the most probable guess first.
        explained: class by class the surest correct and the worst wrong guess, where there are
            such; at most 20 classes, those with the most mistakes.
    """

    worst: np.ndarray
    least_sure: np.ndarray
    label_issues: np.ndarray
    confused: tuple[tuple[ConfusedPair, np.ndarray], ...]
    explained: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All indices above, ascending, each once."""
        pairs = [indices for _, indices in self.confused]
        groups = [self.worst, self.least_sure, self.label_issues, *pairs, self.explained]
        return np.unique(np.concatenate(groups))


def select_examples(labels: np.ndarray, probabilities: np.ndarray) -> Selection:
    """Choose the examples a reader should see; the same input gives the same choice.

    Args:
        labels: (N,) integers 0..K-1.
        probabilities: (N, K) floats.

    Raises:
        ValueError: the arrays are not the truth and the guesses of N examples.
    """
    confusion = Evaluation.from_probabilities(labels, probabilities).confusion
    pairs = rank_confusions(confusion, _PAIRS)
    return Selection(
        worst=worst_mistakes(labels, probabilities, _WORST),
        least_sure=find_least_sure(probabilities, _LEAST_SURE),
        label_issues=find_label_issues(labels, probabilities, LABEL_ISSUES),
        confused=tuple(_with_examples(pairs, labels, probabilities)),
        explained=_choose_explained(labels, probabilities),
    )


def _with_examples(
    pairs: list[ConfusedPair], labels: np.ndarray, probabilities: np.ndarray
) -> Iterator[tuple[ConfusedPair, np.ndarray]]:
    """Yield each pair with its examples, the surest guess first."""
    guesses, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for pair in pairs:
        examples = np.flatnonzero((labels == pair.truth) & (guesses == pair.guess))
        surest_first = np.argsort(-confidence[examples], kind="stable")
        yield pair, examples[surest_first][:_EXAMPLES_OF_A_PAIR]


def _choose_explained(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the surest correct and the worst wrong guess of each class, class by class."""
    hits = np.flatnonzero(probabilities.argmax(axis=1) == labels)
    hits = hits[np.argsort(-probabilities[hits, labels[hits]], kind="stable")]
    mistakes = worst_mistakes(labels, probabilities, len(labels))
    classes = np.unique(labels)
    n_mistakes = np.bincount(labels[mistakes], minlength=probabilities.shape[1])[classes]
    shown = classes[np.argsort(-n_mistakes, kind="stable")[:_EXPLAINED_CLASSES]]
    # np.unique points at the first of each class: the surest, and the worst.
    firsts = [group[np.unique(labels[group], return_index=True)[1]] for group in (hits, mistakes)]
    chosen = np.concatenate(firsts)
    chosen = chosen[np.isin(labels[chosen], shown)]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def project(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project feature vectors onto their two principal components.

    A component is zero where there is no such direction: D is 1, or the features are constant. Its
    sign is such that its largest loading is positive.

    Source: sklearn.decomposition.PCA, https://scikit-learn.org/stable/modules/decomposition.html

    Args:
        features: (N, D) finite numbers, both at least 1; takes 8 N D bytes and more.

    Returns:
        Coordinates (N, 2) float32, and the share 0..1 of the variance that each component
        explains, (2,) float64.
    """
    from sklearn.decomposition import PCA

    points = np.zeros((len(features), 2), np.float32)
    variance_ratio = np.zeros(2)
    # Shifted by one of them, constant features are exact zeros; a mean would not do that.
    shifted = features.astype(np.float64) - features[0]
    if shifted.any():
        n_components = min(2, *features.shape)
        # The seed is for the randomized solver, scikit-learn's choice for large input.
        pca = PCA(n_components, random_state=0)
        points[:, :n_components] = pca.fit_transform(shifted)
        variance_ratio[:n_components] = pca.explained_variance_ratio_
    return points, variance_ratio


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same examples.

    Attributes:
        both: how many examples both get right.
        only_first: how many only the first gets right.
        only_second: how many only the second gets right.
        neither: how many neither gets right.
        p_value: 0..1, how likely two equally good classifiers differ by this much or more.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def compare_runs(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """Test whether two classifiers make different numbers of mistakes.

    Exact two-sided binomial test on the examples that only one of them gets right.

    Sources: McNemar, Psychometrika 12, 1947, 153-157; Dietterich, Neural Computation 10, 1998,
    section 3.1.

    Args:
        labels: (N,) integers 0..K-1.
        first: (N, K) probabilities.
        second: (N, K) probabilities for the same examples in the same order.

    Raises:
        ValueError: the arrays are not the truth and the guesses of N examples.
    """
    from scipy.stats import binomtest

    check_predictions(labels, first)
    check_predictions(labels, second)
    first_hits, second_hits = (guesses.argmax(axis=1) == labels for guesses in (first, second))
    only_first = int((first_hits & ~second_hits).sum())
    only_second = int((second_hits & ~first_hits).sum())
    discordant = only_first + only_second
    return McNemar(
        both=int((first_hits & second_hits).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~first_hits & ~second_hits).sum()),
        p_value=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    )
