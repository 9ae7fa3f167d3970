"""The distinct labels of a CSV in the order in which they are met."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.csv.cells import is_whole

MAX_CLASSES = 1000


class NotPlainError(Exception):
    """A file has a fault, or a form that only the exact scan reads."""


class LabelCodes:
    """Label texts -> codes that count them by first appearance."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Return the code of a label made by `label_text`."""
        return self.codes.setdefault(text, len(self.codes))

    @property
    def is_mixed(self) -> bool:
        """Whether some labels are whole numbers and others names."""
        return len({is_whole(text) for text in self.codes}) > 1

    def sort(self) -> tuple[list[str], NDArray[np.int32]]:
        """Return the K labels in order, and the place (K,) of each code in that order.

        By value if they are whole numbers, else by text.
        """
        texts = list(self.codes)
        texts.sort(key=int if texts and is_whole(texts[0]) else str)
        place = np.empty(len(texts), np.int32)
        place[[self.codes[text] for text in texts]] = np.arange(len(texts))
        return texts, place
