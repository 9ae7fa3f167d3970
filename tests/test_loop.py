"""The loop counts every example, repeats itself exactly, and stops at NaN."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.model.classifier import build_classifier, split_classifier
from fmnist_tf.model.phases import apply_plan, digest_weights, plan_phase
from fmnist_tf.training.features import build_prefix_function
from fmnist_tf.training.loop import Counts, NonFiniteLossError, Trainer, build_optimizer

RNG = np.random.default_rng(0)
LABELS = np.arange(23) % 3
# The classes differ in brightness, so there is something to learn.
PIXELS = (LABELS[:, None] * 100 + RNG.integers(0, 50, (23, 784))).astype(np.uint8)


@pytest.fixture
def make_trainer(toy_classifier, toy_card):
    """Return a function that gives a fresh trainer in the frozen phase on raw pixels."""
    initial = toy_classifier.get_weights()

    def make(optimizer: str = "adam") -> Trainer:
        toy_classifier.set_weights(initial)
        apply_plan(toy_classifier, toy_card, plan_phase(toy_classifier, toy_card, "frozen"))
        split = split_classifier(toy_classifier, toy_card, "head")
        prefix = build_prefix_function(split.prefix, "float32")
        return Trainer(toy_classifier, split, build_optimizer(optimizer), compute_features=prefix)

    return make


def run(trainer: Trainer, **changes):
    settings = {
        "epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "schedule": "constant", "seed": 0,
    }  # fmt: skip
    rows = np.arange(17)
    return trainer.run_epochs(
        ArrayRows(PIXELS), LABELS, rows, np.arange(17, 23), **(settings | changes)
    )


def test_evaluation_counts_every_example_once(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    probabilities = toy_classifier.predict(PIXELS.reshape(-1, 28, 28), verbose=0)
    correct = int((probabilities.argmax(axis=1) == LABELS).sum())
    loss_sum = -np.log(probabilities[np.arange(23), LABELS]).sum()
    for batch_size in (3, 7, 23, 64):
        counts = trainer.evaluate(ArrayRows(PIXELS), LABELS, np.arange(23), batch_size)
        assert (counts.correct, counts.total) == (correct, 23)
        # The frozen part's output is rounded to 16 bits, stored or not.
        assert counts.loss_sum == pytest.approx(loss_sum, rel=1e-3)


def test_epoch_totals_are_the_split_sizes(make_trainer) -> None:
    epochs = list(run(make_trainer()))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert [(epoch.train.total, epoch.val.total) for epoch in epochs] == [(17, 6)] * 2


def test_same_seed_gives_the_same_bits_and_another_does_not(
    make_trainer, toy_classifier, toy_card
) -> None:
    def digests(seed: int) -> dict[str, str]:
        list(run(make_trainer(), seed=seed))
        return digest_weights(toy_classifier, toy_card)

    first = digests(0)
    assert digests(0) == first
    assert digests(1) != first


def test_dropout_is_a_function_of_seed_and_epoch(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    state = trainer.split.body.get_layer("dropout").seed_generator.state

    def seeded(seed: int, epoch: int) -> tuple[int, ...]:
        trainer._seed_dropout(seed, epoch)
        return tuple(state.numpy())

    assert seeded(0, 1) == seeded(0, 1)
    assert len({seeded(0, 1), seeded(0, 2), seeded(1, 1)}) == 3


def test_it_learns(toy_card) -> None:
    keras.utils.set_random_seed(0)
    classifier = build_classifier(
        toy_card.build(16), toy_card, head="flatten", units=32, dropout=0.0, n_classes=3, seed=0
    )
    apply_plan(classifier, toy_card, plan_phase(classifier, toy_card, "frozen"))
    split = split_classifier(classifier, toy_card, "head")
    prefix = build_prefix_function(split.prefix, "float32")
    trainer = Trainer(classifier, split, build_optimizer("adam"), compute_features=prefix)
    epochs = list(run(trainer, epochs=30, learning_rate=3e-3))
    assert epochs[-1].train.accuracy > 0.9
    assert epochs[-1].train.loss < 0.5 < epochs[0].train.loss


def test_schedule_reaches_the_optimizer(make_trainer) -> None:
    steps = 2 * 4  # two epochs of 17 examples by 5
    rates = [epoch.learning_rate for epoch in run(make_trainer(), schedule="cosine")]
    expected = [1e-3 * (1 + np.cos(np.pi * step / steps)) / 2 for step in (3, 7)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_moves_the_head(
    make_trainer, toy_classifier, toy_card, optimizer: str
) -> None:
    trainer = make_trainer(optimizer)
    before = digest_weights(toy_classifier, toy_card)
    next(run(trainer))
    after = digest_weights(toy_classifier, toy_card)
    assert before["hidden/kernel"] != after["hidden/kernel"]


def test_nan_stops_with_epoch_and_step(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    kernel = toy_classifier.get_layer("probabilities").kernel
    calls = []

    def poison(step: int, steps: int) -> None:
        calls.append((step, steps))
        if len(calls) == 6:
            kernel.assign(kernel * np.nan)

    with pytest.raises(NonFiniteLossError, match=r"nan at epoch 2, step 3 of 4.*--learning-rate"):
        list(run(trainer, on_step=poison))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 4), (2, 4)]


def test_nan_after_the_last_step_stops_too(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    kernel = toy_classifier.get_layer("probabilities").kernel

    def poison(step: int, steps: int) -> None:
        if step == steps:
            kernel.assign(kernel * np.nan)

    with pytest.raises(NonFiniteLossError, match="nan at epoch 1, validation, after step 4"):
        list(run(trainer, epochs=1, on_step=poison))


def test_predictions_are_the_classifiers(make_trainer, toy_classifier) -> None:
    found = make_trainer().predict(ArrayRows(PIXELS), np.arange(17, 23), 4)
    expected = toy_classifier.predict(PIXELS[17:].reshape(-1, 28, 28), verbose=0)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_counts_add_up() -> None:
    total = Counts(1.5, 2, 4) + Counts(0.5, 1, 4)
    assert (total.loss, total.accuracy, total.total) == (0.25, 0.375, 8)


def test_optimizer_is_fresh_for_each_phase() -> None:
    assert build_optimizer("adam") is not build_optimizer("adam")
    assert isinstance(build_optimizer("sgd"), keras.optimizers.SGD)
