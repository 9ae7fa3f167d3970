"""What a run records of itself: how it was started, its settings, provenance.json, trackers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fmnist_tf.data.sources import Dataset
from fmnist_tf.errors import escape
from fmnist_tf.reporting.tracking import TrackedRun, Trackers, TrackingOptions, start_tracking
from fmnist_tf.results.provenance import SAMPLE, describe_code, describe_machine
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.devices import describe_devices
from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes
from fmnist_tf.training import cluster

if TYPE_CHECKING:
    from fmnist_tf.pipeline.fit import Trained
    from fmnist_tf.pipeline.prepare import Experiment

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Invocation:
    """How a run was started, and what is measured of its process.

    Attributes:
        command: the command line, without secrets.
        tracking: which trackers the run has.
        engine: that computed the features of a resumed run before, if it is known.
        wandb_id: what W&B knows the run by.
        resumptions: of the run: when, by which command, where, and which changes were accepted.
        features: names of the cached features that are read, in the cache's folder `features`.
        code: commit and versions when the process began.
        clock: seconds of the stages.
        memory: peak of the process.
    """

    command: str
    tracking: TrackingOptions
    engine: str | None = None
    wandb_id: str = field(default_factory=lambda: secrets.token_hex(4))
    resumptions: list[dict[str, Any]] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    code: dict[str, Any] = field(default_factory=describe_code)
    clock: StageClock = field(default_factory=StageClock)
    memory: MemoryWatch = field(default_factory=MemoryWatch)


def start_invocation(
    command: str, tracking: TrackingOptions, unfinished: RunDir | None
) -> Invocation:
    """Return how a process was started; what an unfinished run had recorded of itself is kept."""
    if unfinished is None:
        return Invocation(command, tracking)
    is_begun = unfinished.file(PROVENANCE).exists()
    before = unfinished.read_json(PROVENANCE) if is_begun else {}
    if tracking.wandb == "auto":
        tracking = replace(tracking, wandb=before.get("wandb_mode", "auto"))
    if before.get("tensorboard"):
        tracking = replace(tracking, tensorboard=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    wandb_id = str(before.get("wandb_id"))
    return Invocation(
        before.get("command", command),
        tracking,
        engine=before.get("engine"),
        wandb_id=wandb_id if re.fullmatch("[0-9a-f]{8}", wandb_id) else secrets.token_hex(4),
        resumptions=[*before.get("resumptions", ()), {"at": now, "command": command}],
        features=list(before.get("features", ())),
    )


@contextmanager
def recording(experiment: Experiment, directory: RunDir) -> Iterator[Trackers]:
    """Write what is known before training, and yield the run's trackers."""
    network, invocation = experiment.network, experiment.invocation
    directory.write_json("config.json", experiment.config.to_json())
    names = experiment.data.dataset.train.class_names
    directory.write_json("labels.json", {str(k): name for k, name in enumerate(names)})
    directory.write_text("trainable.txt", network.plan.to_text(experiment.heading.title))
    if experiment.search is not None:
        experiment.search.write(directory, experiment.heading)
    write_provenance(experiment, directory)
    parent, name, group = network.parent, directory.full_name, directory.group
    if parent and group == name:  # the group of a trial is its sweep, another name
        group = parent.directory.group
    tracked = TrackedRun(
        name=name,
        group=group,
        job_type=experiment.config.phase,
        config=_describe_settings(experiment),
        wandb_id=invocation.wandb_id,
        epochs_before=parent.history[-1].epoch if parent else 0,
        parent=parent.directory.full_name if parent else None,
    )
    trackers = start_tracking(invocation.tracking, directory.path, tracked)
    succeeded = False
    try:
        yield trackers
        succeeded = True
    finally:
        trackers.finish(ok=succeeded)


def write_provenance(
    experiment: Experiment, directory: RunDir, trained: Trained | None = None
) -> None:
    """Write provenance.json as far as it is known; `trained` is None before the end of training."""
    network, dataset, splits = experiment.network, experiment.data.dataset, experiment.data.splits
    invocation, workers = experiment.invocation, cluster.current()
    parent: dict[str, Any] = {}
    if network.parent:
        parent = {
            "parent_history": [asdict(row) for row in network.parent.history],
            "parent_seconds": network.parent.provenance["seconds"],
        }
    provenance = {
        "command": invocation.command,
        "resumptions": invocation.resumptions,
        "wandb_id": invocation.wandb_id,
        "wandb_mode": invocation.tracking.wandb,
        "tensorboard": invocation.tracking.tensorboard,
        "code": invocation.code,
        "machine": {
            **describe_machine(),
            "devices": describe_devices(),
            "workers": workers.n_workers,
            "replicas": workers.n_replicas,
        },
        "precision": dict(zip(("compute", "why"), network.precision, strict=True)),
        "engine": trained.engine if trained else network.engine,
        "data": {
            **describe_dataset(dataset),
            "split_sha256": splits.digest,
            "n_train": len(splits.train),
            "n_val": len(splits.val),
            "n_test": len(dataset.test.labels),
        },
        "weights": asdict(network.weights),
        "features": invocation.features,
        "trained": network.plan.count_stages(),
        "peak_learning_rate": trained.peak_rate if trained else experiment.config.learning_rate,
        "parent": experiment.config.parent,
        **parent,
        "seconds": invocation.clock.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_anonymous_bytes": invocation.memory.peak_anonymous_bytes,
    }
    directory.write_json(PROVENANCE, provenance)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return what provenance.json says of the data, and the data page shows."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "files": [file.to_record() for file in dataset.files],
        "decisions": list(dataset.decisions),
        "warnings": list(dataset.warnings),
        **asdict(dataset.convention),
    }


def describe_sources(directory: RunDir) -> str:
    """Return a line that names the data and the initial weights of a run."""
    provenance = directory.read_json(PROVENANCE)
    data, weights = provenance["data"], provenance["weights"]
    kind = SAMPLE if data["kind"] == "sample" else data["kind"]
    file = f" {weights['path']}, SHA-256 {weights['sha256']}" if weights["path"] else ""
    return escape(f"data: {data['name']} ({kind}); backbone weights: {weights['kind']}{file}")


def _describe_settings(experiment: Experiment) -> dict[str, Any]:
    """Return what W&B records as the run's settings: no path, but what the files hold."""
    settings = experiment.config.to_json()
    del settings["cache"], settings["test_data"], settings["labels"]
    data, network = experiment.data, experiment.network
    return settings | {
        "data": data.dataset.name,
        "data_kind": data.dataset.kind,
        "weights": network.weights.kind,
        "weights_sha256": network.weights.sha256,
        "parent": network.parent.directory.path.name if network.parent else None,
        "parent_model_sha256": network.parent.model_sha256 if network.parent else None,
        "image_size": network.image_size,
        "n_train": len(data.splits.train),
        "n_val": len(data.splits.val),
        "n_test": len(data.dataset.test.labels),
    }
