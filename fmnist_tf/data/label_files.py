"""Labels in a file of their own: a column of text, IDX or NPY."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.arrays import read_array
from fmnist_tf.data.csv.cells import is_whole
from fmnist_tf.data.files import find_kind, read_bytes
from fmnist_tf.data.labels import encode_labels
from fmnist_tf.errors import file_error


def read_labels(
    path: Path, n_images: int, images: str
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the K distinct labels in a file, in order, and the index (N,) of each image's label.

    A file of text has one column, perhaps a header, and perhaps a column of row numbers before it.
    `images` is the file of the images, for the message.

    Raises:
        DataError: E009, another format; E011, not UTF-8; E045, another number of labels than
            images, or more columns; those of `read_array` and of `encode_labels`.
    """
    kind = find_kind(path)
    has_header = False
    if kind.form in ("npy", "idx labels"):
        labels = _read_array(path)
    elif kind.form == "text":
        labels = _read_column(path)
        has_header = len(labels) == n_images + 1 and not all(map(is_whole, (labels[0], labels[-1])))
    else:
        raise kind.refuse(path, "a file of labels: a column of text, IDX or NPY")
    labels = labels[has_header:]
    if len(labels) != n_images:
        found, expected = f"{len(labels):,} labels", f"{n_images:,}, one for each image of {images}"
        raise file_error("E045", str(path), found, expected, "is it the file of these images?")
    return encode_labels(path, labels, 1 + has_header)


def _read_array(path: Path) -> list[str]:
    array = read_array(path)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iufU":
        found, expected = f"{array.shape} {array.dtype}", "labels, (N,) whole numbers or texts"
        raise file_error("E045", str(path), f"an array {found}", expected)
    return array.astype(str).tolist()


def _read_column(path: Path) -> list[str]:
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
        delimiter = max(",;\t", key=lines[0].count) if lines else ","
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(row)]
    except UnicodeDecodeError:
        raise file_error("E011", str(path), "text that is not UTF-8", "UTF-8") from None
    except csv.Error as error:
        raise file_error("E045", str(path), str(error), "one label a line") from None
    widths = sorted({len(row) for row in rows})
    is_numbered = False
    if widths == [2] and is_whole(rows[-1][0]) and len(rows[-1][0]) < 20:
        last = int(rows[-1][0])
        numbers = map(str, range(last - len(rows) + 2, last + 1))
        is_numbered = [row[0] for row in rows[1:]] == list(numbers)  # the first may be a header
    if widths != [1] and not is_numbered:
        found = f"lines of {' and '.join(map(str, widths[:3])) or 'no'} columns"
        expected = "one column of labels, perhaps after row numbers"
        raise file_error("E045", str(path), found, expected)
    return [row[-1].strip() for row in rows]
