"""Scores, selections, projection and test against references and cases computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.results.analysis import (
    ConfusedPair,
    McNemar,
    choose_classes,
    compare_runs,
    find_label_issues,
    measure_calibration,
    project,
    rank_confusions,
    score_classes,
    select_examples,
)
from fmnist_tf.results.evaluation import Evaluation, worst_mistakes

few = settings(deadline=None, max_examples=40)


def make_predictions(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions that are often correct and often tied: steps of 1/8."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n)
    chances = np.where(np.arange(k) == labels[:, None], 0.5, 0.5 / (k - 1))
    return labels, (random.multinomial(8, chances) / 8).astype(np.float32)


def one_hot(classes: list[int], probability: float, k: int) -> np.ndarray:
    """Return a row for each class with `probability` for it, the rest spread evenly."""
    rows = np.full((len(classes), k), (1 - probability) / (k - 1))
    rows[np.arange(len(classes)), classes] = probability
    return rows


@pytest.mark.filterwarnings("error")
def test_a_class_without_predictions_or_examples_scores_zero():
    confusion = np.array([[3, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    scores = score_classes(confusion)
    assert scores.precision.tolist() == [3 / 4, 2 / 4, 0, 0]
    assert scores.recall.tolist() == [3 / 4, 1, 0, 0]
    assert scores.f1.tolist() == pytest.approx([3 / 4, 2 / 3, 0, 0])
    assert scores.support.tolist() == [4, 2, 2, 0]


def test_confusions_are_sorted_by_count_then_row():
    confusion = np.array([[9, 2, 0], [5, 90, 2], [2, 0, 0]])
    assert rank_confusions(confusion) == [
        ConfusedPair(label=1, prediction=0, count=5, fraction=5 / 97),
        ConfusedPair(label=0, prediction=1, count=2, fraction=2 / 11),
        ConfusedPair(label=1, prediction=2, count=2, fraction=2 / 97),
        ConfusedPair(label=2, prediction=0, count=2, fraction=1.0),
    ]
    assert rank_confusions(confusion, 1) == rank_confusions(confusion)[:1]
    assert rank_confusions(np.diag([3, 0, 2])) == []


def test_calibration_by_hand():
    # Four bins; a confidence on an edge belongs to the bin below it.
    probabilities = np.concatenate(
        [one_hot([0, 0], 0.75, 3), one_hot([1], 0.5, 3), one_hot([2, 2], 1.0, 3)]
    )
    calibration = measure_calibration(np.array([0, 1, 1, 2, 0]), probabilities, n_bins=4)
    assert calibration.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert calibration.counts.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(calibration.confidence, [np.nan, 0.5, 0.75, 1])
    np.testing.assert_array_equal(calibration.accuracy, [np.nan, 1, 0.5, 0.5])
    assert calibration.ece == pytest.approx((1 * 0.5 + 2 * 0.25 + 2 * 0.5) / 5)
    assert calibration.mce == 0.5


def test_other_arrays_are_refused():
    labels, probabilities = make_predictions(50, 3)
    with pytest.raises(ValueError, match="nan"):
        select_examples(labels, probabilities * np.nan)


@few
@given(st.integers(2, 8), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_label_issues_are_off_diagonal_in_the_confident_joint(k, n, seed):
    labels, probabilities = make_predictions(n, k, seed)
    threshold = {
        j: math.fsum(probabilities[labels == j, j]) / (labels == j).sum() for j in set(labels)
    }
    suspects = set()
    for index, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        over = [j for j in range(k) if j in threshold and row[j] >= threshold[j]]
        best = max(over, key=lambda j: (row[j], -j), default=label)
        if best != label and row[best] == row.max() and best == row.argmax():
            suspects.add(index)
    order = sorted(
        suspects, key=lambda i: (-probabilities[i].max(), probabilities[i, labels[i]], i)
    )
    assert find_label_issues(labels, probabilities, n).tolist() == order


def test_selection_of_seven_examples_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    # Mistakes: one of the second pair, both of the third, and the last one, which is less sure.
    parts = [([0, 0], 0.6), ([1, 1], 0.7), ([0, 1], 0.8), ([1], 0.5)]
    probabilities = np.concatenate([one_hot(classes, p, 3) for classes, p in parts])
    selection = select_examples(labels, probabilities)
    # Of class 2 only mistakes, of class 0 the first of two correct, and its only mistake.
    assert selection.explained.tolist() == [0, 2, 3, 4, 5]
    cells = {cell: found.tolist() for cell, found in selection.cells.items()}
    assert cells == {(0, 0): [0, 1], (0, 1): [2], (1, 0): [4], (1, 1): [3], (2, 1): [5, 6]}
    assert selection.worst.tolist() == worst_mistakes(labels, probabilities, 24).tolist()
    assert selection.least_sure.tolist() == [6, 0, 1, 2, 3, 4, 5]  # by margin, then position
    assert selection.rows.tolist() == list(range(7))
    perfect = select_examples(np.array([1, 0, 1]), np.eye(2, dtype=np.float32)[[1, 0, 1]])
    assert perfect.worst.tolist() == []
    assert {cell: found.tolist() for cell, found in perfect.cells.items()} == {
        (0, 0): [1],
        (1, 1): [0, 2],
    }
    assert perfect.explained.tolist() == [1, 0]
    assert perfect.rows.dtype == np.int64


@few
@given(st.integers(2, 40), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_selection_has_the_promised_sizes_and_pairs(k, n, seed):
    labels, probabilities = make_predictions(n, k, seed)
    predictions = probabilities.argmax(1)
    selection = select_examples(labels, probabilities)
    groups = [selection.worst, selection.least_sure, selection.explained]
    groups += selection.cells.values()
    assert {group.dtype for group in groups} == {np.dtype(np.int64)}
    assert set(selection.rows.tolist()) == {index for group in groups for index in group.tolist()}
    assert (np.diff(selection.rows) > 0).all()
    assert len(selection.worst) == min(24, (predictions != labels).sum())
    assert len(selection.least_sure) == min(12, n)
    assert len(np.unique(labels[selection.explained])) == min(20, len(np.unique(labels)))
    shown = choose_classes(Evaluation.from_probabilities(labels, probabilities).confusion)
    pairs = set(zip(labels.tolist(), predictions.tolist(), strict=True))
    assert set(selection.cells) == {pair for pair in pairs if {*pair} <= {*shown}}
    count = max(1, min(6, 600 // max(len(selection.cells), 1)))
    for (label, prediction), found in selection.cells.items():
        inside = np.flatnonzero((labels == label) & (predictions == prediction))
        surest_first = sorted(inside, key=lambda index: (-probabilities[index].max(), index))
        assert found.tolist() == surest_first[:count]


@pytest.mark.parametrize("shape", [(40, 5), (600, 30), (510, 60)])  # a solver each
def test_projection_is_the_two_first_principal_components(shape):
    random = np.random.default_rng(0)
    n, d = shape
    features = (random.normal(size=shape) * 0.6 ** np.arange(d) + 3).astype(np.float32)
    points, ratio = project(features)
    assert (points.shape, points.dtype) == ((n, 2), np.float32)
    assert (ratio.shape, ratio.dtype) == ((2,), np.float64)

    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign([row[np.abs(row).argmax()] for row in rows[:2]])
    np.testing.assert_allclose(points, centred @ rows[:2].T * signs, atol=1e-4)
    assert ratio == pytest.approx((values**2 / (values**2).sum())[:2], rel=1e-6)
    np.testing.assert_array_equal(points, project(features)[0])


@pytest.mark.filterwarnings("error")
def test_offsets_constants_and_a_single_dimension():
    spread = np.random.default_rng(0).integers(-8, 8, (500, 3)) * np.array([4, 2, 1])
    far, _ = project((spread + 2.0**20).astype(np.float32))
    np.testing.assert_allclose(project(spread)[0], far, atol=1e-4)
    for constant in (np.full((9, 4), 0.1, np.float32), np.full((7, 3), 0.1), np.ones((1, 1))):
        points, ratio = project(constant)
        assert (points.shape, points.dtype) == ((len(constant), 2), np.float32)
        assert not points.any()
        assert ratio.tolist() == [0, 0]
    points, ratio = project(np.array([[200], [0], [100]], np.uint8))
    assert points.tolist() == [[100, 0], [-100, 0], [0, 0]]
    assert ratio.tolist() == [1, 0]


def test_mcnemar_by_hand():
    labels = np.zeros(10, np.int64)
    first = one_hot([0] * 8 + [1] * 2, 0.9, 2)
    second = one_hot([0] * 2 + [1] * 6 + [0] + [1], 0.9, 2)
    result = compare_runs(labels, first, second)
    assert compare_runs(labels, first, first).p_value == 1
    # Two-sided: at least 6 of 7 heads, or at least 6 tails: 2 * (7 + 1) / 2**7.
    assert result == McNemar(2, 6, 1, 1, p_value=pytest.approx(2 * 8 / 2**7))
    assert compare_runs(labels, second, first).p_value == pytest.approx(result.p_value)
