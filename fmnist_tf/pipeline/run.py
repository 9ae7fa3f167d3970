"""What one run is made of, and how it describes itself.

In: settings, data, splits, a network, a directory. Out: a `Run`, which trains nothing itself, and
its provenance. This module must not know the order of things.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.data.sources import Dataset
from fmnist_tf.data.splits import Splits
from fmnist_tf.errors import printable
from fmnist_tf.pipeline.saved_run import SavedRun
from fmnist_tf.results.provenance import SAMPLE, describe_machine, find_caveats
from fmnist_tf.results.rundir import HistoryRow, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes

if TYPE_CHECKING:
    import keras

    from fmnist_tf.model.backbones import BackboneSpec
    from fmnist_tf.model.phases import TrainablePlan
    from fmnist_tf.model.weights import WeightsSource


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
    spec: BackboneSpec
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
        code: commit and versions, as they were when the run began.
        cache_dir: where the frozen part's output is stored.
        clock: of the stages so far.
        memory: of this process.
        wandb_mode: auto, online, offline or disabled.
        wandb_group: what W&B shows this run together with.
        command: the command line without secrets.
    """

    config: RunConfig
    dataset: Dataset
    splits: Splits
    network: Network
    directory: RunDir
    parent: SavedRun | None
    code: dict[str, Any]
    cache_dir: Path
    clock: StageClock
    memory: MemoryWatch
    wandb_mode: str
    wandb_group: str
    command: str

    @cached_property
    def precision(self) -> tuple[str, str]:
        """The dtype of the arithmetic while training, and why."""
        from fmnist_tf.model.precision import choose_precision

        return choose_precision(self.config.precision)

    @cached_property
    def background(self) -> int:
        """The usual grey level, 0..255, at the border of the training images."""
        return self.dataset.background

    @cached_property
    def content_side(self) -> int:
        """The usual longer side, 1..28, of what the training images show."""
        return self.dataset.content_side

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
        kind = SAMPLE if self.dataset.kind == "sample" else self.dataset.kind
        name = printable(self.dataset.name)
        return f"data: {name} ({kind}); backbone weights: {weights.kind}{of_file}"

    @property
    def banner(self) -> str | None:
        """What no reader of a figure may miss."""
        weights = self.network.weights.kind
        return "; ".join(find_caveats(self.dataset.kind, weights, self.config.phase)) or None


@dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves behind, beside the weights.

    Attributes:
        chosen_epoch: whose weights were kept.
        history: a row an epoch.
        peak_rate: the learning rate that the schedule is scaled to; the range test's, where it
            was to say one.
        val_probabilities: (V, K) float32, of the val rows in the order of `Splits.val`.
    """

    chosen_epoch: int
    history: tuple[HistoryRow, ...]
    peak_rate: float
    val_probabilities: np.ndarray


def describe_devices() -> list[str]:
    """Return what TensorFlow can compute on: GPUs, e.g. `GPU: NVIDIA H200`, or else `CPU`."""
    import tensorflow as tf

    described = []
    for device in tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("CPU"):
        name = tf.config.experimental.get_device_details(device).get("device_name")
        described.append(f"{device.device_type}: {name}" if name else device.device_type)
    return described


def describe_run(run: Run, trained: Trained | None = None) -> dict[str, Any]:
    """Return provenance.json as it stands now, before training or after."""
    parent: dict[str, Any] = {}
    if run.parent:
        parent = {
            "parent_history": [asdict(row) for row in run.parent.directory.read_history()],
            "parent_seconds": run.parent.provenance["seconds"],
        }
    return {
        "command": run.command,
        "code": run.code,
        "machine": {**describe_machine(), "devices": describe_devices()},
        "precision": dict(zip(("compute", "why"), run.precision, strict=True)),
        "data": {
            "name": run.dataset.name,
            "kind": run.dataset.kind,
            "files": [asdict(file) for file in run.dataset.files],
            "decisions": list(run.dataset.decisions),
            "warnings": list(run.dataset.warnings),
            "split_sha256": run.splits.digest,
            "n_train": len(run.splits.train),
            "n_val": len(run.splits.val),
            "n_test": len(run.dataset.test.labels),
            "background": run.background,
            "content_side": run.content_side,
        },
        "weights": asdict(run.network.weights),
        "trained": run.network.plan.count_stages(),
        "peak_learning_rate": trained.peak_rate if trained else run.config.learning_rate,
        "parent": run.config.parent,
        **parent,
        "seconds": run.clock.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_anonymous_bytes": run.memory.peak_anonymous_bytes,
    }
