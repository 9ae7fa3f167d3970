"""The examples that a page shows, as tiles: an image with its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmnist_tf.reporting.render import format_probability

_DISAGREEMENTS = 12  # images at most


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split, "val" or "test": labels (N,) int64, probabilities (N, K) float32.

    `arrays`, those of report.npz, have the pixels and perhaps the files of the examples that are
    shown, and the lines of all. `names` are K names for display.
    """

    split: str
    labels: np.ndarray
    probabilities: np.ndarray
    arrays: Mapping[str, np.ndarray]
    names: Sequence[str]

    def tile(self, index: int) -> dict[str, Any]:
        """Return pixels (784,) uint8, captions and place of an example that is shown."""
        place = np.flatnonzero(self.arrays[f"{self.split}_shown"] == index)[0]
        files = self.arrays.get(f"{self.split}_files")  # if there are several
        file = "" if files is None else f"{files[place]} "
        row, label = self.probabilities[index], int(self.labels[index])
        first, second = (int(k) for k in np.argsort(-row, kind="stable")[:2])
        captions = [("true", "", label), ("predicted", "→ ", first)]
        if label == first:
            captions = [("correct", "✓ ", label), ("second", "or ", second)]
        chance = format_probability(row[first])
        return {
            "label": label,
            "pixels": self.arrays[f"{self.split}_pixels"][place],
            "alt": f"{self.names[label]}, predicted {self.names[first]} ({chance})",
            "prediction": self.names[first],
            "captions": [(word, sign, self.names[k], float(row[k])) for word, sign, k in captions],
            "place": f"{file}line {self.arrays[f'{self.split}_lines'][index]}",
        }

    def tiles(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Return the tiles of several examples."""
        return [self.tile(index) for index in indices.tolist()]


def find_disagreements(first: Examples, second: Examples) -> list[list[dict[str, Any]]]:
    """Return tiles of images that only the first run predicts correctly, and only the second.

    They are the most confident mistakes of the other run, among the images that either shows.
    """
    shown = {
        key: np.concatenate([run.arrays[key] for run in (first, second)])
        for key in ("test_shown", "test_pixels", "test_files")
        if key in first.arrays and key in second.arrays
    }
    rows = np.unique(shown["test_shown"])
    columns = []
    for correct, wrong in ((first, second), (second, first)):
        is_correct, other_is_correct = (
            run.probabilities[rows].argmax(axis=1) == run.labels[rows] for run in (correct, wrong)
        )
        found = rows[is_correct & ~other_is_correct]
        order = np.argsort(-wrong.probabilities[found].max(axis=1), kind="stable")
        with_pixels = replace(wrong, arrays={**wrong.arrays, **shown})
        columns.append(with_pixels.tiles(found[order[:_DISAGREEMENTS]]))
    return columns
