"""Scores, selections, map and test against independent references and cases made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from fmnist_tf.results.analysis import (
    ConfusedPair,
    McNemar,
    compare_runs,
    find_label_issues,
    find_least_sure,
    measure_calibration,
    project,
    rank_confusions,
    score_classes,
    select_examples,
)
from fmnist_tf.results.evaluation import Evaluation, worst_mistakes

few = settings(deadline=None, max_examples=40)


def make_predictions(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right in somewhat more than half of the cases, with many ties: steps of 1/8."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n)
    chances = np.where(np.arange(k) == labels[:, None], 0.5, 0.5 / (k - 1))
    return labels, (random.multinomial(8, chances) / 8).astype(np.float32)


def guess(classes: list[int], probability: float, k: int) -> np.ndarray:
    """One row per class, which gets `probability`; the others share the rest."""
    rows = np.full((len(classes), k), (1 - probability) / (k - 1))
    rows[np.arange(len(classes)), classes] = probability
    return rows


# --- scores ---------------------------------------------------------------------------------------


@few
@given(st.integers(2, 12), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_scores_agree_with_scikit_learn(k, n, seed):
    labels, probabilities = make_predictions(n, k, seed)
    scores = score_classes(Evaluation.from_probabilities(labels, probabilities).confusion)
    reference = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(k), zero_division=0
    )
    for ours, theirs in zip(
        (scores.precision, scores.recall, scores.f1, scores.support), reference, strict=True
    ):
        assert ours == pytest.approx(theirs)
    assert scores.precision.dtype == scores.recall.dtype == scores.f1.dtype == np.float64
    assert scores.support.dtype == np.int64
    present = f1_score(labels, probabilities.argmax(1), labels=np.unique(labels), average="macro")
    assert scores.macro_f1 == pytest.approx(present)


@pytest.mark.filterwarnings("error")
def test_a_class_without_guesses_or_examples_scores_zero_and_is_no_part_of_the_mean():
    confusion = np.array([[3, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    scores = score_classes(confusion)
    assert scores.precision.tolist() == [3 / 4, 2 / 4, 0, 0]
    assert scores.recall.tolist() == [3 / 4, 1, 0, 0]
    assert scores.f1.tolist() == pytest.approx([3 / 4, 2 / 3, 0, 0])
    assert scores.support.tolist() == [4, 2, 2, 0]
    assert scores.macro_f1 == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)


def test_confusions_come_most_first_and_equals_in_the_order_of_the_matrix():
    confusion = np.array([[9, 2, 0], [5, 90, 2], [2, 0, 0]])
    assert rank_confusions(confusion) == [
        ConfusedPair(truth=1, guess=0, count=5, share=5 / 97),
        ConfusedPair(truth=0, guess=1, count=2, share=2 / 11),
        ConfusedPair(truth=1, guess=2, count=2, share=2 / 97),
        ConfusedPair(truth=2, guess=0, count=2, share=1.0),
    ]
    assert rank_confusions(confusion, 1) == rank_confusions(confusion)[:1]
    assert rank_confusions(np.diag([3, 0, 2])) == []
    assert len(rank_confusions(np.ones((9, 9), np.int64))) == 10


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_by_hand():
    # Four bins; a confidence on an edge belongs to the bin below it.
    probabilities = np.concatenate(
        [guess([0, 0], 0.75, 3), guess([1], 0.5, 3), guess([2, 2], 1.0, 3)]
    )
    calibration = measure_calibration(np.array([0, 1, 1, 2, 0]), probabilities, n_bins=4)
    assert calibration.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert calibration.counts.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(calibration.confidence, [np.nan, 0.5, 0.75, 1])
    np.testing.assert_array_equal(calibration.accuracy, [np.nan, 1, 0.5, 0.5])
    assert calibration.ece == pytest.approx((1 * 0.5 + 2 * 0.25 + 2 * 0.5) / 5)
    assert calibration.mce == 0.5


@few
@given(st.integers(2, 30), st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_calibration_agrees_with_the_definition(k, n, n_bins, seed):
    random = np.random.default_rng(seed)
    labels, probabilities = random.integers(0, k, n), random.dirichlet(np.ones(k), n)
    calibration = measure_calibration(labels, probabilities, n_bins)
    ece, mce, total = 0.0, 0.0, 0
    for index in range(n_bins):
        low, high = calibration.edges[index : index + 2]
        confidence = probabilities.max(1)
        inside = (confidence > low) & (confidence <= high)
        assert calibration.counts[index] == inside.sum()
        if inside.any():
            gap = abs(
                (probabilities.argmax(1) == labels)[inside].mean() - confidence[inside].mean()
            )
            ece, mce, total = ece + gap * inside.sum() / n, max(mce, gap), total + inside.sum()
    assert total == n
    assert (calibration.ece, calibration.mce) == pytest.approx((ece, mce))


def test_a_perfect_run_is_perfectly_calibrated_in_fifteen_bins():
    calibration = measure_calibration(np.array([0]), np.array([[1.0, 0.0]], np.float32))
    assert (calibration.ece, calibration.mce) == (0, 0)
    assert calibration.counts.tolist() == [0] * 14 + [1]
    assert calibration.counts.dtype == np.int64
    assert len(calibration.edges) == 16


def test_a_probability_a_shade_over_one_is_in_the_last_bin_with_confidence_one():
    calibration = measure_calibration(np.array([0]), np.array([[1.0005, 0.0]]))
    assert calibration.counts[-1] == 1
    assert calibration.confidence[-1] == 1


def test_calibration_and_selection_refuse_what_are_no_predictions():
    for function in (measure_calibration, select_examples):
        with pytest.raises(ValueError, match="found NaN"):
            function(np.array([0]), np.array([[np.nan, 0.5]]))
        with pytest.raises(ValueError, match=r"expected 0\.\.1, found 2\.\.2"):
            function(np.array([2]), np.array([[0.5, 0.5]]))


# --- which examples -------------------------------------------------------------------------------


def test_least_sure_is_by_the_margin_and_equals_by_position():
    probabilities = np.array(
        [[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.1, 0.3, 0.6], [0.4, 0.4, 0.2], [0.5, 0.25, 0.25]]
    )
    assert find_least_sure(probabilities, 9).tolist() == [3, 0, 1, 4, 2]
    assert find_least_sure(probabilities, 2).tolist() == [3, 0]
    assert find_least_sure(np.array([[0.5, 0.5]]), 0).tolist() == []


@few
@given(st.integers(2, 9), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_least_sure_agrees_with_sorting_every_row(k, n, seed):
    _, probabilities = make_predictions(n, k, seed)
    before = probabilities.copy()
    ranked = np.sort(probabilities, axis=1)
    margins = (ranked[:, -1] - ranked[:, -2]).tolist()
    expected = sorted(range(n), key=lambda index: (margins[index], index))
    assert find_least_sure(probabilities, n).tolist() == expected
    assert (probabilities == before).all()


def test_label_issues_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],
            [0.8, 0.1, 0.1, 0.0],
            [0.1, 0.9, 0.0, 0.0],  # guess 1 over the threshold of 1: suspect
            [0.2, 0.8, 0.0, 0.0],
            [0.5, 0.4, 0.1, 0.0],  # guess 0 under the threshold of 0: not suspect
            [0.7, 0.3, 0.0, 0.0],  # guess 0 over the threshold of 0: suspect
            [0.0, 0.9, 0.1, 0.0],  # as sure as index 2, its label as unlikely: stays behind it
            [0.0, 0.0, 0.0, 1.0],  # class 3 has no examples, so no threshold: not suspect
        ]
    )
    # Thresholds: (0.9 + 0.8 + 0.1) / 3 = 0.6, (0.8 + 0.4 + 0.3) / 3 = 0.5, 0.05, none.
    assert find_label_issues(labels, probabilities, 9).tolist() == [2, 6, 5]
    assert find_label_issues(labels, probabilities, 1).tolist() == [2]
    assert find_label_issues(labels, probabilities, 0).tolist() == []


def test_of_equally_sure_contradictions_the_less_likely_label_comes_first():
    probabilities = np.array([[0.75, 0.25, 0.0], [0.75, 0.0, 0.25], [0.5, 0.25, 0.25]])
    labels = np.array([2, 2, 0])
    assert find_label_issues(labels, probabilities, 9).tolist() == [0, 1]
    assert find_label_issues(np.array([1, 1, 0]), probabilities, 9).tolist() == [1, 0]


def test_reaching_the_threshold_is_enough():
    # Everything is certain, so every threshold that a right label can have is exactly 1.
    labels, probabilities = np.array([0, 0, 1, 1, 2]), np.eye(3)[[0, 0, 1, 1, 1]]
    assert find_label_issues(labels, probabilities, 9).tolist() == [4]


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
    found = find_label_issues(labels, probabilities, n)
    assert set(found.tolist()) == suspects
    assert len(found) == len(suspects)
    sureness = probabilities[found].max(axis=1)
    assert (np.diff(sureness) <= 0).all()


def test_wrong_labels_are_found():
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 5000)
    scores = random.normal(size=(5000, 10))
    scores[np.arange(5000), truth] += 8
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels, flipped = truth.copy(), random.choice(5000, 40, replace=False)
    labels[flipped] = (labels[flipped] + 1 + random.integers(0, 9, 40)) % 10
    found = find_label_issues(labels, probabilities, 30)
    assert len(found) == 30
    assert np.isin(found, flipped).all()


def test_selection_of_seven_examples_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    probabilities = np.concatenate(
        [
            guess([0, 0], 0.6, 3),
            guess([1, 1], 0.7, 3),  # one is a mistake
            guess([0, 1], 0.8, 3),  # both are
            guess([1], 0.5, 3),  # a mistake less sure
        ]
    )
    selection = select_examples(labels, probabilities)
    # Of class 2 only mistakes, of class 0 the first of two hits, and its only mistake.
    assert selection.explained.tolist() == [0, 2, 3, 4, 5]
    pairs = [((pair.truth, pair.guess), found.tolist()) for pair, found in selection.confused]
    assert pairs == [((2, 1), [5, 6]), ((0, 1), [2]), ((1, 0), [4])]
    assert [pair.count for pair, _ in selection.confused] == [2, 1, 1]
    assert selection.worst.tolist() == worst_mistakes(labels, probabilities, 36).tolist()
    assert selection.least_sure.tolist() == find_least_sure(probabilities, 24).tolist()
    assert selection.label_issues.tolist() == find_label_issues(labels, probabilities, 24).tolist()
    assert selection.rows.tolist() == list(range(7))


def test_a_perfect_run_has_no_mistakes_to_show():
    selection = select_examples(np.array([1, 0, 1]), np.eye(2, dtype=np.float32)[[1, 0, 1]])
    assert selection.worst.tolist() == selection.label_issues.tolist() == []
    assert selection.confused == ()
    assert selection.explained.tolist() == [1, 0]
    assert selection.rows.tolist() == [0, 1, 2]
    assert selection.rows.dtype == np.int64


@few
@given(st.integers(2, 40), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_selection_is_small_repeatable_and_what_it_says(k, n, seed):
    labels, probabilities = make_predictions(n, k, seed)
    guesses = probabilities.argmax(1)
    selection = select_examples(labels, probabilities)
    again = select_examples(labels.copy(), probabilities.copy())
    assert selection.rows.tolist() == again.rows.tolist()

    groups = [selection.worst, selection.least_sure, selection.label_issues, selection.explained]
    groups += [found for _, found in selection.confused]
    assert {group.dtype for group in groups} == {np.dtype(np.int64)}
    assert set(selection.rows.tolist()) == {index for group in groups for index in group.tolist()}
    assert (np.diff(selection.rows) > 0).all()
    assert len(selection.worst) == min(36, (guesses != labels).sum())
    assert len(selection.least_sure) == min(24, n)
    assert len(selection.label_issues) <= 24
    assert len(selection.confused) <= 6
    for pair, found in selection.confused:
        assert len(found) == min(6, pair.count)
        assert (labels[found] == pair.truth).all()
        assert (guesses[found] == pair.guess).all()
        inside = np.flatnonzero((labels == pair.truth) & (guesses == pair.guess))
        surest_first = sorted(inside, key=lambda index: (-probabilities[index].max(), index))
        assert found.tolist() == surest_first[:6]

    classes = np.unique(labels)
    by_mistakes = sorted(classes, key=lambda c: (-((labels == c) & (guesses != c)).sum(), c))
    expected = []
    for c in sorted(by_mistakes[:20]):
        inside = np.flatnonzero(labels == c)
        hits = [i for i in inside if guesses[i] == c]
        mistakes = [i for i in inside if guesses[i] != c]
        expected += sorted(hits, key=lambda i: (-probabilities[i, c], i))[:1]
        worst = sorted(mistakes, key=lambda i: (probabilities[i, c], -probabilities[i].max(), i))
        expected += worst[:1]
    assert selection.explained.tolist() == expected


def test_a_thousand_classes_do_not_make_the_selection_large():
    random = np.random.default_rng(0)
    labels = random.integers(0, 1000, 3000)
    probabilities = random.dirichlet(np.ones(1000), 3000).astype(np.float32)
    selection = select_examples(labels, probabilities)
    assert len(selection.worst) == 36
    assert len(selection.least_sure) == 24
    assert len(selection.confused) == 6
    assert len(selection.explained) <= 40
    assert len(selection.rows) <= 36 + 24 + 24 + 6 * 6 + 40


# --- the map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 5), (600, 30), (700, 650)])  # a solver each
def test_projection_is_the_two_first_principal_components(shape):
    random = np.random.default_rng(0)
    n, d = shape
    features = (random.normal(size=shape) * 0.6 ** np.arange(d) + 3).astype(np.float32)
    points, ratio = project(features)
    assert (points.shape, points.dtype) == ((n, 2), np.float32)
    assert (ratio.shape, ratio.dtype) == ((2,), np.float64)

    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    for component in range(2):
        loadings = rows[component]
        loadings = loadings * np.sign(loadings[np.abs(loadings).argmax()])
        np.testing.assert_allclose(points[:, component], centred @ loadings, atol=1e-4)
    assert ratio == pytest.approx((values**2 / (values**2).sum())[:2], rel=1e-6)

    again, ratio_again = project(features)
    np.testing.assert_array_equal(points, again)
    np.testing.assert_array_equal(ratio, ratio_again)


def test_the_largest_loading_is_positive():
    line = np.arange(4.0)[:, None]
    points, _ = project(line * [1, -3])  # the largest loading is that of the second feature
    assert (np.diff(points[:, 0]) < 0).all()
    points, _ = project(line * [3, -1])
    assert (np.diff(points[:, 0]) > 0).all()


def test_a_far_offset_in_float32_costs_no_accuracy():
    spread = np.random.default_rng(0).integers(-8, 8, (500, 3)) * np.array([4, 2, 1])
    near, _ = project(spread)
    far, _ = project((spread + 2.0**20).astype(np.float32))
    np.testing.assert_allclose(near, far, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "features",
    [np.full((9, 4), 0.1, np.float32), np.full((7, 3), 0.1), np.ones((1, 5)), np.ones((1, 1))],
    ids=["float32", "float64", "one example", "one number"],
)
def test_constant_features_are_all_at_zero(features):
    points, ratio = project(features)
    assert (points.shape, points.dtype) == ((len(features), 2), np.float32)
    assert not points.any()
    assert ratio.tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_one_dimension_and_bytes_leave_the_second_component_zero():
    points, ratio = project(np.array([[200], [0], [100]], np.uint8))
    assert points.tolist() == [[100, 0], [-100, 0], [0, 0]]
    assert ratio.tolist() == [1, 0]


def test_two_examples_lie_on_a_line():
    points, ratio = project(np.array([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]]))
    np.testing.assert_allclose(points, [[-2.5, 0], [2.5, 0]], atol=1e-6)
    assert ratio == pytest.approx([1, 0])


# --- two runs -------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    labels = np.zeros(10, np.int64)
    first = guess([0] * 8 + [1] * 2, 0.9, 2)
    second = guess([0] * 2 + [1] * 6 + [0] + [1], 0.9, 2)
    result = compare_runs(labels, first, second)
    # Two-sided: at least 6 of 7 heads, or at least 6 tails: 2 * (7 + 1) / 2**7.
    assert result == McNemar(2, 6, 1, 1, p_value=pytest.approx(2 * 8 / 2**7))
    assert compare_runs(labels, second, first).p_value == pytest.approx(result.p_value)


@few
@given(st.integers(2, 9), st.integers(1, 300), st.integers(0, 2**32 - 2))
def test_mcnemar_counts_every_example_once(k, n, seed):
    labels, first = make_predictions(n, k, seed)
    _, second = make_predictions(n, k, seed + 1)
    result = compare_runs(labels, first, second)
    assert result.both + result.only_first == (first.argmax(1) == labels).sum()
    assert result.both + result.only_second == (second.argmax(1) == labels).sum()
    assert result.both + result.only_first + result.only_second + result.neither == n
    discordant = result.only_first + result.only_second
    if discordant:
        assert result.p_value == binomtest(result.only_second, discordant).pvalue
    assert 0 <= result.p_value <= 1
    numbers = (result.both, result.only_first, result.only_second, result.neither, result.p_value)
    assert [type(number) for number in numbers] == [int, int, int, int, float]


def test_runs_that_agree_on_every_example_do_not_differ():
    labels, probabilities = make_predictions(50, 3)
    assert compare_runs(labels, probabilities, probabilities).p_value == 1


def test_predictions_for_other_examples_cannot_be_compared():
    labels, probabilities = make_predictions(50, 3)
    for pair in ((probabilities, probabilities[:49]), (probabilities[:49], probabilities)):
        with pytest.raises(ValueError, match=r"expected shape \(49,\), found \(50,\)"):
            compare_runs(labels, *pair)
