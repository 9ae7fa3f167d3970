"""Train one phase: read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import numpy as np

from fmnist_tf.cli.terminal import GREEN, progress_bar, say, warn
from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.model.classifier import find_standardization, set_statistics, split_classifier
from fmnist_tf.model.phases import digest_weights, verify_plan
from fmnist_tf.pipeline.network import Network
from fmnist_tf.pipeline.plan import plan_layer_decay, plan_training, use_suggested_rate
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.pipeline.record import write_provenance
from fmnist_tf.pipeline.rows import open_rows
from fmnist_tf.pipeline.saved_run import MODEL
from fmnist_tf.pipeline.train_state import TrainState
from fmnist_tf.reporting.tracking import Trackers
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system import signals
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.files import json_digest
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import cluster
from fmnist_tf.training.checkpoint import CheckpointDir
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.lr_finder import plan_rates
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import Counts, Epoch, Position


@dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves behind, besides the weights.

    Attributes:
        chosen_epoch: whose weights were kept.
        peak_rate: the learning rate that the schedule is scaled to; the finder's, if it chose.
        engine: that computed the backbone features.
        val_probabilities: (V, K) float32, of the val rows in the order of `Splits.val`.
    """

    chosen_epoch: int
    peak_rate: float
    engine: str
    val_probabilities: np.ndarray


def fit(
    experiment: Experiment,
    directory: RunDir,
    trackers: Trackers,
    checkpoints: CheckpointDir | None = None,
    on_epoch: Callable[[HistoryRow], None] = lambda row: None,
) -> Trained:
    """Train all epochs and leave the best epoch's weights in the network and in model.keras.

    A signal is obeyed after the step in work and a checkpoint; a run that is stopped after its
    first epoch leaves its best model so far.

    Args:
        experiment: what is trained.
        directory: gets history.csv, steps.csv, model.keras and, in provenance.json, the features.
        trackers: get each step's loss and each row of the history.
        checkpoints: of the run, whose newest one is continued; None: write neither checkpoints nor
            model.keras. Of several workers the chief has them, and the others get its state.
        on_epoch: called with each row of the history; what it raises ends the training.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        PlanBrokenError: a frozen weight moved.
        OSError: the disk is full or fails.
    """
    checkpoint = checkpoints.newest if checkpoints else None
    config, network, invocation = experiment.config, experiment.network, experiment.invocation
    clock = invocation.clock
    precision, reason = network.precision
    say(f"compute precision: {precision} ({reason})")

    # --- Rows: numbered within the train and val rows from here on; no other row is read --------
    train, splits = experiment.data.dataset.train, experiment.data.splits
    pool = np.sort(np.concatenate([splits.train, splits.val]))
    train_rows = np.searchsorted(pool, splits.train)
    val_rows = np.searchsorted(pool, splits.val)
    images = train.pick(pool)
    labels, pixels = images.labels, ArrayRows(images.pixels, images.digest)

    # --- Network: cut below the lowest trainable layer; features below the cut are cached --------
    split = split_classifier(network.classifier, network.plan.lowest, precision)
    background = experiment.data.dataset.convention.background
    plan = plan_training(config, labels[train_rows], len(train.class_names), background)
    source, compute_features, engine, invocation.features[:] = open_rows(
        experiment, pixels, split, plan
    )
    write_provenance(experiment, directory)

    # --- Optimizer and trainer ------------------------------------------------------------------
    workers = cluster.current()
    with workers.scope():
        optimizer = build_optimizer(
            config.optimizer,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            rate_factors=plan_layer_decay(config.layer_decay, network.classifier),
        )
        trainer = Trainer(network.classifier, split, optimizer, compute_features=compute_features)

    # --- Standardization: a finetune run keeps its parent's -------------------------------------
    standardization = find_standardization(network.classifier)
    if standardization is not None and network.parent is None:
        with clock.stage("statistics"):
            rows = np.concatenate([train_rows + n * len(labels) for n in range(plan.n_views)])
            set_statistics(standardization, *trainer.measure_features(source, rows, 256))
    before = digest_weights(network.classifier)

    # --- State: as a killed or stopped run left it, else with the learning rate of the finder ----
    state = TrainState(trainer, experiment, source.digest)
    if workers.json_from_chief(checkpoint is not None):
        peak = state.load(checkpoint, plan)
        if standardization is not None:
            # The run's own statistics, should the features differ in the last digit by now.
            standardization.finalize_state()
            loaded = digest_weights(network.classifier)
            before |= {path: loaded[path] for path in loaded if path.startswith("standardize/")}
        directory.write_history(state.history)
        if config.lr_finder:
            rates = replace(plan.rates, peak=config.learning_rate or peak)
            plan = replace(plan, rates=rates)
    elif config.lr_finder:
        with clock.stage("lr_finder"):
            losses = trainer.run_lr_finder(source, labels, train_rows, plan, plan_rates())
        heading, given = experiment.heading, config.learning_rate
        plan = use_suggested_rate(plan, losses, given, directory, heading)
    was_finished = state.is_finished
    if checkpoints is not None and not was_finished:  # hours must not end at a full disk
        n_weights = sum(weight.size for weight in network.plan.weights)
        checkpoints.require_room(state.n_bytes(plan), besides=4 * n_weights)

    # --- Epochs ---------------------------------------------------------------------------------
    def record(epoch: Epoch) -> None:
        of_train, of_val = ((c.loss, c.accuracy) for c in (epoch.train, epoch.val))
        rate, seconds = epoch.learning_rate, round(epoch.seconds, 3)
        row = HistoryRow(epoch.number, config.phase, *of_train, *of_val, rate, seconds)
        is_best = state.add_epoch(row, epoch.val)
        try:
            directory.write_history(state.history)
        except OSError as error:  # the checkpoints have it too
            warn(f"{error}: history.csv is written again after the next epoch")
        say(_describe_epoch(row, config.epochs, is_best), GREEN if is_best else "")
        if row.epoch == 1 and network.parent is not None:
            _compare_with_start(row, state.history[0])
        trackers.log_epoch(row)
        on_epoch(row)

    if network.parent is not None and not state.history:
        # The starting point competes: a finetune run never ends worse on val than it began.
        with clock.stage("start_val"):
            started = time.perf_counter()
            val = trainer.evaluate(source, labels, val_rows, plan.batch_size)
            record(Epoch(0, Counts(), val, 0.0, time.perf_counter() - started))

    def check_plan() -> list[str]:
        after = digest_weights(network.classifier)
        return verify_plan(network.plan, before, after)

    def stops_early() -> bool:
        last = state.history[-1].epoch
        since_best = last - (state.best_epoch or 0)
        if stops := since_best >= (config.early_stopping or math.inf) and last < plan.rates.epochs:
            say(f"stopped early: no better epoch for {since_best} epochs")
        return stops

    together = signals.shared() if workers.n_workers > 1 else nullcontext()
    with signals.deferred(), together:  # a step, an epoch's record and a save are not interrupted
        try:
            with clock.stage("training"), progress_bar("training", "batch") as show:

                def on_step(position: Position) -> None:
                    state.advance(position)
                    if position.step:
                        trackers.log_step(len(state.step_losses), state.step_losses[-1])
                    counts, title = position.counts, f"epoch {position.epoch}/{config.epochs}"
                    note = _describe_figures(counts.loss, counts.accuracy) if counts.total else ""
                    show(position.step, plan.rates.steps_per_epoch, note, title)
                    ends_epoch = position.step == 0 and position.epoch > start.epoch
                    if checkpoints and checkpoints.is_due(ends_epoch=ends_epoch):
                        state.save(checkpoints, plan)

                start = state.position
                epochs = trainer.run_epochs(
                    source, labels, train_rows, val_rows, plan, start=start, on_step=on_step
                )
                for epoch in () if was_finished else epochs:
                    record(epoch)
                    if epoch.number == 1 and (unmoved := check_plan()):
                        say(f"note: {len(unmoved)} trainable weights did not move: {unmoved[:3]}")
                    if stops_early():
                        break
            check_plan()
            state.is_finished = True
            if checkpoints and not was_finished:
                state.save(checkpoints, plan)
        except BaseException as error:
            if checkpoints and isinstance(error, (signals.StoppedError, OSError)):
                state.save(checkpoints, plan)
            # In finetune the best may be the starting point alone, which the parent's run has.
            if checkpoints and state.history and state.history[-1].epoch > 0:
                state.use_best()
                with suppress(OSError):  # such as a full disk, which is the error then
                    _save_model(network, directory, clock)
                    where = directory.file(MODEL)
                    say(f"the best model so far (epoch {state.best_epoch}) is in {where}")
            raise

    # --- Best epoch -----------------------------------------------------------------------------
    state.use_best()
    directory.write_history(state.history)
    directory.write_steps(state.step_losses)
    if workers.n_replicas > 1:
        digests = digest_weights(network.classifier)
        say(f"weights of epoch {state.best_epoch}: SHA-256 {json_digest(digests)}")
        workers.require_same(digests)
    if checkpoints is not None:
        _save_model(network, directory, clock)
    with clock.stage("val"):
        val_probabilities = trainer.predict(source, val_rows, plan.batch_size)
    return Trained(state.best_epoch or 0, plan.rates.peak, engine, val_probabilities)


def _compare_with_start(row: HistoryRow, start: HistoryRow) -> None:
    """Warn where the first epoch of fine-tuning made the network worse."""
    if row.val_accuracy < start.val_accuracy:
        warn(
            f"the first epoch lowered the val accuracy from {start.val_accuracy:.4f} to "
            f"{row.val_accuracy:.4f}: the steps may be too large for pretrained weights. Try a "
            "fifth of the --learning-rate, --warmup-epochs 0.5 with --schedule cosine, --clip-norm "
            "1, or --cut at a lower stage in the frozen run"
        )


def _describe_epoch(row: HistoryRow, n_epochs: int | None, is_best: bool) -> str:
    """Return a line of at most 80 columns, with up to 999 epochs of up to 999 seconds."""
    trained = _describe_figures(row.loss, row.accuracy) if row.epoch else "before training"
    return (
        f"epoch {row.epoch:{len(str(n_epochs))}}/{n_epochs}  {trained:22}  "
        f"val {_describe_figures(row.val_loss, row.val_accuracy)}  {row.seconds:5.1f} s"
        + ("  best" if is_best else "")
    )


def _describe_figures(loss: float, accuracy: float) -> str:
    return f"loss {f'{loss:.4f}'[:6]} acc {accuracy:.4f}"


def _save_model(network: Network, directory: RunDir, clock: StageClock) -> None:
    release_memory()  # Keras makes the whole file in memory before it writes it
    with clock.stage("save"), directory.writing(MODEL) as temporary:
        network.classifier.save(temporary)
