"""Settings -> the data and the network of one run, both checked, neither trained yet."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.terminal import boxed, say, warn
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.data.splits import Splits, plan_splits, subset_rows
from fmnist_tf.errors import UsageError, escape
from fmnist_tf.pipeline.saved_run import SavedRun, build_configured, load_weights
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.provenance import SAMPLE, find_caveats
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.devices import describe_devices
from fmnist_tf.system.files import check_folder

if TYPE_CHECKING:
    import keras

    from fmnist_tf.model.backbones import BackboneSpec
    from fmnist_tf.model.phases import TrainablePlan
    from fmnist_tf.model.weights import WeightsSource


@dataclass(frozen=True)
class RunData:
    """The images of a run, and which rows train and validate."""

    dataset: Dataset
    splits: Splits

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation rows, (V,) int64, in the order of `Splits.val`."""
        return self.dataset.train.labels[self.splits.val]


@dataclass(frozen=True)
class Network:
    """A classifier whose phase is applied.

    Attributes:
        classifier: (B, 28, 28) uint8 -> (B, K) float32 probabilities.
        spec: of its backbone.
        image_size: side of the images that the backbone sees, in pixels.
        plan: which weights train.
        weights: where the backbone's initial weights came from.
        precision: compute dtype while training, and the reason for it.
        engine: computes the backbone features; see `engine.choose_engine`.
        parent: the frozen run whose weights it starts from, or None.
        kept: the label of the block whose input the frozen phase keeps for finetune, or None.
    """

    classifier: keras.Model
    spec: BackboneSpec
    image_size: int
    plan: TrainablePlan
    weights: WeightsSource
    precision: tuple[str, str]
    engine: str
    parent: SavedRun | None
    kept: str | None


@dataclass(frozen=True)
class Experiment:
    """What one run trains.

    Attributes:
        config: complete, with image size, stages and kind of data as they turned out.
        data: images and splits.
        network: its phase is applied.
    """

    config: RunConfig
    data: RunData
    network: Network

    @property
    def heading(self) -> Heading:
        """The title of every figure of the run, and the warning that stands on it, if any."""
        config, dataset = self.config, self.data.dataset
        caveats = find_caveats(dataset.kind, self.network.weights.kind, config.phase)
        title = f"{config.backbone} {config.phase} on {dataset.name}"
        return Heading(title, "; ".join(caveats) or None)

    @property
    def sources(self) -> str:
        """One line that names the data and the backbone's initial weights."""
        dataset, weights = self.data.dataset, self.network.weights
        kind = SAMPLE if dataset.kind == "sample" else dataset.kind
        file = f" {weights.path}, SHA-256 {weights.sha256}" if weights.path else ""
        return escape(f"data: {dataset.name} ({kind}); backbone weights: {weights.kind}{file}")


def read_data(
    config: RunConfig, parent: SavedRun | None, cache_dir: Path, clock: StageClock
) -> RunData:
    """Read and split the data that the settings name, and print what was found.

    Args:
        config: complete.
        parent: the frozen run that a finetune run continues; the data must be its data.
        cache_dir: where parsed files are kept.
        clock: counts the seconds.

    Raises:
        UsageError: the data cannot be found, is invalid, or is not the parent's.
    """
    check_folder("--runs-dir or --cache", cache_dir)
    with clock.stage("data"):
        dataset = read_dataset(
            config.data,
            test_data=config.test_data,
            label_column=config.label_column,
            labels=config.labels,
            store_dir=cache_dir / "pixels",
            say=say,
        )
        if config.limit_test is not None:
            dataset = _limit_test(dataset, config.limit_test)
        splits = plan_splits(
            dataset.train.labels,
            val_fraction=config.val_fraction,
            seed=config.seed if config.split_seed is None else config.split_seed,
            limit=config.limit,
        )
    show_decisions(dataset)
    say(
        f"data: {dataset.name}, {len(splits.train):,} train, {len(splits.val):,} val, "
        f"{len(dataset.test.labels):,} test, {len(dataset.train.class_names)} classes"
    )
    if parent:
        _require_same_data(parent, dataset, splits)
    return RunData(dataset, splits)


def _limit_test(dataset: Dataset, count: int) -> Dataset:
    """Keep `count` test images, stratified and the same for every seed, and say so in a warning."""
    n_all, rows = len(dataset.test.labels), subset_rows(dataset.test.labels, count)
    if len(rows) == n_all:
        return dataset
    warning = "not tested (--no-test)"
    if count:
        warning = f"tested on {len(rows):,} of the {n_all:,} test images (--limit-test)"
    warnings = (*dataset.warnings, warning)
    return replace(dataset, test=dataset.test.pick(rows), warnings=warnings)


def show_decisions(dataset: Dataset) -> None:
    """Print how the data were read, and what is wrong with them."""
    for line in dataset.decisions:
        say(line)
    for warning in dataset.warnings:
        warn(boxed(*warning.split("\n")) if warning.startswith("WARNING") else warning)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return what provenance.json says of the data, and the data page shows."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "files": [file.to_record() for file in dataset.files],
        "decisions": list(dataset.decisions),
        "warnings": list(dataset.warnings),
        **dataset.convention.to_record(),
    }


def _require_same_data(parent: SavedRun, dataset: Dataset, splits: Splits) -> None:
    """Refuse other data than the parent's: its training rows could be among the new val rows."""
    recorded, file = parent.provenance["data"]["files"][0], dataset.files[0]
    for what, expected, found in (
        ("training data", recorded["sha256"], file.sha256),
        # An older run recorded no labels of the official files.
        ("labels", recorded.get("labels_sha256", file.labels_sha256), file.labels_sha256),
        ("split", parent.provenance["data"]["split_sha256"], splits.digest),
    ):
        if expected != found:
            raise UsageError(
                f"finetune needs the {what} of {parent.directory.path}: expected SHA-256 "
                f"{expected}, found {found}. Give the same --data and --test-data, or train a new "
                "frozen run on this data"
            )


def prepare_network(
    config: RunConfig,
    data: RunData,
    parent: SavedRun | None,
    clock: StageClock,
    engine: str | None = None,
) -> Experiment:
    """Build the network that the settings ask for, and print what it is.

    `engine` computed the features so far, if the run is resumed.

    Raises:
        UsageError: no such backbone or stage, the image size does not fit, or the weights cannot
            be had.
    """
    dataset = data.dataset
    with clock.stage("model"):
        name = "".join(c if c.isalnum() else "_" for c in f"{config.backbone}_on_{dataset.name}")
        network = build_network(config, len(dataset.train.class_names), parent, name, engine)
    config = config.replace(
        # A finetune run inherits this, even when real data lies in data/ by then.
        data="sample" if find_source(dataset.files[0].path) == "sample" else config.data,
        backbone=network.spec.name,
        image_size=network.image_size,
        unfreeze=(config.unfreeze or network.plan.stages) if config.phase == "finetune" else (),
    )
    cut = f" up to {config.cut}" if config.cut else ""
    if network.weights.warning:
        warn(boxed(network.weights.warning))
    say(
        f"model: {config.backbone}{cut} at {network.image_size} pixels, {config.head} head, "
        f"{network.plan.count('trained'):,} trainable and {network.plan.count('frozen'):,} frozen "
        f"parameters; on {', '.join(describe_devices())}"
    )
    return Experiment(config, data, network)


def build_network(
    config: RunConfig,
    n_classes: int,
    parent: SavedRun | None,
    name: str = "classifier",
    engine: str | None = None,
) -> Network:
    """Build the classifier, load its weights, and apply the phase's plan.

    Args:
        config: complete.
        n_classes: K.
        parent: the frozen run whose weights a finetune run starts from.
        name: of the Keras model.
        engine: that computed the features so far, if the run is resumed; else the parent's counts.

    Raises:
        UsageError: as `prepare_network`.
    """
    import keras

    from fmnist_tf.model.backbones import build_backbone, find_backbone_spec
    from fmnist_tf.model.phases import apply_plan, find_kept_block, plan_phase
    from fmnist_tf.model.precision import choose_precision
    from fmnist_tf.model.weights import WeightsSource, read_backbone
    from fmnist_tf.training.engine import choose_engine

    spec, image_size = find_backbone_spec(config.backbone, config.side)
    precision = choose_precision(config.precision)
    if engine is None and parent is not None:
        engine = parent.provenance.get("engine")
    engine = choose_engine(config.engine, engine)
    keras.utils.set_random_seed(config.seed)
    if parent is None:
        choice = "random" if config.phase == "scratch" else config.weights
        backbone, weights = read_backbone(spec, image_size, choice)
    else:
        backbone = build_backbone(spec, image_size)
        known = {field.name for field in fields(WeightsSource)}
        recorded = parent.provenance["weights"]
        weights = WeightsSource(**{name: recorded[name] for name in recorded.keys() & known})
    classifier = build_configured(config, backbone, spec, n_classes, name)
    if parent is not None:
        load_weights(classifier, parent)
    plan = plan_phase(
        classifier, config.phase, config.unfreeze, train_batch_norm=config.train_batch_norm
    )
    apply_plan(classifier, plan)
    keeps = config.phase == "frozen" and config.keep_for_finetune != "none"
    kept = find_kept_block(classifier, config.keep_for_finetune) if keeps else None
    return Network(classifier, spec, image_size, plan, weights, precision, engine, parent, kept)
