"""The metrics of an epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HistoryRow:
    """One epoch, one line of `history.csv`; the field names are its header.

    Attributes:
        epoch: 1-based; 0 is the starting point of a finetune run, measured before any training.
        phase: `frozen`, `finetune` or `scratch`.
        loss: mean cross entropy in nats on the training examples; NaN for epoch 0.
        accuracy: 0..1 on the training examples; NaN for epoch 0.
        val_loss: mean cross entropy in nats on the validation examples.
        val_accuracy: 0..1 on the validation examples.
        learning_rate: at the end of the epoch.
        seconds: wall time of the epoch, validation included.
    """

    epoch: int
    phase: str
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
