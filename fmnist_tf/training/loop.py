"""The training loop: a generator that yields an `Epoch` after each pass over the data.

Loss and accuracy are sums and counts over every example, divided once. The state after epoch e is a
function of (seed, e) and the state before: order, views and dropout are seeded in each epoch,
augmentation in each step, and no iterator outlives an epoch. Within an epoch the state is that of
`Trainer.state` and a `Position`, so training can continue after any step.

Several workers and replicas share each batch (see `sharing`). The gradient is that of the whole
batch, BatchNorm uses the whole batch, and sums are those of all workers, so that a run depends on
the number of replicas only by rounding, and by the streams of dropout and augmentation.

Shape letters: B batch, N rows, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.batches import RowSource, make_batches, order_rows, pick_views
from fmnist_tf.errors import FmnistError
from fmnist_tf.model.classifier import (
    SplitClassifier,
    find_backbone,
    find_standardization,
    use_statistics,
)
from fmnist_tf.system import signals
from fmnist_tf.training import cluster
from fmnist_tf.training.augmentation import augment
from fmnist_tf.training.feature_store import FEATURE_DTYPE
from fmnist_tf.training.lr_finder import has_diverged
from fmnist_tf.training.optimizers import update_averages
from fmnist_tf.training.records import Counts, Epoch, Position, TrainingPlan
from fmnist_tf.training.schedules import RatePlan, rate_at
from fmnist_tf.training.sharing import ABOUT, Sharing, add_up, describe_batch, stop_together

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""This worker's rows, labels (B,) and `describe_batch` -> (3,) float64 of the whole batch: cross
entropy in nats, correct predictions, and how many replicas are to stop; changes the network."""
_LABELS = tf.TensorSpec((None,), tf.int64)
_NO_RATES = RatePlan("constant", peak=1.0, steps_per_epoch=1, epochs=1)
_BEGINNING = Position()


class NonFiniteLossError(FmnistError):
    """The loss became NaN or infinite; the message names epoch and step."""


class Trainer:
    """Trains and evaluates one split classifier.

    Args:
        classifier: the whole network; its phase's plan is applied.
        split: its two parts.
        optimizer: not built yet.
        compute_features: raw pixel rows (B, 784) -> backbone features, if there are frozen layers
            and the row sources give pixels; else None.
    """

    def __init__(
        self,
        classifier: keras.Model,
        split: SplitClassifier,
        optimizer: keras.optimizers.Optimizer,
        *,
        compute_features: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self.classifier, self.split, self.optimizer = classifier, split, optimizer
        self.cluster, self.strategy = cluster.current(), tf.distribute.get_strategy()
        self._sharing = Sharing(self.cluster)
        self._compute_features = compute_features
        self._variables = classifier.trainable_variables
        self._changing_variables = changing_variables(classifier)
        self._averages: list[tf.Variable] = []
        optimizer.build(self._variables)
        self._train_steps: dict[TrainingPlan, Step] = {}
        self._seed_states = list(_seed_states(split.trained_layers))
        self._rows = tf.TensorSpec((None, N_PIXELS), tf.uint8)
        if compute_features is None and split.has_frozen_layers:
            self._rows = tf.TensorSpec((None, *split.feature_shape), FEATURE_DTYPE)
        self._eval_step = tf.function(
            self._run_eval_step, autograph=False, input_signature=[self._rows, _LABELS, ABOUT]
        )
        self._predict_step = tf.function(
            lambda x: tf.nn.softmax(self.split.logits(self._features(x), training=False)),
            autograph=False,
            input_signature=[self._rows],
        )

    def evaluate(
        self, source: RowSource, labels: np.ndarray, rows: np.ndarray, batch_size: int
    ) -> Counts:
        """Return the sums over `rows`, each row counted once.

        Raises:
            StoppedError: a signal stops this process.
        """
        sums = np.zeros(3)
        for size, x, y in self._sharing.read(source, labels, rows, batch_size):
            signals.check()
            sums += self._eval_step(x, y, describe_batch(0, 0, size)).numpy()
        stopped = self._sharing.take_signal()
        sums[2] = stopped is not None
        loss_sum, correct, n_stopped = self.cluster.total(sums).tolist()
        stop_together(stopped, n_stopped)
        return Counts(loss_sum, round(correct), len(rows))

    def predict(self, source: RowSource, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the probabilities of `rows`, (len(rows), K) float32."""
        labels = np.zeros(int(rows.max()) + 1, np.int64)
        kept = self._sharing.is_kept(source, rows)
        predicted = np.zeros((len(rows), self.split.output_layer.units))
        batches = make_batches(source, labels, rows[kept], batch_size)
        own = [self._predict_step(x).numpy() for x, _ in batches]
        predicted[kept] = np.concatenate([predicted[:0], *own])
        return self._sharing.add_parts(source, predicted).astype(np.float32)

    def measure_features(
        self, source: RowSource, rows: np.ndarray, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of each feature over `rows`, (F,) float64."""

        @tf.function(autograph=False, input_signature=[self._rows])
        def sums_of(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            features = tf.cast(self._features(x), tf.float32)
            features = tf.reshape(features, (tf.shape(x)[0], math.prod(self.split.feature_shape)))
            return tf.reduce_sum(features, axis=0), tf.reduce_sum(features**2, axis=0)

        totals = np.zeros((2, math.prod(self.split.feature_shape)))
        labels = np.zeros(int(rows.max()) + 1, np.int64)
        for size, x, _ in self._sharing.read(source, labels, rows, batch_size):
            signals.check()
            totals += [part.numpy() / self._sharing.n_readers(size) for part in sums_of(x)]
        mean, mean_square = self.cluster.total(totals) / len(rows)
        return mean, np.maximum(mean_square - mean**2, 0.0)

    def run_epochs(
        self,
        source: RowSource,
        labels: np.ndarray,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        plan: TrainingPlan,
        *,
        start: Position = _BEGINNING,
        on_step: Callable[[Position], None] = lambda position: None,
    ) -> Iterator[Epoch]:
        """Train, and yield after each epoch.

        With `plan.ema_decay` the network holds the averaged weights and BatchNorm statistics
        whenever an epoch is yielded, and its own while it trains.

        Args:
            source: `plan.n_views` views of N rows of pixels or features.
            labels: (N,) int64 in 0..K-1.
            train_rows: row numbers below N.
            val_rows: row numbers below N.
            plan: the settings.
            start: where to continue; the variables of `state` are those of this position.
            on_step: called before the first step of each epoch and after each step. `state` and the
                position can then be saved, also if it raises.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        steps, peak = plan.rates.steps_per_epoch, plan.rates.peak
        n_rows, labels = len(labels), np.tile(labels, plan.n_views)
        averages = self._get_averages(plan)
        changing = self._changing_variables if averages else []
        if start == _BEGINNING:
            _assign(averages, changing)
        train_step = self._get_train_step(plan, averages)
        position = start
        while position.epoch <= plan.rates.epochs:
            number, val_losses = position.epoch, position.val_losses
            started = time.perf_counter() - position.seconds
            if position.step == 0:
                self._seed_dropout(plan.seed, number)
                on_step(position)
            order = order_rows(train_rows, plan.seed, number)
            order = pick_views(order, n_rows, plan.n_views, plan.seed, number)
            order = order[position.step * plan.batch_size :]
            for size, x, y in self._sharing.read(source, labels, order, plan.batch_size):
                done = (number - 1) * steps + position.step
                self.optimizer.learning_rate.assign(rate_at(plan.rates, done, val_losses))
                stopped = self._sharing.take_signal()
                about = describe_batch(plan.seed, done, size, stops=stopped is not None)
                loss_sum, correct, n_stopped = train_step(x, y, about).numpy().tolist()
                counts = position.counts + Counts(loss_sum, round(correct), size)
                step = position.step + 1
                if not math.isfinite(counts.loss_sum):
                    raise _non_finite(counts, number, f"step {step} of {steps}", peak)
                seconds = time.perf_counter() - started
                position = Position(number, step, counts, seconds, val_losses)
                on_step(position)
                stop_together(stopped, n_stopped)
            _swap(averages, changing)
            try:
                val = self.evaluate(source, labels, val_rows, plan.batch_size)
            except BaseException:
                _swap(averages, changing)  # after a stop the state is still that of the position
                raise
            if not math.isfinite(val.loss_sum):
                # A step's loss is that of the weights before it: the last step shows only here.
                raise _non_finite(val, number, f"validation, after step {steps}", peak)
            rate = rate_at(plan.rates, number * steps - 1, val_losses)
            yield Epoch(number, position.counts, val, rate, time.perf_counter() - started)
            _swap(averages, changing)
            position = Position(number + 1, val_losses=(*val_losses, val.loss))

    def state(self, plan: TrainingPlan) -> dict[str, list[tf.Variable]]:
        """Return the variables that training changes, by purpose, to be saved or restored.

        They are consistent when `run_epochs` calls `on_step`.
        """
        return {
            name: [self._copies(variable)[0] for variable in variables]
            for name, variables in self._state(plan).items()
        }

    def spread_state(self, plan: TrainingPlan, position: Position) -> None:
        """Give all replicas the chief's state, which was restored, and each its own dropout."""
        if self.cluster.n_replicas == 1:
            return
        state = self._state(plan)
        generators = state.pop("dropout")
        for variable in (variable for variables in state.values() for variable in variables):
            variable.assign(self.cluster.from_chief(self._copies(variable)[0].numpy()))
        for generator in generators[:1]:
            now = self.cluster.from_chief(self._copies(generator)[0].numpy())
            drawn = now - _draw_dropout(plan.seed, position.epoch, 0, 0)
            self._seed_dropout(plan.seed, position.epoch, drawn)

    def _state(self, plan: TrainingPlan) -> dict[str, list[Any]]:
        return {
            "weights": self._changing_variables,
            "optimizer": self.optimizer.variables,
            "dropout": self._seed_states,
            "averages": self._get_averages(plan),
        }

    def _copies(self, variable: Any) -> tuple[tf.Variable, ...]:
        """Return the variable of each replica of this worker."""
        own = variable.value if isinstance(variable, keras.Variable) else variable
        copies: tuple[tf.Variable, ...] = self.strategy.experimental_local_results(own)
        return copies

    def run_lr_finder(
        self,
        source: RowSource,
        labels: np.ndarray,
        train_rows: np.ndarray,
        plan: TrainingPlan,
        rates: Sequence[float],
    ) -> list[float]:
        """Take a step at each rate in turn, then restore network and optimizer.

        Args:
            source: as in `run_epochs`; only its first view is used.
            labels: as in `run_epochs`.
            train_rows: as in `run_epochs`; repeated if there are too few.
            plan: gives batch size, seed and loss.
            rates: in rising order.

        Returns:
            The loss of each step's batch, before the step; fewer than `rates` if it diverged.
        """
        kept = [*self._changing_variables, *self.optimizer.variables]
        values = [variable.numpy() for variable in kept]
        train_step = self._get_train_step(plan, [])
        self._seed_dropout(plan.seed, 0)
        order = np.resize(order_rows(train_rows, plan.seed, 0), len(rates) * plan.batch_size)
        losses: list[float] = []
        for step, (size, x, y) in enumerate(
            self._sharing.read(source, labels, order, plan.batch_size)
        ):
            self.optimizer.learning_rate.assign(rates[step])
            loss = float(train_step(x, y, describe_batch(plan.seed, step, size))[0]) / size
            if has_diverged([*losses, loss]):
                break
            losses.append(loss)
        _assign(kept, values)
        return losses

    def snapshot(self) -> list[np.ndarray]:
        """Return copies of the variables that training changes."""
        return [variable.numpy() for variable in self._changing_variables]

    def restore(self, snapshot: list[np.ndarray]) -> None:
        """Assign a snapshot to the network."""
        _assign(self._changing_variables, snapshot)
        use_statistics(self.classifier)

    def _get_averages(self, plan: TrainingPlan) -> list[tf.Variable]:
        if plan.ema_decay and not self._averages:
            with self.strategy.scope():
                self._averages = [tf.Variable(v.numpy()) for v in self._changing_variables]
        return self._averages if plan.ema_decay else []

    def _seed_dropout(self, seed: int, epoch: int, drawn: np.ndarray | int = 0) -> None:
        """Make this epoch's dropout a function of (seed, epoch, replica).

        `drawn` is the difference to a state since then, which is the same in every generator.
        """
        first = self.cluster.index * self.cluster.n_local
        for number, state in enumerate(self._seed_states):
            for place, copy in enumerate(self._copies(state)):
                words = _draw_dropout(seed, epoch, number, first + place)
                copy.assign((words + drawn).astype(np.uint32))

    def _features(self, x: tf.Tensor) -> tf.Tensor:
        if self._compute_features is not None:
            x = self._compute_features(x)
        elif not self.split.has_frozen_layers:
            images = tf.reshape(x, (-1, IMAGE_SIZE, IMAGE_SIZE))
            x = self.split.feature_extractor(images, training=False)
        return tf.cast(x, self.split.trained_layers.inputs[0].dtype)

    def _get_train_step(self, plan: TrainingPlan, averages: list[tf.Variable]) -> Step:
        """Return the step for this plan, reused if only rates, batch size or seed differ."""
        if averages:
            return self._build_train_step(plan, averages)
        key = replace(plan, rates=_NO_RATES, batch_size=1, seed=0, ema_decay=0.0)
        if key not in self._train_steps:
            self._train_steps[key] = self._build_train_step(key, [])
        return self._train_steps[key]

    def _build_train_step(self, plan: TrainingPlan, averages: list[tf.Variable]) -> Step:
        n_classes = self.split.output_layer.units
        class_weights = tf.constant(plan.class_weights or [1.0] * n_classes, tf.float32)

        def step(x: tf.Tensor, y: tf.Tensor, about: tf.Tensor) -> tf.Tensor:
            x, y, row_weight, seed = self._sharing.take_own(x, y, about)
            targets = tf.one_hot(y, n_classes)
            if plan.augment:  # x is pixels then
                x, targets = augment(x, targets, seed, plan.augment, plan.background)
            y = tf.argmax(targets, axis=-1)
            weights = tf.linalg.matvec(targets, class_weights)
            smooth = plan.label_smoothing
            targets = targets * (1 - smooth) + smooth / n_classes
            features = self._features(x)
            with tf.GradientTape() as tape:
                logits = self.split.logits(features, training=True)
                losses = weights * tf.nn.softmax_cross_entropy_with_logits(targets, logits)
                # The replicas' gradients are summed: each divides by the whole batch.
                loss = tf.reduce_sum(losses) * row_weight / tf.cast(about[2], tf.float32)
            self.optimizer.apply(tape.gradient(loss, self._variables), self._variables)
            return add_up(losses, y, logits, row_weight, about[3])

        def step_and_average(x: tf.Tensor, y: tf.Tensor, about: tf.Tensor) -> tf.Tensor:
            sums = self.strategy.run(step, (x, y, about))
            if averages:
                update_averages(averages, self._changing_variables, plan.ema_decay, about[1])
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

        # The signature allows any batch size, so the step is traced once.
        return tf.function(
            step_and_average,
            autograph=False,
            input_signature=[self._rows, _LABELS, ABOUT],
        )

    def _run_eval_step(self, x: tf.Tensor, y: tf.Tensor, about: tf.Tensor) -> tf.Tensor:
        """Return the sums of this worker, as those of a `Step`."""

        def step(x: tf.Tensor, y: tf.Tensor, about: tf.Tensor) -> tf.Tensor:
            x, y, row_weight, _ = self._sharing.take_own(x, y, about)
            logits = self.split.logits(self._features(x), training=False)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            return add_up(losses, y, logits, row_weight, 0)

        sums = self.strategy.run(step, (x, y, about))
        return tf.add_n(self.strategy.experimental_local_results(sums))


def changing_variables(classifier: keras.Model) -> list[Any]:
    """Return the variables that training changes or sets: trainable ones and statistics.

    The classifier's phase is applied. These are the variables of `Trainer.snapshot`, in its order.
    Those of a `Normalization` layer, mean and variance, are set before training.
    """
    standardization = find_standardization(classifier)
    statistics = [
        variable
        for layer in find_backbone(classifier).layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    fixed = standardization.weights[:2] if standardization else []
    return [*classifier.trainable_variables, *statistics, *fixed]


def _draw_dropout(seed: int, epoch: int, number: int, replica: int) -> np.ndarray:
    """Return the first state of a random generator, (2,) uint32."""
    key = (replica,) if replica else ()
    return np.random.SeedSequence([seed, epoch, number], spawn_key=key).generate_state(2)


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _swap(averages: list[tf.Variable], variables: list[Any]) -> None:
    """Exchange the values of each average and its variable."""
    for average, variable in zip(averages, variables, strict=True):
        value = variable.numpy()
        variable.assign(average.numpy())
        average.assign(value)


def _seed_states(model: keras.Model) -> Iterator[tf.Variable]:
    """Yield the state of every random generator in `model` and its nested models."""
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
