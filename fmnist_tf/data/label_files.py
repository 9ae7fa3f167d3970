"""Labels in a file of their own: a column of text, IDX or NPY."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.archives import find_kind, list_files, open_file
from fmnist_tf.data.arrays import read_label_array
from fmnist_tf.data.csv.cells import Fault, is_whole, label_text
from fmnist_tf.data.csv.labels import MAX_CLASSES, LabelCodes
from fmnist_tf.errors import DataError, Problem, file_error

_DELIMITERS = ",;\t"


def read_labels(path: Path, n_images: int, images: str) -> tuple[list[str], int]:
    """Return the labels of a file as texts, one for each image, and the line of the first.

    A file of text has one column, perhaps a header, and perhaps a column of row numbers before it.

    Args:
        path: of the labels, perhaps gzipped or in an archive.
        n_images: how many there must be.
        images: the file of the images, for the message.

    Raises:
        DataError: E001, E002, E003, E008, E009, E011, E045: another number of labels than images,
            or more columns.
    """
    if path.exists() and not path.is_file():
        found = "a directory" if path.is_dir() else "a pipe, socket or device"
        raise file_error("E002", str(path), found, "a file of labels", "check --labels")
    kind = find_kind(path)
    if kind.form in ("zip", "npz") and len(members := list_files(path)) == 1:
        path, kind = members[0], find_kind(members[0])
    if kind.form in ("npy", "idx labels"):
        labels, first = read_label_array(path), 1
    elif kind.form != "text":
        raise kind.refuse(path, "a file of labels: a column of text, IDX or NPY")
    else:
        labels = _read_column(path)
        has_header = len(labels) == n_images + 1 and not all(map(is_whole, (labels[0], labels[-1])))
        labels, first = labels[has_header:], 1 + has_header
    if len(labels) != n_images:
        found, expected = f"{len(labels):,} labels", f"{n_images:,}, one for each image of {images}"
        raise file_error("E045", str(path), found, expected, "is it the file of these images?")
    return labels, first


def encode_labels(
    path: Path, labels: Sequence[str], first_line: int
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the K distinct labels in order, and the index (N,) of each label in them.

    Raises:
        DataError: E027, a label that is missing, a fraction or unprintable, or names beside
            numbers; E028, more than 1,000 classes; E036, E037, a number in another notation.
    """
    codes = LabelCodes()
    code_of: dict[str, int] = {}
    for text in dict.fromkeys(labels):
        value = label_text(text)
        if isinstance(value, Fault):
            line = first_line + labels.index(text)
            problem = Problem(value.code, str(path), line, None, None, value.found, value.expected)
            raise DataError([replace(problem, hint=value.hint)])
        code_of[text] = codes.add(value)
    if codes.is_mixed:
        found = f"labels such as {', '.join(list(codes.codes)[:3])}"
        raise file_error("E027", str(path), found, "numbers in every row, or names")
    if len(codes.codes) > MAX_CLASSES:
        found = f"{len(codes.codes):,} different labels"
        raise file_error("E028", str(path), found, f"at most {MAX_CLASSES:,} classes")
    values, place = codes.sort()
    return tuple(values), place[[code_of[text] for text in labels]]


def _read_column(path: Path) -> list[str]:
    try:
        with open_file(path) as (stream, max_bytes):
            text = stream.read(max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise file_error("E011", str(path), "text that is not UTF-8", "UTF-8") from None
    except OSError as error:
        code = "E003" if isinstance(error, PermissionError) else "E001"
        found, expected = error.strerror or str(error), "a file of labels"
        raise file_error(code, str(path), found, expected, "check --labels") from None
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise file_error("E045", str(path), str(error), "one label a line") from None
    widths = {len(row) for row in rows}
    numbers = [row[0] for row in rows[-2:]]
    is_numbered = (
        widths == {2}
        and all(map(is_whole, numbers))
        and (len(rows) < 3 or int(numbers[1]) == int(numbers[0]) + 1)
    )
    if widths != {1} and not is_numbered:
        shown = " and ".join(map(str, sorted(widths)[:3])) or "no"
        expected = "one column of labels, perhaps after row numbers"
        raise file_error("E045", str(path), f"lines of {shown} columns", expected)
    return [row[-1].strip() for row in rows]
