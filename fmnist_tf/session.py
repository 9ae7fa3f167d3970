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
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.config import RunConfig
from fmnist_tf.console import progress_bar, say
from fmnist_tf.data.sources import Dataset
from fmnist_tf.data.splits import Splits
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.files import file_digest
from fmnist_tf.results import figures
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.provenance import describe_machine, peak_memory_bytes
from fmnist_tf.results.rundir import HistoryRow, RunDir
from fmnist_tf.results.tracking import Tracker, start_tracking

if TYPE_CHECKING:
    import keras

    from fmnist_tf.data.batches import RowSource
    from fmnist_tf.model.backbones import BackboneCard, WeightsSource
    from fmnist_tf.model.classifier import SplitClassifier
    from fmnist_tf.model.phases import TrainablePlan
    from fmnist_tf.training.loop import Counts, Trainer

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
class Parent:
    """What a finetune run needs of the frozen run that it continues.

    Attributes:
        directory: of the frozen run.
        config: its settings.
        data_sha256: of its train file.
        split_sha256: of its split.
        weights: where its backbone's weights came from, as JSON.
        model_sha256: of its model file.
    """

    directory: RunDir
    config: RunConfig
    data_sha256: str
    split_sha256: str
    weights: dict[str, Any]
    model_sha256: str


def read_parent(directory: RunDir) -> Parent:
    """Read a frozen run to continue.

    Raises:
        UsageError: the run is incomplete, of another phase, or damaged.
    """
    where = printable(str(directory.path), 200)
    if not directory.is_complete:
        raise UsageError(
            f"{where}: expected a complete frozen run, found none: it has no DONE.json. Let it "
            "finish, or name another with --from"
        )
    config = RunConfig.from_json(directory.read_json("config.json"))
    if config.phase != "frozen":
        raise UsageError(
            f"{where}: expected a frozen run, found one of phase {config.phase}; name another "
            "with --from"
        )
    provenance, done = directory.read_json("provenance.json"), directory.read_json("DONE.json")
    try:
        return Parent(
            directory,
            config,
            provenance["data"]["files"][0]["sha256"],
            provenance["data"]["split_sha256"],
            dict(provenance["weights"]),
            done["files"][MODEL]["sha256"],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: expected the provenance.json and DONE.json of a finished run, found one "
            f"without {printable(str(error))}; the run is damaged, use another or repeat it"
        ) from error


def check_same_data(parent: Parent, dataset: Dataset, splits: Splits) -> None:
    """Refuse other data than the parent's: its training rows could be among the new val rows.

    Raises:
        UsageError: the train file or the split differs.
    """
    for what, expected, found in (
        ("training data", parent.data_sha256, dataset.files[0].sha256),
        ("split", parent.split_sha256, splits.digest),
    ):
        if expected != found:
            raise UsageError(
                f"finetune needs the {what} of {parent.directory.path}: expected SHA-256 "
                f"{expected}, found {found}. Give the same --data and --test-data, or train a new "
                "frozen run on this data"
            )


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
        precision: of the frozen part, and why; None without a frozen part.
        code: commit and versions, as they were when the run began.
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
    parent: Parent | None
    precision: tuple[str, str] | None
    code: dict[str, Any]
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
        of_file = ""
        if weights.path:
            of_file = f" {printable(weights.path, 200)}, SHA-256 {weights.sha256}"
        kind = {"sample": "built-in SAMPLE, not real data"}.get(
            self.dataset.kind, self.dataset.kind
        )
        name = printable(self.dataset.name)
        return f"data: {name} ({kind}); backbone weights: {weights.kind}{of_file}"

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
    config: RunConfig, dataset: Dataset, parent: Parent | None, download_dir: Path
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
        known = {knob.name for knob in fields(WeightsSource)}
        weights = WeightsSource(**{k: v for k, v in parent.weights.items() if k in known})
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


def _load_parent(classifier: keras.Sequential, parent: Parent) -> None:
    path = parent.directory.file(MODEL)
    found = file_digest(path) if path.is_file() else "no file"
    if found != parent.model_sha256:
        raise UsageError(
            f"{path}: expected SHA-256 {parent.model_sha256} as DONE.json says, found {found}: the "
            "model was changed after its run; train the frozen run again"
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
    names = enumerate(run.dataset.train.class_names)
    directory.write_json("labels.json", {str(index): name for index, name in names})
    directory.write_text("trainable.txt", run.network.plan.to_text(run.title))
    directory.write_json("provenance.json", _provenance(run))
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

    if config.parent is not None:
        # What finetune starts from competes: a run never ends worse on val than it began.
        with run.clock.stage("start_val"):
            started = time.perf_counter()
            val = trainer.evaluate(source, labels, val_rows, batch_size)
            record(0, None, val, 0.0, time.perf_counter() - started)
    before = digest_weights(network.classifier, network.card)

    def prove() -> list[str]:
        return prove_plan(network.plan, before, digest_weights(network.classifier, network.card))

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
                if epoch.number == 1 and (still := prove()):
                    say(f"note: {len(still)} weights were to move and did not: {still[:3]}")
        prove()
        if best is None:
            raise ValueError("no epoch was run")
        _keep_best(run, trainer, best)
        with run.clock.stage("val"):
            val_evaluation = Evaluation.from_probabilities(
                labels[val_rows], trainer.predict(source, val_rows, batch_size)
            )
    except BaseException:
        # In finetune the best so far may be the start, which history holds as epoch 0.
        if best is not None and history[-1].epoch > 0:
            _keep_best(run, trainer, best)
            say(f"the best model so far (epoch {best.epoch}) is in {run.directory.file(MODEL)}")
        raise
    return best, history, val_evaluation


def _keep_best(run: Run, trainer: Trainer, best: Best) -> None:
    """Put the best state into the network and the network on disk."""
    trainer.restore(best.snapshot)
    with run.clock.stage("save"), run.directory.writing(MODEL) as temporary:
        run.network.classifier.save(temporary)


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
    if run.precision is None:
        raise ValueError("a run with a frozen part needs its precision")
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
        if not features.fits_on_disk(folder, key, n_bytes):
            say(
                f"frozen part: its output, {n_bytes / 1e9:.2g} GB, does not fit on the disk of "
                f"{folder}; it is computed anew in every epoch. --cache DIR names another disk"
            )
            return ArrayRows(pixels), compute
        say(f"frozen part: computing its output for {len(pixels):,} images, {n_bytes / 1e9:.2g} GB")
        started = time.perf_counter()
        with progress_bar("frozen part", "image") as show:
            store = features.run_prefix(folder, key, pixels, compute, row_shape, show)
        seconds = time.perf_counter() - started
        say(f"frozen part: {seconds:.1f} s, {len(pixels) / seconds:.1f} images/s, in {store.path}")
    return store, None


def _conclude(
    run: Run, tracker: Tracker, best: Best, history: list[HistoryRow], val: Evaluation
) -> Evaluation:
    """Test the saved model once, and write all that follows from it."""
    directory, test = run.directory, run.dataset.test
    names = run.dataset.train.class_names
    model_path = directory.file(MODEL)
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
            "val": {**val.to_json(), "computed_by": "the training loop"},
            "test": {**evaluation.to_json(), "computed_by": MODEL},
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
    before = run.parent.directory.read_history() if run.parent else []
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


def describe_devices() -> list[str]:
    """Return what TensorFlow computes on, e.g. `CPU` or `GPU: NVIDIA H100`."""
    import tensorflow as tf

    described = []
    for device in tf.config.list_physical_devices():
        name = tf.config.experimental.get_device_details(device).get("device_name")
        described.append(f"{device.device_type}: {name}" if name else device.device_type)
    return described


def _provenance(run: Run) -> dict[str, Any]:
    return {
        "command": run.command,
        "code": run.code,
        "machine": {**describe_machine(), "devices": describe_devices()},
        "precision": dict(zip(("frozen_part", "why"), run.precision or (None, None), strict=True)),
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
