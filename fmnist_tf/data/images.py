"""Images in memory or mapped from disk: those of files (`Table`), and of a run (`Pixels`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS

BLOCK = 4096
"""Images that `read_blocks` reads at once; bounds the memory."""


class PixelRows(Protocol):
    """Images (N, 784) uint8: an array in memory or mapped from disk, or a view of others."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class JoinedRows:
    """The rows of several arrays, one after the other; if `picked`, those with these numbers.

    A row is copied when it is asked for: by a number from 0, a slice, or an array of numbers.
    """

    def __init__(self, parts: Sequence[PixelRows], picked: NDArray[np.int64] | None = None) -> None:
        self._parts, self._picked = parts, picked
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._picked is None else len(self._picked)

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        numbers = rows.reshape(-1) if self._picked is None else self._picked[rows].reshape(-1)
        taken = take_rows([part.__getitem__ for part in self._parts], self._starts, numbers)
        return taken.reshape(*rows.shape, *taken.shape[1:])


class MirroredRows:
    """The mirror images of others, (N, 784), made as they are read."""

    def __init__(self, images: PixelRows) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]:
        images = self._images[rows].reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
        return images[:, :, ::-1].reshape(-1, N_PIXELS)


def take_rows(
    takes: Sequence[Callable[[NDArray[np.int64]], NDArray[Any]]],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[Any]:
    """Return rows of several sources, (B, ...); source k has those from `starts[k]` on."""
    sources = np.searchsorted(starts, rows, side="right") - 1
    if len(present := np.unique(sources)) <= 1:  # saves a copy of large rows
        source = int(present[0]) if len(present) else 0
        return takes[source](rows - starts[source])
    taken: NDArray[Any] | None = None
    for source in present:
        here = np.flatnonzero(sources == source)
        found = takes[source](rows[here] - starts[source])
        taken = np.empty((len(rows), *found.shape[1:]), found.dtype) if taken is None else taken
        taken[here] = found
    return np.asarray(taken)


def read_blocks(pixels: PixelRows) -> Iterator[NDArray[np.uint8]]:
    """Yield images (N, 784) some thousand at a time."""
    for first in range(0, len(pixels), BLOCK):
        yield pixels[first : first + BLOCK]


@dataclass(frozen=True)
class Table:
    """The validated images of one file, folder or pattern of files, N of them.

    Attributes:
        pixels: (N, 784) uint8, read-only.
        label_index: (N,) int32 indices into `label_values`; None if unlabelled.
        label_values: the K distinct labels as text, by value if all are whole numbers, else by
            text; empty if unlabelled.
        path: the file, or the pattern, as the user named it.
        sha256: of the file's bytes on disk; of several files, of their SHA-256 in order.
        digest, label_digest: SHA-256 of the bytes of `pixels` and `label_index`; "" if unlabelled.
        first_line: line of row 0, so row i is in line `first_line + i`.
        decisions: what was decided, one sentence each.
        label_field: the label's 1-based field, or None.
        form: "csv", "idx", "npy", "parquet" or "pictures".
        layout: of the columns, which files that are read together have in common.
        labels_path, labels_sha256: of the file of the labels, if they are in another one; else "".
        parts: a table for each of several files, without labels; empty for one file.
    """

    pixels: PixelRows
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
    layout: str = ""
    labels_path: str = ""
    labels_sha256: str = ""
    parts: tuple[Table, ...] = ()

    def find(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """Return the paths of the files that hold images, and their lines in them, (B,) each."""
        parts = self.parts or (self,)
        starts = np.cumsum([0, *(len(part.pixels) for part in parts)])
        places = np.searchsorted(starts, rows, side="right") - 1
        first_lines = np.array([part.first_line for part in parts])
        paths = [parts[place].path for place in places]
        return paths, rows - starts[places] + first_lines[places]

    def to_record(self) -> dict[str, Any]:
        """Return what a run records of the file or files, as JSON takes it."""
        parts = {"parts": [part.to_record() for part in self.parts]} if self.parts else {}
        return {
            "path": self.path,
            "sha256": self.sha256,
            "rows": len(self.pixels),
            "pixels_sha256": self.digest,
            "labels_path": self.labels_path,
            "labels_sha256": self.labels_sha256,
            **parts,
        }

    def to_pixels(self, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> Pixels:
        """Return the images with these labels (N,) in place of the file's own."""
        return Pixels(self.pixels, labels, class_names, self.digest, self.find)


@dataclass(frozen=True)
class Pixels:
    """Labelled images.

    Attributes:
        pixels: (N, 784) uint8, 0 = background, row by row.
        labels: (N,) int64 in 0..K-1.
        class_names: K names, by label.
        digest: SHA-256 of the pixels; for rows taken from others, of their digest and the row
            numbers.
        find: see `Table.find`.
    """

    pixels: PixelRows
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    digest: str
    find: Callable[[NDArray[np.int64]], tuple[list[str], NDArray[np.int64]]]

    def pick(self, rows: NDArray[np.int64]) -> Pixels:
        """Return the images with these row numbers, which are not copied."""
        name = f"picked {self.digest}".encode()
        return replace(
            self,
            pixels=JoinedRows([self.pixels], rows),
            labels=self.labels[rows],
            digest=hashlib.sha256(name + rows.astype("<i8").tobytes()).hexdigest(),
            find=lambda picked: self.find(rows[picked]),
        )
