"""One run, assembled: settings and data -> a finished run directory.

In: a complete `RunConfig`, a run directory. Out: the data, the network, every file of the run,
`DONE.json` last. This module decides the order of things; what each thing is lies below it. It
must not know flags or exit codes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.terminal import boxed, progress_bar, say, warn
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.data.splits import Splits, plan_splits
from fmnist_tf.errors import FmnistError, UsageError, printable
from fmnist_tf.pipeline.assembly import open_source, plan_rate_factors, plan_training
from fmnist_tf.pipeline.finish import conclude
from fmnist_tf.pipeline.run import Network, Run, StageClock, Trained, describe_devices, describe_run
from fmnist_tf.pipeline.saved_run import (
    MODEL,
    SavedRun,
    build_configured,
    load_weights,
    read_saved_run,
)
from fmnist_tf.reporting.curves import write_lr_finder
from fmnist_tf.reporting.style import Heading
from fmnist_tf.reporting.tracking import TrackedRun, Tracker, start_tracking
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.files import check_folder
from fmnist_tf.system.memory import release_memory

if TYPE_CHECKING:
    from fmnist_tf.training.loop import Counts, TrainingPlan


def read_parent(directory: RunDir) -> SavedRun:
    """Read a frozen run to continue.

    Raises:
        UsageError: the run is incomplete, of another phase, or damaged.
    """
    parent = read_saved_run(directory)
    if parent.config.phase != "frozen":
        raise UsageError(
            f"{printable(str(directory.path), 200)}: expected a frozen run, found one of phase "
            f"{parent.config.phase}; name another with --from"
        )
    return parent


def read_data(
    config: RunConfig, parent: SavedRun | None, cache_dir: Path, clock: StageClock
) -> tuple[Dataset, Splits]:
    """Read and divide the data that the settings name, and say what was found.

    Args:
        config: complete.
        parent: the frozen run that a finetune run continues; its data is required.
        cache_dir: where parsed files are kept.
        clock: gets the seconds.

    Raises:
        UsageError: the data is not to be had, faulty, or not the parent's.
    """
    check_folder("--runs-dir or --cache", cache_dir)
    with clock.stage("data"):
        dataset = read_dataset(
            config.data,
            test_data=config.test_data,
            label_column=config.label_column,
            store_dir=cache_dir / "pixels",
            say=say,
        )
        splits = plan_splits(
            dataset.train.labels,
            val_fraction=config.val_fraction,
            seed=config.seed if config.split_seed is None else config.split_seed,
            limit=config.limit,
        )
    for line in dataset.decisions:
        say(line)
    for warning in dataset.warnings:
        warn(boxed(*warning.split("\n")) if warning.startswith("WARNING") else warning)
    say(
        f"data: {printable(dataset.name)}, {len(splits.train):,} train, {len(splits.val):,} val, "
        f"{len(dataset.test.labels):,} test, {len(dataset.train.class_names)} classes"
    )
    if parent:
        _check_same_data(parent, dataset, splits)
    return dataset, splits


def prepare_network(
    config: RunConfig,
    dataset: Dataset,
    parent: SavedRun | None,
    cache_dir: Path,
    clock: StageClock,
) -> tuple[RunConfig, Network]:
    """Build the network that the settings ask for, and say what it is.

    Returns:
        The settings with side, stages and sort of data as they turned out, and the network.

    Raises:
        UsageError: backbone, side, stage or weights are not to be had.
    """
    from fmnist_tf.model.phases import plan_unfreeze

    with clock.stage("model"):
        network = build_network(config, dataset, parent, cache_dir / "downloads")
    stages = plan_unfreeze(network.spec, config.phase, config.unfreeze)
    config = replace(
        config,
        # A finetune run inherits this, and real data may have come by then.
        data="sample" if find_source(dataset.files[0].path) == "sample" else config.data,
        image_size=network.side,
        unfreeze=stages if config.phase == "finetune" else (),
    )
    if network.weights.warning:
        warn(boxed(network.weights.warning))
    say(
        f"model: {config.backbone} at {network.side} pixels, {config.head} head, "
        f"{network.plan.count('trained'):,} numbers train, "
        f"{network.plan.count('frozen'):,} are frozen; on {', '.join(describe_devices())}"
    )
    return config, network


def _check_same_data(parent: SavedRun, dataset: Dataset, splits: Splits) -> None:
    """Refuse other data than the parent's: its training rows could be among the new val rows.

    Raises:
        UsageError: the train file or the split differs.
    """
    for what, expected, found in (
        ("training data", parent.data_sha256[0], dataset.files[0].sha256),
        ("split", parent.provenance["data"]["split_sha256"], splits.digest),
    ):
        if expected != found:
            raise UsageError(
                f"finetune needs the {what} of {parent.directory.path}: expected SHA-256 "
                f"{expected}, found {found}. Give the same --data and --test-data, or train a new "
                "frozen run on this data"
            )


@dataclass(frozen=True)
class Best:
    """The best state so far: most correct on val, then least loss; the earliest of equals."""

    epoch: int
    val: Counts
    snapshot: list[np.ndarray]

    def beaten_by(self, val: Counts) -> bool:
        """Return whether `val` is better."""
        return (val.correct, -val.loss_sum) > (self.val.correct, -self.val.loss_sum)


def build_network(
    config: RunConfig, dataset: Dataset, parent: SavedRun | None, download_dir: Path
) -> Network:
    """Build the classifier, load its weights, and apply the phase's plan.

    Args:
        config: complete.
        dataset: gives the classes.
        parent: the complete frozen run whose weights a finetune run starts from.
        download_dir: where published weights go.

    Raises:
        UsageError: backbone, side, stage or weights are not to be had.
    """
    import keras

    from fmnist_tf.model.backbones import WeightsSource, find_backbone_spec, read_backbone_weights
    from fmnist_tf.model.phases import apply_plan, plan_phase, plan_unfreeze

    spec, side = find_backbone_spec(config.backbone, config.image_size)
    plan_unfreeze(spec, config.phase, config.unfreeze)  # a wrong stage is said before the work
    keras.utils.set_random_seed(config.seed)
    backbone = spec.build(side)
    if parent is None:
        choice = "random" if config.phase == "scratch" else config.weights
        weights = read_backbone_weights(backbone, spec, choice, download_dir=download_dir, say=say)
    else:
        known = {setting.name for setting in fields(WeightsSource)}
        weights = WeightsSource(
            **{k: v for k, v in parent.provenance["weights"].items() if k in known}
        )
    name = "".join(c if c.isalnum() else "_" for c in f"{spec.name}_on_{dataset.name}")
    classifier = build_configured(config, backbone, spec, len(dataset.train.class_names), name)
    if parent is not None:
        load_weights(classifier, parent)
    plan = plan_phase(
        classifier, spec, config.phase, config.unfreeze, train_batch_norm=config.train_batch_norm
    )
    apply_plan(classifier, spec, plan)
    return Network(classifier, spec, side, plan, weights)


def run_session(run: Run) -> Evaluation:
    """Train, choose on val, test once, and leave a complete run directory.

    A run that is interrupted after its first epoch leaves its best model so far, and no DONE.json.

    Returns:
        The test evaluation.
    """
    with _tracked(run) as tracker:
        trained = _train(run, tracker)
        release_memory()
        test = conclude(run, tracker, trained)
    for line in tracker.hint:
        say(line)
    return test


def run_trial(run: Run, *, on_epoch: Callable[[HistoryRow], None] | None = None) -> None:
    """Train and choose on val; leave settings, history and val figures, but no model, no test.

    Args:
        run: assembled.
        on_epoch: called after each epoch; an exception that it raises ends the trial.
    """
    with _tracked(run) as tracker:
        trained = _train(run, tracker, keep=False, on_epoch=on_epoch)
        val = Evaluation.from_probabilities(
            run.dataset.train.labels[run.splits.val], trained.val_probabilities
        )
        run.directory.write_json("provenance.json", describe_run(run, trained))
        run.directory.write_json(
            "evaluation.json", {"chosen_epoch": trained.chosen_epoch, "val": val.to_json()}
        )


@contextmanager
def _tracked(run: Run) -> Iterator[Tracker]:
    """Write what is known before training, and yield the run's mirror."""
    config, directory = run.config, run.directory
    directory.write_json("config.json", config.to_json())
    names = enumerate(run.dataset.train.class_names)
    directory.write_json("labels.json", {str(index): name for index, name in names})
    directory.write_text("trainable.txt", run.network.plan.to_text(run.title))
    directory.write_json("provenance.json", describe_run(run))
    tracker = start_tracking(
        run.wandb_mode,
        directory.path,
        TrackedRun(
            name=directory.full_name,
            group=run.wandb_group,
            job_type=config.phase,
            config=_tracked_config(run),
            epochs_before=run.parent.directory.read_history()[-1].epoch if run.parent else 0,
        ),
        warn,
    )
    finished = False
    try:
        yield tracker
        finished = True
    finally:
        tracker.finish(finished)


def _tracked_config(run: Run) -> dict[str, Any]:
    settings = run.config.to_json()
    # Paths say where somebody's files lie; the tracker is told what is in them instead.
    settings = {key: value for key, value in settings.items() if key not in ("cache", "test_data")}
    weights = run.network.weights
    return settings | {
        "data": run.dataset.name,
        "data_kind": run.dataset.kind,
        "weights": weights.kind,
        "weights_sha256": weights.sha256,
        "parent": run.parent.directory.path.name if run.parent else None,
        "image_size": run.network.side,
        "n_train": len(run.splits.train),
        "n_val": len(run.splits.val),
        "n_test": len(run.dataset.test.labels),
    }


def _train(
    run: Run,
    tracker: Tracker,
    *,
    keep: bool = True,
    on_epoch: Callable[[HistoryRow], None] | None = None,
) -> Trained:
    """Train all epochs and leave the best state in the network, and on disk if it is to be kept."""
    from fmnist_tf.model.classifier import split_classifier
    from fmnist_tf.model.phases import digest_weights, prove_plan
    from fmnist_tf.training.loop import Trainer
    from fmnist_tf.training.lr_finder import plan_rates
    from fmnist_tf.training.optimizers import build_optimizer

    config, network = run.config, run.network
    # Rows are numbered within the pool from here on: nothing else of the file is touched.
    pool = np.sort(np.concatenate([run.splits.train, run.splits.val]))
    train_rows = np.searchsorted(pool, run.splits.train)
    val_rows = np.searchsorted(pool, run.splits.val)
    labels = run.dataset.train.labels[pool]
    split = split_classifier(
        network.classifier, network.spec, network.plan.lowest_stage, run.precision[0]
    )
    plan = plan_training(run, labels[train_rows])
    source, compute_features = open_source(run, plan, split, pool)
    optimizer = build_optimizer(
        config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        rate_factors=plan_rate_factors(run),
    )
    trainer = Trainer(network.classifier, split, optimizer, compute_features=compute_features)
    if config.lr_finder:
        with run.clock.stage("lr_finder"):
            rates = plan_rates()
            losses = trainer.run_lr_finder(source, labels, train_rows, plan, rates)
        plan = _use_suggestion(run, plan, rates, losses)
    epochs, batch_size = plan.rates.epochs, plan.batch_size

    best: Best | None = None
    history: list[HistoryRow] = []

    def record(number: int, train: Counts | None, val: Counts, rate: float, seconds: float) -> None:
        nonlocal best
        loss, accuracy = (train.loss, train.accuracy) if train else (math.nan, math.nan)
        row = HistoryRow(
            number, config.phase, loss, accuracy, val.loss, val.accuracy, rate, round(seconds, 3)
        )
        history.append(row)
        better = best is None or best.beaten_by(val)
        if better:
            best = Best(number, val, trainer.snapshot())
        run.directory.write_history(history)
        tracker.log_epoch(row)
        trained = f"loss {loss:.4f}  accuracy {accuracy:.4f}" if train else "before training"
        say(
            f"epoch {number:{len(str(epochs))}}/{epochs}  {trained:29}  "
            f"val loss {val.loss:.4f}  accuracy {val.accuracy:.4f}  {seconds:6.1f} s"
            + ("  best so far" if better else "")
        )
        if on_epoch:
            on_epoch(row)

    if config.parent is not None:
        # What finetune starts from competes: a run never ends worse on val than it began.
        with run.clock.stage("start_val"):
            started = time.perf_counter()
            val = trainer.evaluate(source, labels, val_rows, batch_size)
            record(0, None, val, 0.0, time.perf_counter() - started)
    before = digest_weights(network.classifier, network.spec)

    def prove() -> list[str]:
        return prove_plan(network.plan, before, digest_weights(network.classifier, network.spec))

    try:
        with run.clock.stage("training"), progress_bar("training", "batch") as show:
            for epoch in trainer.run_epochs(
                source, labels, train_rows, val_rows, plan, on_step=show
            ):
                record(epoch.number, epoch.train, epoch.val, epoch.learning_rate, epoch.seconds)
                if epoch.number == 1 and (still := prove()):
                    say(f"note: {len(still)} weights were to move and did not: {still[:3]}")
                if best and config.early_stopping is not None:
                    since = epoch.number - best.epoch
                    if since >= config.early_stopping and epoch.number < epochs:
                        say(f"stopped early: {since} epochs without a better one")
                        break
        prove()
        if best is None:
            raise ValueError("no epoch was run")
        trainer.restore(best.snapshot)
        if keep:
            _save(run)
        with run.clock.stage("val"):
            val_probabilities = trainer.predict(source, val_rows, batch_size)
    except BaseException:
        # In finetune the best so far may be the start, which history holds as epoch 0.
        if keep and best is not None and history[-1].epoch > 0:
            trainer.restore(best.snapshot)
            _save(run)
            say(f"the best model so far (epoch {best.epoch}) is in {run.directory.file(MODEL)}")
        raise
    return Trained(best.epoch, tuple(history), plan.rates.peak, val_probabilities)


def _use_suggestion(
    run: Run, plan: TrainingPlan, rates: list[float], losses: list[float]
) -> TrainingPlan:
    """Write what the range test found; return the plan with the rate that the run is to use.

    Raises:
        FmnistError: it found none, and the settings say none.
    """
    from fmnist_tf.training.lr_finder import smooth_losses, suggest_rate

    smoothed = smooth_losses(losses)
    suggestion, said = suggest_rate(rates, losses), run.config.learning_rate
    lines = [f"{r!r},{loss!r},{s!r}" for r, loss, s in zip(rates, losses, smoothed, strict=False)]
    run.directory.write_text("lr_finder.csv", "\n".join(["rate,loss,smoothed", *lines]) + "\n")
    if losses:
        with run.directory.writing("lr_finder.png") as path:
            heading = Heading(run.title, run.banner)
            write_lr_finder(path, heading, rates, losses, smoothed, suggestion.rate)
    if suggestion.rate is None:
        found = (
            f"range test: the loss fell at none of the rates from {rates[0]:g} to "
            f"{rates[max(len(losses) - 1, 0)]:.3g}, so it suggests none"
        )
        if said is None:
            raise FmnistError(f"{found}. Say one with --learning-rate")
        warn(f"{found}; the run uses {said:g}, as set")
        return plan
    if suggestion.is_bound:
        warn(
            f"range test: the loss still fell at the largest rate, {rates[-1]:g}: a larger "
            "--learning-rate than is suggested may do better"
        )
    peak = said or max(suggestion.rate, plan.rates.least)
    why = "as set" if said else "the least rate asked for"
    say(
        f"range test: {len(losses)} steps suggest a rate of {suggestion.rate:.3g}; the run uses "
        + ("it" if peak == suggestion.rate else f"{peak:g}, {why}")
    )
    return replace(plan, rates=replace(plan.rates, peak=peak))


def _save(run: Run) -> None:
    release_memory()  # Keras makes the whole file in memory before it writes it
    with run.clock.stage("save"), run.directory.writing(MODEL) as temporary:
        run.network.classifier.save(temporary)
