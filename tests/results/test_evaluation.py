"""Counts and metrics of an Evaluation against scikit-learn and cases computed by hand."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss

from fmnist_tf.results.evaluation import Evaluation, losses, worst_mistakes


def make_predictions(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, k, n), random.dirichlet(np.ones(k), n).astype(np.float32)


def test_seven_examples_by_hand():
    labels = np.array([0, 1, 1, 2, 2, 2, 2])
    probabilities = np.full((7, 3), 0.2)
    probabilities[np.arange(7), [0, 0, 1, 2, 2, 1, 2]] = 0.6
    evaluation = Evaluation.from_probabilities(labels, probabilities)
    assert not evaluation.confusion.flags.writeable
    assert json.loads(json.dumps(evaluation.to_json())) == {
        "correct": 5,
        "total": 7,
        "accuracy": 5 / 7,
        "loss": pytest.approx((-5 * math.log(0.6) - 2 * math.log(0.2)) / 7),
        "interval_95": pytest.approx([0.3589, 0.9178], abs=1e-4),
        "confusion": [[1, 0, 0], [1, 1, 0], [0, 1, 3]],
    }


def test_it_agrees_with_scikit_learn_on_many_classes():
    labels, probabilities = make_predictions(2000, 37)
    evaluation = Evaluation.from_probabilities(labels, probabilities)
    reference = confusion_matrix(labels, probabilities.argmax(1), labels=range(37))
    assert (evaluation.confusion == reference).all()
    exact = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    assert evaluation.loss == pytest.approx(log_loss(labels, exact, labels=range(37)), abs=1e-6)


def test_the_order_of_the_examples_does_not_change_the_last_digit():
    labels, probabilities = make_predictions(5000, 10)
    one = Evaluation.from_probabilities(labels, probabilities)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(5000)
        other = Evaluation.from_probabilities(labels[order], probabilities[order])
        assert other.to_json() == one.to_json()


def test_what_is_read_back_has_the_same_digits():
    entry = Evaluation.from_probabilities(*make_predictions(29, 3)).to_json()
    assert Evaluation.from_json(entry).to_json() == entry


def test_losses_are_finite_and_not_negative():
    probabilities = np.array([[1, 0], [1, 0], [1.0005, 0]], np.float32)
    expected = [0, 126 * math.log(2), 0]
    assert losses(np.array([0, 1, 0]), probabilities).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "probabilities", "found"),
    [
        (np.array([0]), np.array([0.5, 0.5]), r"\(2,\)"),
        (np.zeros(0, int), np.zeros((0, 3)), r"\(0, 3\)"),
        (np.array([0, 1]), np.full((3, 2), 0.5), r"\(2,\)"),
        (np.array([0.0]), np.array([[1.0, 0.0]]), "float64"),
        (np.array([0]), np.array([[1, 0]]), "int64"),
        (np.array([2]), np.array([[1.0, 0.0]]), r"2\.\.2"),
        (np.array([-1]), np.array([[1.0, 0.0]]), r"-1\.\.-1"),
        (np.array([0]), np.array([[np.nan, 0.5]]), "nan"),
        (np.array([0]), np.array([[1.5, -0.5]]), r"-0\.5"),
        (np.array([0, 0]), np.array([[0.5, 0.5], [0.5, 0.498]]), "0.998"),
    ],
)
def test_what_are_no_predictions_is_refused(labels, probabilities, found):
    with pytest.raises(ValueError, match=found):
        Evaluation.from_probabilities(labels, probabilities)
    Evaluation.from_probabilities(np.array([0]), np.array([[0.5, 0.4995]]))  # float16 sums


def test_worst_mistakes_come_worst_first():
    labels = np.zeros(6, int)
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # correct
            [0.3, 0.4, 0.3],
            [0.1, 0.5, 0.4],
            [0.1, 0.9, 0.0],  # the label as improbable as above, the prediction more probable
            [0.1, 0.5, 0.4],  # equal to index 2: stays behind it
            [0.0, 0.5, 0.5],
        ]
    )
    assert worst_mistakes(labels, probabilities, 9).tolist() == [5, 3, 2, 4, 1]
    assert worst_mistakes(labels, probabilities, 2).tolist() == [5, 3]
    assert worst_mistakes(labels, probabilities, 0).tolist() == []
    assert worst_mistakes(labels[:1], probabilities[:1], 5).tolist() == []
