"""The state of a run's training: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import tensorflow as tf

from fmnist_tf.cli.terminal import warn
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.pipeline.resume import describe_conditions
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.training.checkpoint import Checkpoint, CheckpointDir
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.records import Counts, Position, TrainingPlan


class TrainState:
    """All that the epochs to come depend on, besides settings and data.

    `rows` is the digest of what the trainer reads, pixels or cached features.

    Attributes:
        history: one row for each epoch so far.
        step_losses: mean loss of each step's batch so far, 6 significant digits.
        position: of the variables of the network, the optimizer, the averages and dropout.
        best_epoch: most correct on val, then lowest loss, then earliest; None before the first.
        is_finished: training is over; only the best epoch is kept.
    """

    def __init__(self, trainer: Trainer, experiment: Experiment, rows: str) -> None:
        self._trainer, self._rows = trainer, rows
        self._clock = experiment.invocation.clock
        self._conditions = describe_conditions(experiment)
        self.history: list[HistoryRow] = []
        self.step_losses: list[float] = []
        self.position = Position()
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
        """Take note of an epoch; return whether it is the best, whose weights are kept."""
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
            "peak_rate": plan.rates.peak,
            "best_epoch": self.best_epoch,
            "best_score": self._best_score,
            "is_finished": self.is_finished,
            "history": [asdict(row) for row in self.history],
            "step_losses": self.step_losses,
            "seconds": self._clock.seconds,
        }
        variables = {} if self.is_finished else self._trainer.state(plan)
        checkpoints.save(facts, {**variables, "best": self._best_weights})

    def load(self, checkpoint: Checkpoint | None, plan: TrainingPlan) -> float:
        """Continue from the chief's checkpoint; the other workers have None.

        Returns:
            The learning rate that the schedule is scaled to; the finder's, if it chose.

        Raises:
            UsageError: it is of another network or optimizer.
        """
        workers = self._trainer.cluster
        facts = workers.json_from_chief(checkpoint.state if checkpoint else None)
        then, now = facts["replicas"], workers.n_replicas
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
        return float(facts["peak_rate"])

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
