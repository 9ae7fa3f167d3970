"""The metrics of each epoch, and their CSV form `history.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


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


_HEADER = [field.name for field in fields(HistoryRow)]


def format_history(rows: Iterable[HistoryRow]) -> str:
    """Return the rows as CSV with a header; floats keep every digit (`repr`)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def parse_history(text: str) -> list[HistoryRow]:
    """Return the rows that `format_history` was given.

    Raises:
        ValueError, TypeError, csv.Error: the header is another, or a line is not an epoch.
    """
    header, *lines = csv.reader(text.splitlines() or [""])
    if header != _HEADER:
        raise ValueError(f"the header {','.join(header)}")
    return [
        HistoryRow(int(epoch), phase, *(float(number) for number in numbers))
        for epoch, phase, *numbers in lines
    ]
