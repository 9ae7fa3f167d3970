"""Settings -> the data and the network of one run, both checked, neither trained yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.cli.terminal import boxed, say, warn
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.data.splits import Splits, plan_splits, subset_rows
from fmnist_tf.errors import UsageError
from fmnist_tf.pipeline.record import Invocation
from fmnist_tf.pipeline.saved_run import SavedRun
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.settings.backbones import find_name
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.devices import describe_devices
from fmnist_tf.system.files import check_folder

if TYPE_CHECKING:
    from fmnist_tf.pipeline.cut_search import CutSearch
    from fmnist_tf.pipeline.network import Network


@dataclass(frozen=True)
class RunData:
    """The images of a run, and which rows train and validate.

    Attributes:
        dataset: its training and test images.
        splits: the training images' rows that train and validate.
        cache_dir: has parsed files, and backbone features in its folder `features`.
    """

    dataset: Dataset
    splits: Splits
    cache_dir: Path

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation rows, (V,) int64, in the order of `Splits.val`."""
        return self.dataset.train.labels[self.splits.val]


@dataclass(frozen=True)
class Experiment:
    """What one run trains.

    Attributes:
        config: complete, with image size, stages and kind of data as they turned out.
        data: images and splits.
        network: its phase is applied.
        invocation: how the run was started, and what is measured of it.
        search: what `--cut auto` has found, if this process searched.
    """

    config: RunConfig
    data: RunData
    network: Network
    invocation: Invocation
    search: CutSearch | None = None

    @property
    def heading(self) -> Heading:
        """The title of every figure of the run, and the warning that stands on it, if any."""
        config, dataset = self.config, self.data.dataset
        caveats = find_caveats(dataset.kind, self.network.weights.kind, config.phase)
        title = f"{config.backbone} {config.phase} on {dataset.name}"
        return Heading(title, "; ".join(caveats) or None)


def read_data(
    config: RunConfig, parent: SavedRun | None, runs_dir: Path, clock: StageClock
) -> RunData:
    """Read and split the data that the settings name, and print what was found.

    Raises:
        UsageError: the data cannot be found, is invalid, or is not the parent's.
    """
    cache_dir = config.cache_dir(runs_dir)
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
    return RunData(dataset, splits, cache_dir)


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


def _require_same_data(parent: SavedRun, dataset: Dataset, splits: Splits) -> None:
    """Refuse other data than the parent's: its training rows could be among the new val rows."""
    recorded, file = parent.provenance["data"]["files"][0], dataset.files[0]
    for what, expected, found in (
        ("training data", recorded["sha256"], file.sha256),
        ("labels", recorded["labels_sha256"], file.labels_sha256),
        ("split", parent.provenance["data"]["split_sha256"], splits.digest),
    ):
        if expected != found:
            raise UsageError(
                f"finetune needs the {what} of {parent.directory.path}: expected SHA-256 "
                f"{expected}, found {found}. Give the same --data and --test-data, or train a new "
                "frozen run on this data"
            )


def prepare_network(
    config: RunConfig, data: RunData, parent: SavedRun | None, invocation: Invocation
) -> Experiment:
    """Build the network that the settings ask for, and print what it is; raises as `build_network`.

    The result has the settings as they turned out.
    """
    from fmnist_tf.pipeline.network import build_network  # imports TensorFlow

    dataset = data.dataset
    with invocation.clock.stage("model"):
        name = "".join(c if c.isalnum() else "_" for c in f"{config.backbone}_on_{dataset.name}")
        n_classes = len(dataset.train.class_names)
        network = build_network(config, n_classes, parent, name, invocation.engine)
    config = config.replace(
        # A finetune run inherits this, even when real data lies in data/ by then.
        data="sample" if find_source(dataset.files[0].path) == "sample" else config.data,
        backbone=find_name(config.backbone),
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
    return Experiment(config, data, network, invocation)
