"""Counts, not means: every figure of an Evaluation against an independent reference."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss

from fmnist_tf.results.evaluation import Evaluation, losses, worst_mistakes


def make_predictions(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, k, n), random.dirichlet(np.ones(k), n).astype(np.float32)


def test_seven_examples_by_hand():
    guesses = [0, 0, 1, 2, 2, 1, 2]
    labels = np.array([0, 1, 1, 2, 2, 2, 2])
    probabilities = np.full((7, 3), 0.2)
    probabilities[np.arange(7), guesses] = 0.6

    evaluation = Evaluation.from_probabilities(labels, probabilities)

    assert evaluation.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 3]]
    assert evaluation.confusion.dtype == np.int64
    assert not evaluation.confusion.flags.writeable
    assert (evaluation.correct, evaluation.total) == (5, 7)
    assert evaluation.accuracy == 5 / 7
    assert evaluation.loss_sum == pytest.approx(-5 * math.log(0.6) - 2 * math.log(0.2))
    assert evaluation.loss == evaluation.loss_sum / 7


def test_agrees_with_scikit_learn_on_many_classes():
    labels, probabilities = make_predictions(2000, 37)
    evaluation = Evaluation.from_probabilities(labels, probabilities)
    reference = confusion_matrix(labels, probabilities.argmax(1), labels=range(37))
    assert (evaluation.confusion == reference).all()
    exact = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    assert evaluation.loss == pytest.approx(log_loss(labels, exact, labels=range(37)), abs=1e-6)


def test_the_order_of_the_examples_changes_nothing():
    labels, probabilities = make_predictions(5000, 10)
    one = Evaluation.from_probabilities(labels, probabilities)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(5000)
        other = Evaluation.from_probabilities(labels[order], probabilities[order])
        assert other.to_json() == one.to_json()
        assert other.loss_sum == one.loss_sum  # to the last digit


@given(st.integers(1, 20_000), st.data())
def test_interval_is_wilsons(total, data):
    correct = data.draw(st.integers(0, total))
    confusion = np.array([[correct, total - correct], [0, 0]])
    low, high = Evaluation(confusion, 0.0).interval_95
    reference = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= low <= correct / total <= high <= 1


def test_json_has_exactly_the_agreed_keys_and_integer_counts():
    evaluation = Evaluation.from_probabilities(*make_predictions(50, 4))
    written = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    keys = ["correct", "total", "accuracy", "loss", "interval_95", "confusion"]
    assert list(written) == keys
    assert type(written["correct"]) is type(written["total"]) is int
    assert {type(cell) for row in written["confusion"] for cell in row} == {int}
    assert written["accuracy"] == written["correct"] / written["total"]
    assert len(written["interval_95"]) == 2


def test_a_certain_mistake_costs_a_finite_loss_and_a_certain_hit_none():
    probabilities = np.array([[1, 0], [1, 0]], np.float32)
    assert losses(np.array([0, 1]), probabilities).tolist() == pytest.approx([0, 126 * math.log(2)])


def test_probabilities_a_shade_over_one_do_not_earn_a_negative_loss():
    assert losses(np.array([0]), np.array([[1.0005, 0.0]])).min() >= 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0]), np.array([0.5, 0.5]), r"expected shape \(N, K\), found \(2,\)"),
        (np.zeros(0, int), np.zeros((0, 3)), r"found \(0, 3\)"),
        (np.array([0, 1]), np.full((3, 2), 0.5), r"expected shape \(3,\), found \(2,\)"),
        (np.array([0.0]), np.array([[1.0, 0.0]]), "expected integers, found float64"),
        (np.array([0]), np.array([[1, 0]]), "expected floats, found int64"),
        (np.array([2]), np.array([[1.0, 0.0]]), r"expected 0\.\.1, found 2\.\.2"),
        (np.array([-1]), np.array([[1.0, 0.0]]), r"found -1\.\.-1"),
        (np.array([0]), np.array([[np.nan, 0.5]]), "found NaN or infinity"),
        (np.array([0]), np.array([[1.5, -0.5]]), r"expected 0\.\.1, found -0\.5"),
        (np.array([0, 0]), np.array([[0.5, 0.5], [0.5, 0.498]]), "found a sum of 0.998"),
    ],
)
def test_refuses(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        Evaluation.from_probabilities(labels, probabilities)


def test_rows_may_miss_one_by_a_thousandth():
    Evaluation.from_probabilities(np.array([0]), np.array([[0.5, 0.4995]]))


def test_worst_mistakes_come_worst_first_and_hits_never():
    labels = np.array([0, 0, 0, 0, 0, 0])
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # a hit
            [0.3, 0.4, 0.3],
            [0.1, 0.5, 0.4],
            [0.1, 0.9, 0.0],  # the truth as unlikely as above, the guess surer: worse
            [0.1, 0.5, 0.4],  # equal to index 2: stays behind it
            [0.0, 0.5, 0.5],
        ]
    )
    assert worst_mistakes(labels, probabilities, 9).tolist() == [5, 3, 2, 4, 1]
    assert worst_mistakes(labels, probabilities, 2).tolist() == [5, 3]
    assert worst_mistakes(labels, probabilities, 0).tolist() == []
    assert worst_mistakes(labels[:1], probabilities[:1], 5).tolist() == []
