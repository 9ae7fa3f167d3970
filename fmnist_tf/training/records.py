"""What the training loop is told, and what it says: plan, position, epoch, counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fmnist_tf.training.schedules import RatePlan


@dataclass(frozen=True)
class Counts:
    """Sums over examples.

    Attributes:
        loss_sum: cross entropy in nats, summed over the examples.
        correct: examples whose most probable class is the label.
        total: number of examples.
    """

    loss_sum: float = 0.0
    correct: int = 0
    total: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.total + other.total,
        )

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats; NaN of no example."""
        return self.loss_sum / self.total if self.total else math.nan

    @property
    def accuracy(self) -> float:
        """Fraction of correct examples, 0..1; NaN of no example."""
        return self.correct / self.total if self.total else math.nan


@dataclass(frozen=True)
class Position:
    """How far training has come; the rest of its state are the variables of `Trainer.state`.

    Attributes:
        epoch: under way, 1-based; epochs + 1 after the last.
        step: steps taken in it.
        counts: sums over those steps.
        seconds: wall time of those steps.
        val_losses: mean cross entropy in nats after each earlier epoch.
    """

    epoch: int = 1
    step: int = 0
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    val_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the training rows.

    Attributes:
        number: 1-based.
        train: sums while training, with dropout and augmentation, each batch before its step. The
            loss includes label smoothing and class weights. The label of a mixed image is that with
            the larger weight.
        val: sums over the validation rows after the pass.
        learning_rate: of the last step.
        seconds: wall time of training and validation.
    """

    number: int
    train: Counts
    val: Counts
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of training, without the network and the optimizer.

    Attributes:
        rates: learning rate of every step, and the number of epochs.
        batch_size: B; the last batch of a pass may be smaller.
        seed: of order, views, augmentation and dropout.
        n_views: views of each row in the source; see `batches.StackedRows`.
        augment: kinds of `augmentation.augment`, for raw pixels.
        background: grey level that augmentation fills with, 0..255.
        label_smoothing: fraction of the target that is spread evenly over the classes (Szegedy et
            al. 2016, section 7).
        class_weights: (K,) factor on the loss of each class, or None.
        ema_decay: per step, of the exponential moving average of weights and BatchNorm statistics,
            which replaces them in validation and snapshots; 0 for none.
    """

    rates: RatePlan
    batch_size: int
    seed: int
    n_views: int = 1
    augment: tuple[str, ...] = ()
    background: int = 0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ema_decay: float = 0.0
