"""Images in memory or mapped from disk: one file's (`Table`), and what a run uses (`Pixels`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Table:
    """The validated images of one file or folder, N of them.

    Attributes:
        pixels: (N, 784) uint8, row-major, read-only.
        label_index: (N,) int32 indices into `label_values`; None if unlabelled.
        label_values: the K distinct labels as text, by value if all are whole numbers, else by
            text; empty if unlabelled.
        path: the file as the user named it.
        sha256: of the file's bytes on disk.
        digest, label_digest: SHA-256 of the bytes of `pixels` and `label_index`; "" if unlabelled.
        first_line: line of row 0, so row i is in line `first_line + i`.
        decisions: what was decided, one sentence each.
        label_field: the label's 1-based field, or None.
        form: "csv", "idx", "npy", "parquet" or "pictures".
        labels_path, labels_sha256: of the file of the labels, if they are in another one; else "".
    """

    pixels: NDArray[np.uint8]
    label_index: NDArray[np.int32] | None
    label_values: tuple[str, ...]
    path: str
    sha256: str
    digest: str
    label_digest: str
    first_line: int = 1
    decisions: tuple[str, ...] = ()
    label_field: int | None = None
    form: str = "csv"
    labels_path: str = ""
    labels_sha256: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return what a run records of the file, as JSON takes it."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "rows": len(self.pixels),
            "pixels_sha256": self.digest,
            "labels_path": self.labels_path,
            "labels_sha256": self.labels_sha256,
        }

    def to_pixels(self, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> Pixels:
        """Return the images with these labels (N,) in place of the file's own."""
        lines = self.first_line + np.arange(len(self.pixels))
        return Pixels(self.pixels, labels, class_names, lines, self.digest)


@dataclass(frozen=True)
class Pixels:
    """Labelled images.

    Attributes:
        pixels: (N, 784) uint8, 0 = background, row by row.
        labels: (N,) int64 in 0..K-1.
        class_names: K names, by label.
        lines: (N,) int64, 1-based line of each image in its file.
        digest: SHA-256 of the pixels; for rows taken from others, of their digest and the row
            numbers.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    lines: NDArray[np.int64]
    digest: str

    def pick(self, rows: NDArray[np.int64]) -> Pixels:
        """Return a copy of the images with these row numbers."""
        digest = hashlib.sha256(self.digest.encode() + rows.astype("<i8").tobytes()).hexdigest()
        return Pixels(
            self.pixels[rows], self.labels[rows], self.class_names, self.lines[rows], digest
        )
