"""The loop counts every example, is reproducible, and stops at NaN."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data.batches import ArrayRows, StackedRows, flip_rows, order_rows
from fmnist_tf.model.classifier import build_classifier, find_backbone, split_classifier
from fmnist_tf.model.phases import apply_plan, digest_weights, plan_phase
from fmnist_tf.training.features import build_feature_function
from fmnist_tf.training.loop import NonFiniteLossError, Trainer
from fmnist_tf.training.lr_finder import plan_rates
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import Counts, Position, TrainingPlan
from fmnist_tf.training.schedules import RatePlan

RNG = np.random.default_rng(0)
LABELS = np.arange(23) % 3
# The classes differ in brightness, so there is something to learn.
PIXELS = (LABELS[:, None] * 100 + RNG.integers(0, 50, (23, 784))).astype(np.uint8)


@pytest.fixture
def make_trainer(toy_classifier, toy_spec):
    """Return a function that builds a trainer for the frozen phase on raw pixels."""
    initial = toy_classifier.get_weights()

    def make(optimizer: str = "adam") -> Trainer:
        toy_classifier.set_weights(initial)
        apply_plan(toy_classifier, plan_phase(toy_classifier, "frozen"))
        split = split_classifier(toy_classifier, "head")
        compute = build_feature_function(split.feature_extractor, "float32")
        return Trainer(toy_classifier, split, build_optimizer(optimizer), compute_features=compute)

    return make


def plan(
    *, epochs: int = 2, rate: float = 1e-3, schedule: str = "constant", seed: int = 0, **options
) -> TrainingPlan:
    """Return a plan for 17 training rows in batches of 5."""
    return TrainingPlan(RatePlan(schedule, rate, 4, epochs), 5, seed, **options)


def run(trainer: Trainer, *, source=None, start=None, on_step=lambda at: None, **changes):
    source = source or ArrayRows(PIXELS)
    rows, val_rows = np.arange(17), np.arange(17, 23)
    options = {"start": start or Position(), "on_step": on_step}
    return trainer.run_epochs(source, LABELS, rows, val_rows, plan(**changes), **options)


def test_evaluation_counts_every_example_once(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    probabilities = toy_classifier.predict(PIXELS.reshape(-1, 28, 28), verbose=0)
    correct = int((probabilities.argmax(axis=1) == LABELS).sum())
    loss_sum = -np.log(probabilities[np.arange(23), LABELS]).sum()
    for batch_size in (3, 7, 23, 64):
        counts = trainer.evaluate(ArrayRows(PIXELS), LABELS, np.arange(23), batch_size)
        assert (counts.correct, counts.total) == (correct, 23)
        # Backbone features are rounded to 16 bits.
        assert counts.loss_sum == pytest.approx(loss_sum, rel=1e-3)


def test_seed_views_and_augmentation_decide_the_weights(make_trainer, toy_classifier) -> None:
    def train(**changes) -> tuple[dict[str, str], list[tuple[int, ...]]]:
        """Return digests of the weights and dropout's state after each epoch's first step."""
        trainer = make_trainer()
        state = trainer.split.trained_layers.get_layer("dropout").seed_generator.state
        states = []
        on_step = lambda at: at.step == 1 and states.append(tuple(state.numpy()))  # noqa: E731
        list(run(trainer, on_step=on_step, **changes))
        return digest_weights(toy_classifier), states

    views = StackedRows((ArrayRows(PIXELS), flip_rows(ArrayRows(PIXELS))))
    options = {"augment": ("erasing", "mixup"), "n_views": 2, "source": views}
    first, again, plain, other = (train(**c) for c in (options, options, {}, {"seed": 1}))
    assert first == again
    assert first[0] != plain[0] != other[0]
    assert first[1] == plain[1]
    assert len({*plain[1], *other[1]}) == 4


def test_training_continues_after_any_step(make_trainer, toy_classifier) -> None:
    options = {"epochs": 3, "ema_decay": 0.9, "augment": ("erasing",)}
    saved: dict[tuple[int, int], tuple[Position, dict[str, list[np.ndarray]]]] = {}

    def save(at: Position) -> None:
        state = trainer.state(plan(**options))
        saved[at.epoch, at.step] = (
            at,
            {name: [v.numpy() for v in part] for name, part in state.items()},
        )

    def continues(at: Position, values: dict[str, list[np.ndarray]]) -> bool:
        """Return whether it ends like the undisturbed training."""
        trainer = make_trainer()
        for name, part in trainer.state(plan(**options)).items():
            for variable, value in zip(part, values[name], strict=True):
                variable.assign(value)
        rest = [replace(e, seconds=0) for e in run(trainer, start=at, **options)]
        return (rest, digest_weights(toy_classifier)) == (epochs[at.epoch - 1 :], digests)

    trainer = make_trainer()
    epochs = [replace(e, seconds=0) for e in run(trainer, on_step=save, **options)]
    digests = digest_weights(toy_classifier)
    for place in ((1, 2), (2, 0), (2, 1), (2, 4)):
        assert continues(*saved[place]), place
    # Without the offset some rows come twice.
    at, values = saved[2, 1]
    assert not continues(replace(at, step=0, counts=Counts()), values)


def test_it_learns(toy_spec) -> None:
    keras.utils.set_random_seed(0)
    classifier = build_classifier(
        toy_spec.build(16),
        toy_spec.value_range,
        head="flatten",
        units=32,
        dropout=0.0,
        n_classes=3,
        seed=0,
    )
    apply_plan(classifier, plan_phase(classifier, "frozen"))
    split = split_classifier(classifier, "head")
    compute = build_feature_function(split.feature_extractor, "float32")
    trainer = Trainer(classifier, split, build_optimizer("adam"), compute_features=compute)
    epochs = list(run(trainer, epochs=12, rate=1e-2))
    assert epochs[-1].train.accuracy > 0.9
    assert epochs[-1].train.loss < 0.5 < epochs[0].train.loss


def test_an_epoch_counts_its_split_and_ends_with_the_rate_of_the_schedule(make_trainer) -> None:
    epochs = list(run(make_trainer(), schedule="cosine"))
    totals = [(epoch.number, epoch.train.total, epoch.val.total) for epoch in epochs]
    assert totals == [(1, 17, 6), (2, 17, 6)]
    steps = 2 * 4  # two epochs of 17 examples by 5
    expected = [1e-3 * (1 + np.cos(np.pi * step / steps)) / 2 for step in (3, 7)]
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx(expected)


def test_plateau_uses_the_validation_losses(make_trainer) -> None:
    epochs = list(run(make_trainer(), epochs=6, rate=1e-7, schedule="plateau"))
    assert epochs[0].learning_rate == pytest.approx(1e-7)
    assert epochs[-1].learning_rate < 1e-8  # so low a rate gains nothing after the first epoch


def heads_after(trainer: Trainer, classifier: keras.Model, **changes) -> np.ndarray:
    """Return the head's last kernel after two epochs."""
    list(run(trainer, **changes))
    return classifier.get_layer("probabilities").kernel.numpy()


def test_smoothed_and_weighted_loss_by_hand(make_trainer, toy_classifier) -> None:
    probabilities = toy_classifier.predict(PIXELS[:17].reshape(-1, 28, 28), verbose=0)
    weights = np.array([1.0, 0.5, 4.0])
    targets = np.full((17, 3), 0.1 / 3)
    targets[np.arange(17), LABELS[:17]] += 0.9
    expected = (weights[LABELS[:17]] * -(targets * np.log(probabilities)).sum(axis=1)).mean()
    toy_classifier.get_layer("dropout").rate = 0.0
    options = {"label_smoothing": 0.1, "class_weights": tuple(weights), "rate": 1e-9}
    (epoch,) = run(make_trainer(), epochs=1, **options)
    assert epoch.train.loss == pytest.approx(expected, rel=1e-3)


def test_averaged_weights_validate_and_are_in_snapshots(make_trainer, toy_classifier) -> None:
    own = heads_after(make_trainer(), toy_classifier)
    trainer = make_trainer()
    epochs = run(trainer, ema_decay=0.9)
    next(epochs)
    snapshot = trainer.snapshot()
    rows = np.arange(17, 23)
    averaged = trainer.evaluate(ArrayRows(PIXELS), LABELS, rows, 5)
    second = next(epochs)
    kernel = toy_classifier.get_layer("probabilities").kernel.numpy()
    assert (kernel != own).any()  # the average trails behind
    assert trainer.evaluate(ArrayRows(PIXELS), LABELS, rows, 5) == second.val
    assert list(epochs) == []
    # Averaging does not change the training.
    np.testing.assert_array_equal(toy_classifier.get_layer("probabilities").kernel, own)
    trainer.restore(snapshot)
    assert trainer.evaluate(ArrayRows(PIXELS), LABELS, rows, 5) == averaged


def test_statistics_are_averaged_with_the_weights(toy_classifier, toy_spec) -> None:
    plan_of_all = plan_phase(toy_classifier, "scratch")
    apply_plan(toy_classifier, plan_of_all)
    split = split_classifier(toy_classifier, plan_of_all.lowest)
    trainer = Trainer(toy_classifier, split, build_optimizer("sgd"))
    variance = find_backbone(toy_classifier).get_layer("conv2_bn").moving_variance
    average, own = variance.numpy(), []

    def follow(at: Position) -> None:
        nonlocal average
        if at.step == 0:
            return
        own.append(variance.numpy())
        fraction = 1 - min(0.9, at.step / (9 + at.step))
        average = average + fraction * (own[-1] - average)

    epochs = run(trainer, epochs=1, ema_decay=0.9, on_step=follow)
    next(epochs)
    np.testing.assert_allclose(variance, average, rtol=1e-5)
    assert (abs(variance.numpy() - own[-1]) > 1e-4).any()
    assert list(epochs) == []
    np.testing.assert_array_equal(variance, own[-1])


def test_nan_stops_with_epoch_and_step(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    kernel = toy_classifier.get_layer("probabilities").kernel
    calls = []

    def poison(at: Position) -> None:
        calls.append((at.epoch, at.step))
        if calls[-1] == (2, 2):
            kernel.assign(kernel * np.nan)

    with pytest.raises(NonFiniteLossError, match="nan at epoch 2, step 3 of 4"):
        list(run(trainer, on_step=poison))
    assert calls == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (2, 2)]


def test_nan_after_the_last_step_stops_in_validation(make_trainer, toy_classifier) -> None:
    trainer = make_trainer()
    kernel = toy_classifier.get_layer("probabilities").kernel

    def poison(at: Position) -> None:
        if at.step == 4:
            kernel.assign(kernel * np.nan)

    with pytest.raises(NonFiniteLossError, match="nan at epoch 1, validation"):
        list(run(trainer, epochs=1, on_step=poison))


def test_predictions_are_those_of_the_classifier(make_trainer, toy_classifier) -> None:
    found = make_trainer().predict(ArrayRows(PIXELS), np.arange(17, 23), 4)
    expected = toy_classifier.predict(PIXELS[17:].reshape(-1, 28, 28), verbose=0)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_a_step_follows_the_mean_gradient(make_trainer, toy_classifier) -> None:
    toy_classifier.get_layer("dropout").rate = 0.0
    start = toy_classifier.get_layer("probabilities").kernel.numpy()

    def moved(rows: np.ndarray) -> np.ndarray:
        one_step = TrainingPlan(RatePlan("constant", 1e-3, 1, 1), len(rows), seed=0)
        trainer = make_trainer("sgd")
        next(trainer.run_epochs(ArrayRows(PIXELS), LABELS, rows, np.arange(17, 23), one_step))
        return toy_classifier.get_layer("probabilities").kernel.numpy() - start

    once = moved(np.arange(6))
    assert np.abs(once).max() > 1e-4
    twice = moved(np.tile(np.arange(6), 2))
    np.testing.assert_allclose(twice, once, rtol=1e-3, atol=1e-6)


def test_every_epoch_has_its_own_order_views_and_augmentation(make_trainer, monkeypatch) -> None:
    asked, ordered, augmented = [], [], []

    class Watched(StackedRows):
        def take(self, rows: np.ndarray) -> np.ndarray:
            asked.extend(rows.tolist())
            return super().take(rows)

    def note_augment(x, targets, seed, kinds, background):
        def note(seed: np.ndarray) -> np.float32:
            augmented.append((*seed.tolist(), kinds, background))
            return np.float32(0)

        zero = tf.ensure_shape(tf.numpy_function(note, [seed], tf.float32), ())
        return x, targets + zero

    def order(rows, *given):
        ordered.append(given)
        return order_rows(rows, *given)

    monkeypatch.setattr("fmnist_tf.training.loop.augment", note_augment)
    monkeypatch.setattr("fmnist_tf.training.loop.order_rows", order)
    views = Watched((ArrayRows(PIXELS), flip_rows(ArrayRows(PIXELS))))
    changes = {"n_views": 2, "augment": ("shift-crop",), "background": 7}
    list(run(make_trainer(), source=views, **changes))
    # Batches of an epoch are prefetched in any order, then those of val.
    epochs = np.reshape(asked, (2, 23))[:, :17]
    first, second = (dict(zip(x % 23, x // 23, strict=True)) for x in epochs)
    assert all(first[row] != second[row] for row in range(17))
    assert augmented == [(0, step, ("shift-crop",), 7) for step in range(8)]
    assert ordered == [(0, 1), (0, 2)]


def test_lr_finder_stops_where_the_loss_diverges(make_trainer) -> None:
    rates = plan_rates(1e-5, 1e30, 40)
    trainer = make_trainer("sgd")
    losses = trainer.run_lr_finder(ArrayRows(PIXELS), LABELS, np.arange(17), plan(), rates)
    assert len(losses) < 40
    assert np.isfinite(losses).all()


def test_lr_finder_restores_everything(make_trainer, toy_classifier, toy_spec) -> None:
    trainer = make_trainer()
    before = digest_weights(toy_classifier)
    rates = plan_rates(1e-5, 10.0, 12)
    losses = trainer.run_lr_finder(ArrayRows(PIXELS), LABELS, np.arange(17), plan(), rates)
    assert 2 <= len(losses) <= 12
    assert np.isfinite(losses).all()
    assert digest_weights(toy_classifier) == before
    # The optimizer's moments and step count are restored too.
    after_test = heads_after(trainer, toy_classifier)
    np.testing.assert_array_equal(heads_after(make_trainer(), toy_classifier), after_test)
