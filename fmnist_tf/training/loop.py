"""The one training loop: a generator that yields an `Epoch` after each pass over the data.

In: a split classifier whose plan is applied, row sources, an optimizer. Out: epochs, and the
classifier's variables changed. Loss and accuracy are sums and integer counts over every example,
divided once. This module must not know disks, runs or trackers: whoever hears an epoch writes it.

The state after epoch e is a function of (seed, e) and the state before: order and dropout are
seeded anew at each epoch, and no iterator outlives it. Steps run through the current
`tf.distribute` strategy; dividing the batches among several replicas is not done yet.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data.batches import RowSource, make_batches, order_rows
from fmnist_tf.errors import FmnistError
from fmnist_tf.model.classifier import SplitClassifier, find_backbone
from fmnist_tf.model.preprocessing import N_PIXELS, SOURCE_SIDE
from fmnist_tf.training.features import FEATURE_DTYPE
from fmnist_tf.training.schedules import rate_factor

StepHook = Callable[[int, int], None]


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
        train: sums while training, with dropout, each batch before its step.
        val: sums over the validation rows after the pass.
        learning_rate: of the last step.
        seconds: wall time of pass and validation.
    """

    number: int
    train: Counts
    val: Counts
    learning_rate: float
    seconds: float


def build_optimizer(name: str) -> keras.optimizers.Optimizer:
    """Return a fresh optimizer; the loop sets its learning rate before each step."""
    if name == "sgd":
        return keras.optimizers.SGD(momentum=0.9, nesterov=True)
    return {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]()


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
        self._seed_states = list(_seed_states(split.body))
        # Traced once, at the first batch: any batch size fits.
        if compute_features is None and split.has_frozen_part:
            row = tf.TensorSpec((None, *split.prefix.output_shape[1:]), FEATURE_DTYPE)
        else:
            row = tf.TensorSpec((None, N_PIXELS), tf.uint8)
        label = tf.TensorSpec((None,), tf.int64)
        self._train_step = tf.function(
            self._train_step_eager, autograph=False, input_signature=[row, label]
        )
        self._eval_step = tf.function(
            self._eval_step_eager, autograph=False, input_signature=[row, label]
        )
        self._predict_step = tf.function(
            lambda x: tf.nn.softmax(self.split.logits(self._features(x), training=False)),
            autograph=False,
            input_signature=[row],
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
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        schedule: str,
        seed: int,
        on_step: StepHook = lambda step, steps: None,
    ) -> Iterator[Epoch]:
        """Train, and yield after each epoch.

        Args:
            source: rows of pixels or features, by number.
            labels: (N,) int64 in 0..K-1, by row number.
            train_rows: row numbers to train on.
            val_rows: row numbers to validate on.
            epochs: passes.
            batch_size: B; the last batch of a pass may be smaller.
            learning_rate: peak rate.
            schedule: see `schedules.rate_factor`.
            seed: of order and dropout.
            on_step: called after each step with the steps done in this epoch and their number.

        Raises:
            NonFiniteLossError: the loss is no longer finite.
        """
        steps = math.ceil(len(train_rows) / batch_size)
        for number in range(1, epochs + 1):
            started = time.perf_counter()
            self._seed_dropout(seed, number)
            counts = Counts()
            batches = make_batches(source, labels, order_rows(train_rows, seed, number), batch_size)
            for step, (x, y) in enumerate(batches):
                done = (number - 1) * steps + step
                rate = learning_rate * rate_factor(schedule, done, epochs * steps)
                self.optimizer.learning_rate.assign(rate)
                counts += _to_counts(self._train_step(x, y), len(y))
                if not math.isfinite(counts.loss_sum):
                    raise _non_finite(counts, number, f"step {step + 1} of {steps}", learning_rate)
                on_step(step + 1, steps)
            val = self.evaluate(source, labels, val_rows, batch_size)
            if not math.isfinite(val.loss_sum):
                # The last step's damage shows only here: a step's loss is of the weights before.
                raise _non_finite(val, number, f"validation, after step {steps}", learning_rate)
            yield Epoch(number, counts, val, rate, time.perf_counter() - started)

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
        elif not self.split.has_frozen_part:
            x = self.split.prefix(tf.reshape(x, (-1, SOURCE_SIDE, SOURCE_SIDE)), training=False)
        return tf.cast(x, self.split.body.inputs[0].dtype)

    def _train_step_eager(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            features = self._features(x)
            with tf.GradientTape() as tape:
                logits = self.split.logits(features, training=True)
                losses = _cross_entropy(y, logits)
                # The replicas' gradients are summed, so each divides by the whole batch.
                loss = tf.reduce_sum(losses) / tf.cast(
                    tf.shape(y)[0] * self.strategy.num_replicas_in_sync, tf.float32
                )
            self.optimizer.apply(tape.gradient(loss, self._variables), self._variables)
            return tf.reduce_sum(losses), _n_correct(y, logits)

        return self._reduced(self.strategy.run(step, (x, y)))

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
