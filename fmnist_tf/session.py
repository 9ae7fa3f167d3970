"""One run, assembled: settings and data -> a finished run directory.

In: a complete `RunConfig`, a `Dataset`, `Splits`, a run directory. Out: every file of the run,
`DONE.json` last. This module decides the order of things; what each thing is lies below it. It
must not know flags or exit codes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.config import RunConfig
from fmnist_tf.console import progress_bar, say
from fmnist_tf.data.downloads import file_sha256
from fmnist_tf.data.sources import Dataset
from fmnist_tf.data.splits import Splits
from fmnist_tf.errors import UsageError
from fmnist_tf.results import figures
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.provenance import describe_code, describe_machine, peak_memory_bytes
from fmnist_tf.results.rundir import HistoryRow, RunDir
from fmnist_tf.results.tracking import Tracker, start_tracking

if TYPE_CHECKING:
    import keras

    from fmnist_tf.data.batches import RowSource
    from fmnist_tf.model.backbones import BackboneCard, WeightsSource
    from fmnist_tf.model.classifier import SplitClassifier
    from fmnist_tf.model.phases import TrainablePlan
    from fmnist_tf.training.loop import Counts

PREDICT_BATCH = 64
N_MISTAKES = 100
MODEL = "model.keras"


@dataclass
class StageClock:
    """Seconds of wall time per named stage of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + passed, 3)


@dataclass(frozen=True)
class Network:
    """A classifier with its plan applied, and where its backbone's weights came from."""

    classifier: keras.Sequential
    card: BackboneCard
    side: int
    plan: TrainablePlan
    weights: WeightsSource


@dataclass(frozen=True)
class Run:
    """All that one run is made of.

    Attributes:
        config: complete; nothing is left to a default.
        dataset: train and test images.
        splits: rows of `dataset.train` that train and validate.
        network: the classifier.
        directory: of the run, locked.
        parent: the frozen run that is continued, or None.
        precision: of the frozen part, and why.
        cache_dir: where the frozen part's output is stored.
        clock: of the stages so far.
        wandb_mode: auto, online, offline or disabled.
        command: the command line without secrets.
    """

    config: RunConfig
    dataset: Dataset
    splits: Splits
    network: Network
    directory: RunDir
    parent: RunDir | None
    precision: tuple[str, str]
    cache_dir: Path
    clock: StageClock
    wandb_mode: str
    command: str

    @property
    def title(self) -> str:
        """What stands above every figure."""
        return f"{self.config.backbone} {self.config.phase} on {self.dataset.name}"

    @property
    def sources(self) -> str:
        """One line on what the figures rest on."""
        weights = self.network.weights
        of_file = f" {weights.path}, SHA-256 {weights.sha256}" if weights.path else ""
        kind = {"sample": "built-in SAMPLE, not real data"}.get(
            self.dataset.kind, self.dataset.kind
        )
        return f"data: {self.dataset.name} ({kind}); backbone weights: {weights.kind}{of_file}"

    @property
    def banner(self) -> str | None:
        """What no reader of a figure may miss."""
        notes = []
        if self.dataset.kind == "sample":
            notes.append("built-in SAMPLE, not real data")
        if self.network.weights.kind == "random" and self.config.phase != "scratch":
            notes.append("RANDOM backbone weights")
        return "; ".join(notes) or None


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
    config: RunConfig, dataset: Dataset, parent: RunDir | None, download_dir: Path
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

    from fmnist_tf.model.backbones import WeightsSource, find_card, read_backbone_weights
    from fmnist_tf.model.classifier import build_classifier
    from fmnist_tf.model.phases import apply_plan, plan_phase, plan_unfreeze

    card, side = find_card(config.backbone, config.image_size)
    plan_unfreeze(card, config.phase, config.unfreeze)  # a wrong stage is said before the work
    keras.utils.set_random_seed(config.seed)
    backbone = card.build(side)
    if parent is None:
        choice = "random" if config.phase == "scratch" else config.weights
        weights = read_backbone_weights(backbone, card, choice, download_dir=download_dir, say=say)
    else:
        weights = WeightsSource(**parent.read_json("provenance.json")["weights"])
    classifier = build_classifier(
        backbone,
        card,
        head=config.head,
        units=config.units,
        dropout=config.dropout,
        n_classes=len(dataset.train.class_names),
        seed=config.seed,
        name="".join(c if c.isalnum() else "_" for c in f"{card.name}_on_{dataset.name}"),
    )
    if parent is not None:
        _load_parent(classifier, parent)
    plan = plan_phase(
        classifier, card, config.phase, config.unfreeze, train_batch_norm=config.train_batch_norm
    )
    apply_plan(classifier, card, plan)
    return Network(classifier, card, side, plan, weights)


def _load_parent(classifier: keras.Sequential, parent: RunDir) -> None:
    path = parent.file(MODEL)
    expected = parent.read_json("DONE.json")["files"][MODEL]["sha256"]
    found = file_sha256(path)
    if found != expected:
        raise UsageError(
            f"{path}: SHA-256 {found}, expected {expected} as DONE.json says: the model was "
            "changed after its run; train the frozen run again"
        )
    # The architecture is ours and only the weights are read: nothing in the file is executed.
    classifier.load_weights(path)


def run_session(run: Run) -> Evaluation:
    """Train, choose on val, test once, and leave a complete run directory.

    A run that is interrupted after its first epoch leaves its best model so far, and no DONE.json.

    Returns:
        The test evaluation.
    """
    config, directory = run.config, run.directory
    directory.write_json("config.json", config.to_json())
    directory.write_json("labels.json", dict(_numbered(run.dataset.train.class_names)))
    directory.write_text("trainable.txt", run.network.plan.to_text(run.title))
    tracker = start_tracking(
        run.wandb_mode,
        directory.path,
        group=config.parent or directory.path.name,
        job_type=config.phase,
        name=directory.path.name,
        config=_tracked_config(run),
        warn=say,
    )
    finished = False
    try:
        best, history, val = _train(run, tracker)
        test = _conclude(run, tracker, best, history, val)
        finished = True
    finally:
        tracker.finish(finished)
    for line in tracker.hint:
        say(line)
    return test


def _numbered(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return ((str(index), name) for index, name in enumerate(names))


def _tracked_config(run: Run) -> dict[str, Any]:
    knobs = run.config.to_json()
    # Paths say where somebody's files lie; the tracker is told what is in them instead.
    knobs = {key: value for key, value in knobs.items() if key not in ("cache", "test_data")}
    weights = run.network.weights
    return knobs | {
        "data": run.dataset.name,
        "data_kind": run.dataset.kind,
        "weights": weights.kind,
        "weights_sha256": weights.sha256,
        "image_size": run.network.side,
        "n_train": len(run.splits.train),
        "n_val": len(run.splits.val),
        "n_test": len(run.dataset.test.labels),
    }


def _train(run: Run, tracker: Tracker) -> tuple[Best, list[HistoryRow], Evaluation]:
    """Train all epochs and put the best state into the network.

    Returns:
        The best state, the history, and the evaluation of val that chose it.
    """
    from fmnist_tf.model.classifier import split_classifier
    from fmnist_tf.model.phases import digest_weights, prove_plan
    from fmnist_tf.training.loop import Trainer, build_optimizer

    config, network = run.config, run.network
    epochs, batch_size, rate = config.epochs, config.batch_size, config.learning_rate
    if epochs is None or batch_size is None or rate is None:
        raise ValueError("the configuration is incomplete; see config.complete_config")
    # Rows are numbered within the pool from here on: nothing else of the file is touched.
    pool = np.sort(np.concatenate([run.splits.train, run.splits.val]))
    train_rows = np.searchsorted(pool, run.splits.train)
    val_rows = np.searchsorted(pool, run.splits.val)
    labels = run.dataset.train.labels[pool]
    split = split_classifier(network.classifier, network.card, network.plan.lowest_stage)
    source, prefix = _open_source(run, split, pool)
    trainer = Trainer(network.classifier, split, build_optimizer(config.optimizer), prefix=prefix)

    best: Best | None = None
    history: list[HistoryRow] = []

    def record(number: int, train: Counts | None, val: Counts, rate: float, seconds: float) -> None:
        nonlocal best
        better = best is None or best.beaten_by(val)
        if better:
            best = Best(number, val, trainer.snapshot())
        loss, accuracy = (train.loss, train.accuracy) if train else (math.nan, math.nan)
        row = HistoryRow(
            number, config.phase, loss, accuracy, val.loss, val.accuracy, rate, round(seconds, 3)
        )
        history.append(row)
        run.directory.write_history(history)
        tracker.log_epoch(row)
        trained = f"loss {loss:.4f}  accuracy {accuracy:.4f}" if train else "before training"
        say(
            f"epoch {number:{len(str(epochs))}}/{epochs}  {trained:29}  "
            f"val loss {val.loss:.4f}  accuracy {val.accuracy:.4f}  {seconds:6.1f} s"
            + ("  best so far" if better else "")
        )

    if config.parent is not None:
        # What finetune starts from competes: a run never ends worse on val than it began.
        with run.clock.stage("start_val"):
            started = time.perf_counter()
            val = trainer.evaluate(source, labels, val_rows, batch_size)
            record(0, None, val, 0.0, time.perf_counter() - started)
    before = digest_weights(network.classifier, network.card)
    try:
        with run.clock.stage("training"), progress_bar("training", "batch") as show:
            for epoch in trainer.run_epochs(
                source,
                labels,
                train_rows,
                val_rows,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=rate,
                schedule=config.schedule,
                seed=config.seed,
                on_step=show,
            ):
                record(epoch.number, epoch.train, epoch.val, epoch.learning_rate, epoch.seconds)
                if epoch.number == 1:
                    still = prove_plan(
                        network.plan, before, digest_weights(network.classifier, network.card)
                    )
                    if still:
                        say(f"note: {len(still)} weights were to move and did not: {still[:3]}")
    except BaseException:
        if best is not None and history[-1].epoch > 0:
            trainer.restore(best.snapshot)
            _save_model(run)
            say(f"the best model so far (epoch {best.epoch}) is in {run.directory.file(MODEL)}")
        raise
    if best is None:
        raise ValueError("no epoch was run")
    trainer.restore(best.snapshot)
    with run.clock.stage("val"):
        val_evaluation = Evaluation.from_probabilities(
            labels[val_rows], trainer.predict(source, val_rows, batch_size)
        )
    return best, history, val_evaluation


def _open_source(
    run: Run, split: SplitClassifier, pool: np.ndarray
) -> tuple[RowSource, Callable[[Any], Any] | None]:
    """Return what the trainer reads: stored features, or raw pixels and the prefix to apply.

    Args:
        run: its settings decide.
        split: the classifier, cut.
        pool: the rows of the train file that this run uses, ascending.
    """
    from fmnist_tf.data.batches import ArrayRows
    from fmnist_tf.training import features

    pixels = run.dataset.train.pixels
    if len(pool) != len(pixels):
        pixels = pixels[pool]
    if split.prefix is None:
        say("the whole network trains: there is no frozen part to store")
        return ArrayRows(pixels), None
    precision, why = run.precision
    say(f"frozen part: {precision} ({why})")
    compute = features.build_prefix_function(split.prefix, precision)
    row_shape = split.prefix.output_shape[1:]
    n_bytes = features.stored_bytes(len(pixels), row_shape)
    folder = run.cache_dir / "features"
    if run.config.cache == "off":
        return ArrayRows(pixels), compute
    with run.clock.stage("features"):
        key = features.feature_key(pixels, split.prefix, precision)
        store = features.read_features(folder, key, len(pixels), row_shape)
        if store:
            say(f"frozen part: found its output for {len(pixels):,} images in {store.path}")
            return store, None
        if not features.fits_on_disk(folder, n_bytes):
            say(
                f"frozen part: its output, {n_bytes / 1e9:.1f} GB, does not fit on the disk of "
                f"{folder}; it is computed anew in every epoch. --cache DIR names another disk"
            )
            return ArrayRows(pixels), compute
        say(f"frozen part: computing its output for {len(pixels):,} images, {n_bytes / 1e9:.1f} GB")
        started = time.perf_counter()
        with progress_bar("frozen part", "image") as show:
            store = features.run_prefix(folder, key, pixels, compute, row_shape, show)
        seconds = time.perf_counter() - started
        say(f"frozen part: {seconds:.1f} s, {len(pixels) / seconds:.1f} images/s, in {store.path}")
    return store, None


def _save_model(run: Run) -> Path:
    with run.directory.writing(MODEL) as temporary:
        run.network.classifier.save(temporary)
    return run.directory.file(MODEL)


def _conclude(
    run: Run, tracker: Tracker, best: Best, history: list[HistoryRow], val: Evaluation
) -> Evaluation:
    """Save the model, test the saved file once, and write all that follows from it."""
    directory, test = run.directory, run.dataset.test
    names = run.dataset.train.class_names
    with run.clock.stage("save"):
        model_path = _save_model(run)
    with run.clock.stage("test"):
        probabilities = _predict_saved(model_path, test.pixels)
    evaluation = Evaluation.from_probabilities(test.labels, probabilities)
    directory.write_predictions(test.labels, probabilities)
    directory.write_json(
        "evaluation.json",
        {
            "dataset": run.dataset.name,
            "weights": run.network.weights.kind,
            "chosen_epoch": best.epoch,
            "val": val.to_json(),
            "test": evaluation.to_json(),
        },
    )
    with run.clock.stage("figures"):
        _write_figures(run, best, history, evaluation, probabilities)
    drawn = [directory.file(name) for name in ("curves.png", "confusion.png", "mistakes.png")]
    with run.clock.stage("tracking"):
        tracker.log_results(
            {"val": val, "test": evaluation},
            class_names=names,
            pixels=test.pixels,
            labels=test.labels,
            probabilities=probabilities,
            mistakes=N_MISTAKES,
            figures=drawn,
            model_path=model_path,
        )
    directory.write_json("provenance.json", _provenance(run))
    directory.write_done()
    return evaluation


def _predict_saved(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities of the model as it lies on disk, (N, K) float32.

    What is reported is then what anybody gets who loads the file.
    """
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path, compile=False)
    predict = tf.function(lambda images: model(images, training=False), autograph=False)
    images = pixels.reshape(-1, 28, 28)
    parts = []
    with progress_bar("test", "image") as show:
        for first in range(0, len(images), PREDICT_BATCH):
            parts.append(predict(tf.constant(images[first : first + PREDICT_BATCH])).numpy())
            show(first + len(parts[-1]), len(images))
    return np.concatenate(parts)


def _write_figures(
    run: Run,
    best: Best,
    history: list[HistoryRow],
    evaluation: Evaluation,
    probabilities: np.ndarray,
) -> None:
    test, names = run.dataset.test, run.dataset.train.class_names
    before = run.parent.read_history() if run.parent else []
    with run.directory.writing("curves.png") as path:
        figures.write_curves(
            path, before + history, run.title, chosen_epoch=best.epoch, banner=run.banner
        )
    with run.directory.writing("confusion.png") as path:
        figures.write_confusion(path, evaluation, names, run.title, banner=run.banner)
    with run.directory.writing("mistakes.png") as path:
        figures.write_mistakes(
            path, test.pixels, test.labels, probabilities, names, run.title, banner=run.banner
        )


def _provenance(run: Run) -> dict[str, Any]:
    return {
        "command": run.command,
        "code": describe_code(),
        "machine": describe_machine(),
        "precision": dict(zip(("frozen_part", "why"), run.precision, strict=True)),
        "data": {
            "name": run.dataset.name,
            "kind": run.dataset.kind,
            "files": [asdict(file) for file in run.dataset.files],
            "decisions": list(run.dataset.decisions),
            "warnings": list(run.dataset.warnings),
            "split_sha256": run.splits.digest,
        },
        "weights": asdict(run.network.weights),
        "parent": run.config.parent,
        "seconds": run.clock.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
