"""The one training loop: a generator that yields an `Epoch` after each pass over the data.

In: a split classifier whose plan is applied, row sources, an optimizer. Out: epochs, and the
classifier's variables changed. Loss and accuracy are sums and integer counts over every example,
divided once. This module must not know disks, runs or trackers: whoever hears an epoch writes it.

The state after epoch e is a function of (seed, e) and the state before: order, views and dropout
are seeded anew at each epoch, augmentation at each step, and no iterator outlives an epoch. Steps
run through the current `tf.distribute` strategy; dividing the batches among several replicas is not
done yet.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data.batches import RowSource, make_batches, order_rows, pick_views
from fmnist_tf.errors import FmnistError
from fmnist_tf.model.classifier import SplitClassifier, find_backbone
from fmnist_tf.model.preprocessing import N_PIXELS, SOURCE_SIDE
from fmnist_tf.training.augmentation import augment
from fmnist_tf.training.features import FEATURE_DTYPE
from fmnist_tf.training.lr_finder import has_diverged
from fmnist_tf.training.optimizers import update_averages
from fmnist_tf.training.schedules import RatePlan, rate_at

StepHook = Callable[[int, int], None]
_LABEL = tf.TensorSpec((None,), tf.int64)
_NO_RATES = RatePlan("constant", peak=1.0, steps_per_epoch=1, epochs=1)


class NonFiniteLossError(FmnistError):
    """The loss became NaN or infinite; the message names epoch and step."""


@dataclass(frozen=True)
class Counts:
    """Sums over examples.

    Attributes:
        loss_sum: cross entropy in nats, summed over the examples.
        correct: examples whose most probable class is the label.
        total: examples.
    """

    loss_sum: float = 0.0
    correct: int = 0
    total: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.total + other.total,
        )

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats."""
        return self.loss_sum / self.total

    @property
    def accuracy(self) -> float:
        """Share of correct examples, 0..1."""
        return self.correct / self.total


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows did.

    Attributes:
        number: 1-based.
        train: sums while training, with dropout and augmentation, each batch before its step; the
            loss is what is minimised, with label smoothing and class weights. Of mixed images the
            label with the larger share counts.
        val: sums over the validation rows after the pass.
        learning_rate: of the last step.
        seconds: wall time of pass and validation.
    """

    number: int
    train: Counts
    val: Counts
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingPlan:
    """All that decides a run over given rows, but for the network and the optimizer.

    Attributes:
        rates: learning rate of every step; gives the number of epochs too.
        batch_size: B; the last batch of a pass may be smaller.
        seed: of order, views, augmentation and dropout.
        n_views: how many views of each row the source stacks; see `batches.StackedRows`.
        augment: kinds of `augmentation.augment`, on raw pixels.
        background: grey level that augmentation fills with, 0..255.
        label_smoothing: share of the target spread evenly over the classes, 0..1 (Szegedy et al.
            2016, section 7).
        class_weights: (K,) factor on the loss of each class, or None.
        ema_decay: per step, of the moving average of weights and BatchNorm statistics that
            validates and is kept; 0 keeps the weights themselves.
    """

    rates: RatePlan
    batch_size: int
    seed: int
    n_views: int = 1
    augment: tuple[str, ...] = ()
    background: int = 0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ema_decay: float = 0.0


class Trainer:
    """The compiled training and evaluation steps of one split classifier.

    Args:
        classifier: the whole network; its plan is applied.
        split: the same network, cut.
        optimizer: fresh.
        compute_features: raw pixel rows (B, 784) -> the frozen part's output, where the sources
            hold pixels. None where they hold that output, or where there is no frozen part and
            they hold pixels.
    """

    def __init__(
        self,
        classifier: keras.Sequential,
        split: SplitClassifier,
        optimizer: keras.optimizers.Optimizer,
        *,
        compute_features: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self.classifier = classifier
        self.split = split
        self.optimizer = optimizer
        self.strategy = tf.distribute.get_strategy()
        self._compute_features = compute_features
        self._variables = classifier.trainable_variables
        optimizer.build(self._variables)
        self._train_steps: dict[TrainingPlan, Callable[..., tuple[tf.Tensor, tf.Tensor]]] = {}
        self._seed_states = list(_seed_states(split.body))
        self._row = tf.TensorSpec((None, N_PIXELS), tf.uint8)
        if compute_features is None and split.has_frozen_layers:
            self._row = tf.TensorSpec((None, *split.row_shape), FEATURE_DTYPE)
        self._eval_step = tf.function(
            self._eval_step_eager, autograph=False, input_signature=[self._row, _LABEL]
        )
        self._predict_step = tf.function(
            lambda x: tf.nn.softmax(self.split.logits(self._features(x), training=False)),
            autograph=False,
            input_signature=[self._row],
        )

    def evaluate(
        self, source: RowSource, labels: np.ndarray, rows: np.ndarray, batch_size: int
    ) -> Counts:
        """Return the sums over `rows`, every one of them once."""
        counts = Counts()
        for x, y in make_batches(source, labels, rows, batch_size):
            counts += _to_counts(self._eval_step(x, y), len(y))
        return counts

    def predict(self, source: RowSource, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the probabilities of `rows`, (len(rows), K) float32."""
        labels = np.zeros(int(rows.max()) + 1, np.int64)
        batches = make_batches(source, labels, rows, batch_size)
        return np.concatenate([self._predict_step(x).numpy() for x, _ in batches])

    def run_epochs(
        self,
        source: RowSource,
        labels: np.ndarray,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        plan: TrainingPlan,
        *,
        on_step: StepHook = lambda step, steps: None,
    ) -> Iterator[Epoch]:
        """Train, and yield after each epoch.

        With `plan.ema_decay` the network holds the averaged weights while an epoch is heard,
        and its own again while it trains. BatchNorm's statistics are averaged with them: those of
        the network's own weights would not fit.

        Args:
            source: rows of pixels or features, by number; `plan.n_views` views of N rows.
            labels: (N,) int64 in 0..K-1, by row number.
            train_rows: row numbers below N to train on.
            val_rows: row numbers below N to validate on.
            plan: decides the rest.
            on_step: called after each step with the steps done in this epoch and their number.

        Raises:
            NonFiniteLossError: the loss is no longer finite.
        """
        steps, peak = plan.rates.steps_per_epoch, plan.rates.peak
        n_rows, labels = len(labels), np.tile(labels, plan.n_views)
        moving = self._moving_variables if plan.ema_decay else []
        averages = [tf.Variable(variable) for variable in moving]
        train_step = self._find_train_step(plan, averages)
        val_losses: list[float] = []
        for number in range(1, plan.rates.epochs + 1):
            started = time.perf_counter()
            self._seed_dropout(plan.seed, number)
            counts = Counts()
            order = order_rows(train_rows, plan.seed, number)
            order = pick_views(order, n_rows, plan.n_views, plan.seed, number)
            for step, (x, y) in enumerate(make_batches(source, labels, order, plan.batch_size)):
                done = (number - 1) * steps + step
                rate = rate_at(plan.rates, done, val_losses)
                self.optimizer.learning_rate.assign(rate)
                sums = train_step(x, y, tf.constant([plan.seed, done], tf.int32))
                counts += _to_counts(sums, len(y))
                if not math.isfinite(counts.loss_sum):
                    raise _non_finite(counts, number, f"step {step + 1} of {steps}", peak)
                on_step(step + 1, steps)
            _swap(averages, moving)
            val = self.evaluate(source, labels, val_rows, plan.batch_size)
            if not math.isfinite(val.loss_sum):
                # The last step's damage shows only here: a step's loss is of the weights before.
                raise _non_finite(val, number, f"validation, after step {steps}", peak)
            val_losses.append(val.loss)
            yield Epoch(number, counts, val, rate, time.perf_counter() - started)
            _swap(averages, moving)

    def run_lr_finder(
        self,
        source: RowSource,
        labels: np.ndarray,
        train_rows: np.ndarray,
        plan: TrainingPlan,
        rates: Sequence[float],
    ) -> list[float]:
        """Take a step at each rate in turn, and put network and optimizer back.

        Args:
            source: as in `run_epochs`; only its first view is used.
            labels: as in `run_epochs`.
            train_rows: as in `run_epochs`; gone through again where they do not suffice.
            plan: gives batch size, seed and what shapes the loss.
            rates: rising.

        Returns:
            The loss of each step's batch, before the step; fewer than `rates` where it exploded.
        """
        kept = [*self._moving_variables, *self.optimizer.variables]
        values = [variable.numpy() for variable in kept]
        train_step = self._find_train_step(plan, [])
        self._seed_dropout(plan.seed, 0)
        order = order_rows(train_rows, plan.seed, 0)
        order = np.resize(order, len(rates) * plan.batch_size)
        losses: list[float] = []
        for step, (x, y) in enumerate(make_batches(source, labels, order, plan.batch_size)):
            self.optimizer.learning_rate.assign(rates[step])
            counts = _to_counts(train_step(x, y, tf.constant([plan.seed, step], tf.int32)), len(y))
            if has_diverged([*losses, counts.loss]):
                break
            losses.append(counts.loss)
        for variable, value in zip(kept, values, strict=True):
            variable.assign(value)
        return losses

    def snapshot(self) -> list[np.ndarray]:
        """Return copies of all that training changes in the network."""
        return [variable.numpy() for variable in self._moving_variables]

    def restore(self, snapshot: list[np.ndarray]) -> None:
        """Put a snapshot back."""
        for variable, value in zip(self._moving_variables, snapshot, strict=True):
            variable.assign(value)

    @property
    def _moving_variables(self) -> list[Any]:
        statistics = [
            variable
            for layer in find_backbone(self.classifier).layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        return [*self._variables, *statistics]

    def _seed_dropout(self, seed: int, epoch: int) -> None:
        """Make this epoch's dropout a function of (seed, epoch) alone."""
        for number, state in enumerate(self._seed_states):
            words = np.random.SeedSequence([seed, epoch, number]).generate_state(2)
            state.assign(words.astype(np.uint32))

    def _features(self, x: tf.Tensor) -> tf.Tensor:
        if self._compute_features is not None:
            x = self._compute_features(x)
        elif not self.split.has_frozen_layers:
            x = self.split.prefix(tf.reshape(x, (-1, SOURCE_SIDE, SOURCE_SIDE)), training=False)
        return tf.cast(x, self.split.body.inputs[0].dtype)

    def _find_train_step(
        self, plan: TrainingPlan, averages: list[tf.Variable]
    ) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        """Return the step for this plan, the same one where only rates, order or length differ."""
        if averages:
            return self._build_train_step(plan, averages)
        alike = replace(plan, rates=_NO_RATES, batch_size=1, seed=0, ema_decay=0.0)
        if alike not in self._train_steps:
            self._train_steps[alike] = self._build_train_step(alike, [])
        return self._train_steps[alike]

    def _build_train_step(
        self, plan: TrainingPlan, averages: list[tf.Variable]
    ) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        """Return one step of the plan: rows, labels and (seed, step) -> sums."""
        n_classes = self.split.output.units
        class_weights = tf.constant(plan.class_weights or [1.0] * n_classes, tf.float32)

        def step(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            targets = tf.one_hot(y, n_classes)
            if plan.augment:  # of pixels; what is stored is past changing
                x, targets = augment(x, targets, seed, plan.augment, plan.background)
            y = tf.argmax(targets, axis=-1)
            weights = tf.linalg.matvec(targets, class_weights)
            smooth = plan.label_smoothing
            targets = targets * (1 - smooth) + smooth / n_classes
            features = self._features(x)
            with tf.GradientTape() as tape:
                logits = self.split.logits(features, training=True)
                losses = weights * tf.nn.softmax_cross_entropy_with_logits(targets, logits)
                # The replicas' gradients are summed, so each divides by the whole batch.
                loss = tf.reduce_sum(losses) / tf.cast(
                    tf.shape(y)[0] * self.strategy.num_replicas_in_sync, tf.float32
                )
            self.optimizer.apply(tape.gradient(loss, self._variables), self._variables)
            return tf.reduce_sum(losses), _n_correct(y, logits)

        def step_and_average(
            x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            sums = self._reduced(self.strategy.run(step, (x, y, seed)))
            if averages:
                update_averages(averages, self._moving_variables, plan.ema_decay, seed[1])
            return sums

        # Traced once, at the first batch: any batch size fits.
        return tf.function(
            step_and_average,
            autograph=False,
            input_signature=[self._row, _LABEL, tf.TensorSpec((2,), tf.int32)],
        )

    def _eval_step_eager(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = self.split.logits(self._features(x), training=False)
            return tf.reduce_sum(_cross_entropy(y, logits)), _n_correct(y, logits)

        return self._reduced(self.strategy.run(step, (x, y)))

    def _reduced(self, per_replica: tuple[Any, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, correct = per_replica
        return (
            self.strategy.reduce(tf.distribute.ReduceOp.SUM, loss_sum, axis=None),
            self.strategy.reduce(tf.distribute.ReduceOp.SUM, correct, axis=None),
        )


def _swap(averages: list[tf.Variable], variables: list[Any]) -> None:
    """Exchange the values of each average and its variable."""
    for average, variable in zip(averages, variables, strict=True):
        value = variable.numpy()
        variable.assign(average)
        average.assign(value)


def _seed_states(model: keras.Model) -> Iterator[tf.Variable]:
    """Yield the state of every random generator in `model`, nested ones too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _seed_states(layer)
        elif hasattr(layer, "seed_generator"):
            yield layer.seed_generator.state


def _non_finite(counts: Counts, epoch: int, where: str, rate: float) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"the loss is {counts.loss_sum} at epoch {epoch}, {where}: expected a finite number. Try a "
        f"lower --learning-rate than {rate:g}"
    )


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def _n_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(tf.argmax(logits, axis=-1) == labels)


def _to_counts(sums: tuple[tf.Tensor, tf.Tensor], total: int) -> Counts:
    loss_sum, correct = sums
    return Counts(float(loss_sum), int(correct), total)
