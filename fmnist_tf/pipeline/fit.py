"""Train one phase: read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fmnist_tf.cli.terminal import progress_bar, say
from fmnist_tf.data.batches import ArrayRows, PickedRows
from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.model.phases import digest_weights, verify_plan
from fmnist_tf.pipeline.plan import plan_layer_decay, plan_training, use_suggested_rate
from fmnist_tf.pipeline.prepare import Experiment, Network
from fmnist_tf.pipeline.rows import open_rows
from fmnist_tf.pipeline.saved_run import MODEL
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training.loop import Counts, Trainer
from fmnist_tf.training.lr_finder import plan_rates
from fmnist_tf.training.optimizers import build_optimizer

OnEpoch = Callable[[HistoryRow], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves behind, besides the weights.

    Attributes:
        chosen_epoch: whose weights were kept.
        history: one row per epoch.
        peak_rate: the learning rate that the schedule is scaled to; the finder's, if it chose.
        val_probabilities: (V, K) float32, of the val rows in the order of `Splits.val`.
    """

    chosen_epoch: int
    history: tuple[HistoryRow, ...]
    peak_rate: float
    val_probabilities: np.ndarray


def fit(
    experiment: Experiment,
    directory: RunDir,
    clock: StageClock,
    on_epoch: OnEpoch,
    *,
    save: bool = True,
) -> Trained:
    """Train all epochs and leave the best epoch's weights in the network and in model.keras.

    A run that is stopped after its first epoch leaves its best model so far.

    Args:
        experiment: what is trained.
        directory: gets history.csv and model.keras.
        clock: counts the seconds of each stage.
        on_epoch: called with each row of the history; what it raises ends the training.
        save: whether model.keras is written.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        PlanBrokenError: a frozen weight moved.
    """
    config, network = experiment.config, experiment.network
    cache_dir = config.cache_dir(directory.runs_dir)
    precision, reason = network.precision
    say(f"compute precision: {precision} ({reason})")

    # --- Rows: numbered within the train and val rows from here on; no other row is read --------
    train, splits = experiment.data.dataset.train, experiment.data.splits
    pool = np.sort(np.concatenate([splits.train, splits.val]))
    train_rows = np.searchsorted(pool, splits.train)
    val_rows = np.searchsorted(pool, splits.val)
    labels = train.labels[pool]
    pixels = PickedRows(ArrayRows(train.pixels, train.digest), pool)

    # --- Network: cut below the lowest trainable layer; features below the cut are cached --------
    split = split_classifier(network.classifier, network.spec, network.plan.lowest_stage, precision)
    background = experiment.data.dataset.convention.background
    plan = plan_training(config, labels[train_rows], len(train.class_names), background)
    source, compute_features = open_rows(experiment, pixels, split, plan, cache_dir, clock)

    # --- Optimizer and trainer ------------------------------------------------------------------
    optimizer = build_optimizer(
        config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        rate_factors=plan_layer_decay(config, network),
    )
    trainer = Trainer(network.classifier, split, optimizer, compute_features=compute_features)

    # --- Learning-rate finder -------------------------------------------------------------------
    if config.lr_finder:
        with clock.stage("lr_finder"):
            rates = plan_rates()
            losses = trainer.run_lr_finder(source, labels, train_rows, plan, rates)
        given = config.learning_rate
        plan = use_suggested_rate(plan, rates, losses, given, directory, experiment.heading)

    # --- Epochs ---------------------------------------------------------------------------------
    best = BestEpoch(trainer)
    history: list[HistoryRow] = []

    def record(
        number: int, train: Counts | None, val: Counts, learning_rate: float, seconds: float
    ) -> None:
        is_best = best.update(number, val)
        own = (train.loss, train.accuracy) if train else (math.nan, math.nan)
        of_val, seconds = (val.loss, val.accuracy), round(seconds, 3)
        row = HistoryRow(number, config.phase, *own, *of_val, learning_rate, seconds)
        history.append(row)
        directory.write_history(history)
        say(_describe_epoch(row, config.epochs, is_best))
        on_epoch(row)

    if network.parent is not None:
        # The starting point competes: a finetune run never ends worse on val than it began.
        with clock.stage("start_val"):
            started = time.perf_counter()
            val = trainer.evaluate(source, labels, val_rows, plan.batch_size)
            record(0, None, val, 0.0, time.perf_counter() - started)
    before = digest_weights(network.classifier, network.spec)

    def check_plan() -> list[str]:
        after = digest_weights(network.classifier, network.spec)
        return verify_plan(network.plan, before, after)

    try:
        with clock.stage("training"), progress_bar("training", "batch") as show:
            for epoch in trainer.run_epochs(
                source, labels, train_rows, val_rows, plan, on_step=show
            ):
                number = epoch.number
                record(number, epoch.train, epoch.val, epoch.learning_rate, epoch.seconds)
                if number == 1 and (unmoved := check_plan()):
                    say(f"note: {len(unmoved)} trainable weights did not move: {unmoved[:3]}")
                since_best = number - best.epoch
                if since_best >= (config.early_stopping or math.inf) and number < plan.rates.epochs:
                    say(f"stopped early: no better epoch for {since_best} epochs")
                    break
        check_plan()
    except BaseException:
        # In finetune the best may be the starting point alone, which the parent's run has.
        if save and history and history[-1].epoch > 0:
            best.restore()
            _save_model(network, directory, clock)
            say(f"the best model so far (epoch {best.epoch}) is in {directory.file(MODEL)}")
        raise

    # --- Best epoch -----------------------------------------------------------------------------
    best.restore()
    if save:
        _save_model(network, directory, clock)
    with clock.stage("val"):
        val_probabilities = trainer.predict(source, val_rows, plan.batch_size)
    return Trained(best.epoch, tuple(history), plan.rates.peak, val_probabilities)


class BestEpoch:
    """Keeps the weights of the best epoch: most correct on val, then lowest loss, then earliest."""

    def __init__(self, trainer: Trainer) -> None:
        self.epoch = 0
        self._trainer = trainer
        self._score: tuple[int, float] | None = None
        self._weights: list[np.ndarray] = []

    def update(self, epoch: int, val: Counts) -> bool:
        """Keep the trainer's weights if `val` is better than any before, and return whether."""
        score = (val.correct, -val.loss_sum)
        if self._score is not None and score <= self._score:
            return False
        self.epoch, self._score, self._weights = epoch, score, self._trainer.snapshot()
        return True

    def restore(self) -> None:
        """Put the kept weights into the network."""
        self._trainer.restore(self._weights)


def _describe_epoch(row: HistoryRow, n_epochs: int | None, is_best: bool) -> str:
    trained = "before training"
    if row.epoch:
        trained = f"loss {row.loss:.4f}  accuracy {row.accuracy:.4f}"
    return (
        f"epoch {row.epoch:{len(str(n_epochs))}}/{n_epochs}  {trained:29}  "
        f"val loss {row.val_loss:.4f}  accuracy {row.val_accuracy:.4f}  {row.seconds:6.1f} s"
        + ("  best so far" if is_best else "")
    )


def _save_model(network: Network, directory: RunDir, clock: StageClock) -> None:
    release_memory()  # Keras makes the whole file in memory before it writes it
    with clock.stage("save"), directory.writing(MODEL) as temporary:
        network.classifier.save(temporary)
