"""The state of a run's training: what a checkpoint holds, and under which conditions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tensorflow as tf

import fmnist_tf
from fmnist_tf.cli.terminal import warn
from fmnist_tf.errors import printable
from fmnist_tf.model.phases import digest_weights
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import describe_versions
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.cpu import usable_cpus
from fmnist_tf.system.files import json_digest
from fmnist_tf.training import cluster
from fmnist_tf.training.checkpoint import Checkpoint, CheckpointDir
from fmnist_tf.training.features import describe_processor
from fmnist_tf.training.loop import Counts, Position, Trainer, TrainingPlan

_COMPUTING = ("tensorflow", "keras", "numpy", "ml_dtypes")


class TrainState:
    """All that the epochs to come depend on, besides settings and data.

    `rows` is the digest of what the trainer reads, pixels or cached features.

    Attributes:
        history: one row for each epoch so far.
        step_losses: mean loss of each step's batch so far, 6 significant digits.
        position: of the variables of the network, the optimizer, the averages and dropout.
        peak_rate: the learning rate that the schedule is scaled to; the finder's, if it chose.
        best_epoch: most correct on val, then lowest loss, then earliest; None before the first.
        is_finished: training is over; only the best epoch is kept.
    """

    def __init__(
        self,
        trainer: Trainer,
        experiment: Experiment,
        clock: StageClock,
        rows: str,
        peak_rate: float,
    ) -> None:
        self._trainer, self._clock, self._rows = trainer, clock, rows
        self._conditions = describe_conditions(experiment)
        self.history: list[HistoryRow] = []
        self.step_losses: list[float] = []
        self.position = Position()
        self.peak_rate = peak_rate
        self.best_epoch: int | None = None
        self.is_finished = False
        self._best_score: tuple[int, float] = (-1, 0.0)
        self._best_weights: list[tf.Variable] = []

    def advance(self, position: Position) -> None:
        """Take note of a step, or of the beginning of an epoch."""
        if position.step:
            of_step, before = position.counts, self.position.counts
            loss = (of_step.loss_sum - before.loss_sum) / (of_step.total - before.total)
            self.step_losses.append(float(f"{loss:.6g}"))
        self.position = position

    def add_epoch(self, row: HistoryRow, val: Counts) -> bool:
        """Take note of an epoch; keep the trainer's weights if it is the best, and return whether.

        Args:
            row: of the history.
            val: sums over the val rows.
        """
        self.history.append(row)
        score = (val.correct, -val.loss_sum)
        if self.best_epoch is not None and score <= self._best_score:
            return False
        self.best_epoch, self._best_score = row.epoch, score
        self._set_best(self._trainer.snapshot())
        return True

    def use_best(self) -> None:
        """Put the weights of the best epoch into the network."""
        self._trainer.restore([variable.numpy() for variable in self._best_weights])

    def save(self, checkpoints: CheckpointDir, plan: TrainingPlan) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk does not take it.
        """
        facts = {
            "conditions": self._conditions,
            "rows": self._rows,
            "replicas": self._trainer.cluster.n_replicas,
            "position": asdict(self.position),
            "peak_rate": self.peak_rate,
            "best_epoch": self.best_epoch,
            "best_score": self._best_score,
            "is_finished": self.is_finished,
            "history": [asdict(row) for row in self.history],
            "step_losses": self.step_losses,
            "seconds": self._clock.seconds,
        }
        variables = {} if self.is_finished else self._trainer.state(plan)
        checkpoints.save(facts, {**variables, "best": self._best_weights})

    def load(self, checkpoint: Checkpoint | None, plan: TrainingPlan) -> None:
        """Continue from the chief's checkpoint; the other workers have None.

        Raises:
            UsageError: it is of another network or optimizer.
        """
        workers = self._trainer.cluster
        facts = workers.json_from_chief(checkpoint.state if checkpoint else None)
        then, now = facts.get("replicas", 1), workers.n_replicas
        if then != now:
            warn(
                f"the run trained on {then} devices and continues on {now}: the order of images "
                "stays; rounding, and the streams of dropout and augmentation, are others"
            )
        if facts["rows"] != self._rows:
            warn(
                "backbone features are cached now and were computed in each epoch before, or the "
                "other way round: the last digits may differ from those of an undisturbed run"
            )
        at = facts["position"]
        self.position = Position(
            at["epoch"], at["step"], Counts(**at["counts"]), at["seconds"], tuple(at["val_losses"])
        )
        self.peak_rate = facts["peak_rate"]
        self.best_epoch, self._best_score = facts["best_epoch"], tuple(facts["best_score"])
        self.is_finished = facts["is_finished"]
        self.history = [HistoryRow(**row) for row in facts["history"]]
        self.step_losses = facts["step_losses"]
        self._clock.add(facts["seconds"])
        if self.best_epoch is not None:
            self._set_best(self._trainer.snapshot())
        variables = {} if self.is_finished else self._trainer.state(plan)
        if checkpoint is not None:
            checkpoint.restore({**variables, "best": self._best_weights})
        for variable in self._best_weights:
            variable.assign(workers.from_chief(variable.numpy()))
        if not self.is_finished:
            self._trainer.spread_state(plan, self.position)

    def n_bytes(self, plan: TrainingPlan) -> int:
        """Return the size of a checkpoint."""
        state = self._trainer.state(plan)
        parts = [*state.values(), state["weights"]]
        return sum(v.dtype.size * v.shape.num_elements() for part in parts for v in part)

    def _set_best(self, values: list[Any]) -> None:
        if not self._best_weights:
            with tf.device("CPU"):
                self._best_weights = [tf.Variable(value) for value in values]
        for variable, value in zip(self._best_weights, values, strict=True):
            variable.assign(value)


def describe_conditions(experiment: Experiment) -> dict[str, Any]:
    """Return what must be the same for a resumed run to end with the bits of an undisturbed one."""
    network, data = experiment.network, experiment.data
    return {
        "data, SHA-256": [file.sha256 for file in data.dataset.files],
        **{f"{Path(p.path).name}, SHA-256": p.sha256 for f in data.dataset.files for p in f.parts},
        "split, SHA-256": data.splits.digest,
        "backbone weights": [network.weights.kind, network.weights.sha256],
        "parent's model, SHA-256": network.parent.model_sha256 if network.parent else None,
        "compute precision": network.precision[0],
        "engine of backbone features": network.engine,
        "fmnist_tf, SHA-256 of its code": _digest_code(),
        "Python": platform.python_version(),
        **describe_versions(_COMPUTING),
        "processors": len(usable_cpus()),
        "processor": describe_processor(),
    }


def require_same_work(experiment: Experiment) -> None:
    """Check that all workers would train the same network on the same data.

    Raises:
        UsageError: they would not.
    """
    workers = cluster.current()
    if workers.n_workers == 1:
        return
    own = ("processors", "processor", "data", "test_data", "labels", "cache", "weights", "parent")
    facts = {**experiment.config.to_json(), **describe_conditions(experiment)}
    facts = {name: value for name, value in facts.items() if name not in own}
    initial = json_digest(digest_weights(experiment.network.classifier))
    workers.require_same({**facts, "initial weights, SHA-256": initial})


def find_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line with both values for each entry that differs."""
    return [
        f"{name}: expected {_show(then.get(name))}, found {_show(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]


def _show(value: Any) -> str:
    return printable("none" if value is None else str(value), 400)


def _digest_code() -> str:
    """Return the SHA-256 of the package's modules, which change without a new version."""
    digest, folder = hashlib.sha256(), Path(fmnist_tf.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)} ".encode() + content)
    return digest.hexdigest()
