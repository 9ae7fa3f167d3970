"""Labels as text, in a column or a file of their own -> class indices; N images, K classes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.arrays import read_array
from fmnist_tf.data.csv.cells import is_whole, label_text
from fmnist_tf.data.csv.faults import MAX_CLASSES, fault
from fmnist_tf.data.files import find_kind, read_bytes
from fmnist_tf.data.images import Table
from fmnist_tf.errors import DataError, Problem, file_error, printable

FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The class names of labels 0..9, https://github.com/zalandoresearch/fashion-mnist#labels."""


class LabelCodes:
    """Codes 0..K-1 of the distinct labels of one file, in the order of their appearance."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._lines: dict[str, int] = {}  # of the first of its kind
        self._counts: Counter[str] = Counter()

    def encode(self, cell: str, line: int) -> int | Problem:
        """Return the code of the label in a cell; or E027, E028, E036, E037."""
        text = label_text(cell)
        if isinstance(text, Problem):
            return text
        if text not in self._codes:
            if len(self._codes) == MAX_CLASSES:
                return fault("E028", text)
            self._codes[text], self._lines[text] = len(self._codes), line
        self._counts[text] += 1
        return self._codes[text]

    def find_mixed(self) -> Iterator[tuple[int, Problem]]:
        """Yield line and fault (E027) of names among numbers, or the reverse: of the rarer kind."""
        n_whole = sum(n for text, n in self._counts.items() if is_whole(text))
        if 0 < n_whole < self._counts.total():
            is_rarer = 2 * n_whole < self._counts.total()
            kinds = ("names", "whole numbers") if is_rarer else ("whole numbers", "names")
            for text, line in self._lines.items():
                if is_whole(text) == is_rarer:
                    yield line, fault("E027 mixed", text, *kinds)

    def sort(self) -> tuple[list[str], NDArray[np.int32]]:
        """Return the K labels as `sort_labels` does, and the place (K,) of each code in them."""
        texts = sort_labels(self._codes)
        return texts, np.argsort([self._codes[text] for text in texts]).astype(np.int32)


def sort_labels(texts: Collection[str]) -> list[str]:
    """Return labels in order: by value if all are whole numbers, else by text."""
    return sorted(texts, key=int if all(map(is_whole, texts)) else str)


def encode_labels(
    path: Path, labels: Sequence[str], first_line: int = 1
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the K distinct labels in order, and the index (N,) of each label in them.

    Raises:
        DataError: the first fault: E027, a label that is missing, a fraction or unprintable, or
            names beside numbers; E028, more than 1,000 classes; E036, E037, another notation.
    """
    known = LabelCodes()
    codes = [known.encode(text, line) for line, text in enumerate(labels, first_line)]
    faults = [(n, code) for n, code in enumerate(codes, first_line) if isinstance(code, Problem)]
    for line, problem in (*faults, *known.find_mixed()):
        raise DataError([replace(problem, path=str(path), line=line)])
    values, place = known.sort()
    return tuple(values), place[np.array(codes, int)]


def read_labels(
    path: Path, n_images: int, images: str
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the distinct labels and their index, as `encode_labels`, from a file of labels alone.

    That is an IDX or NPY file, or a column of text, perhaps with a header, and perhaps a column of
    row numbers before it. `images` is the file of the images, for messages.

    Raises:
        DataError: E009, another format; E011, not UTF-8; E045, another number of labels than
            images, or more columns; those of `read_array` and of `encode_labels`.
    """
    kind = find_kind(path)
    has_header = False
    if kind.form in ("npy", "idx labels"):
        array = read_array(path)
        array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        if array.ndim != 1 or array.dtype.kind not in "iufU":
            found = f"an array {array.shape} {array.dtype}"
            raise file_error("E045", str(path), found, "labels, (N,) whole numbers or texts")
        labels = array.astype(str).tolist()
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
    numbers = [row[0] for row in rows[1:]]  # the first may be in a header
    is_numbered = False
    if widths == [2] and numbers and is_whole(numbers[0]) and len(numbers[0]) < 20:
        first = int(numbers[0])
        is_numbered = numbers == [str(k) for k in range(first, first + len(numbers))]
    if widths != [1] and not is_numbered:
        found = f"lines of {' and '.join(map(str, widths[:3])) or 'no'} columns"
        expected = "one column of labels, perhaps after row numbers"
        raise file_error("E045", str(path), found, expected)
    return [row[-1].strip() for row in rows]


def index_classes(class_names: Sequence[str]) -> dict[str, int]:
    """Return the class index of each text that stands for a class in a label column.

    That is the class name, and for Fashion-MNIST's class names also the number.
    """
    index = {name: k for k, name in enumerate(class_names)}
    # The class names of a file are in alphabetical order, which this is not.
    if tuple(class_names) == FASHION_MNIST:
        index |= {str(k): k for k in range(len(FASHION_MNIST))}
    return index


def map_labels(
    table: Table, class_names: Sequence[str], where: str = "the run"
) -> NDArray[np.int64]:
    """Return the labels (N,) of a table as indices into the class names of `where`.

    Raises:
        DataError: E026, no labels; E028, a label that is no class; E029, a name where classes are
            numbers or the reverse. One problem for each such label, at its first line.
    """
    require_labels(table)
    index = index_classes(class_names)
    shown = ", ".join(printable(text, 20) for text in list(index)[:10])
    expected = f"a class of {where}: {shown}{', ...' if len(index) > 10 else ''}"
    kinds = {is_whole(text) for text in index}
    problems = []
    for value, text in enumerate(table.label_values):
        if text not in index:
            code, hint = "E028", _hint(table.label_values, class_names)
            if is_whole(text) not in kinds:
                code, hint = "E029", "write names in both files, or numbers in both"
            problems.append(_problem(table, value, code, expected, hint))
    if problems:
        raise DataError(sorted(problems, key=lambda problem: (problem.path, problem.line or 0)))
    of_value = np.array([index[text] for text in table.label_values], np.int64)
    return of_value[np.asarray(table.label_index)]


def require_labels(table: Table, minimum: int = 1) -> None:
    """Check that a table is labelled (E026), with at least `minimum` classes (E030)."""
    if table.label_index is None:
        hint = "name it with --label-column, or give a file of the labels with --labels FILE"
        raise file_error("E026", table.path, "no label column", "labelled images", hint)
    if len(table.label_values) < minimum:
        hint = "is this the label column? name it with --label-column"
        raise DataError([_problem(table, 0, "E030", f"{minimum} classes or more", hint)])


def _problem(table: Table, value: int, code: str, expected: str, hint: str) -> Problem:
    row = np.argmax(np.asarray(table.label_index) == value)
    (path,), (line,) = table.find(np.array([row]))
    only = "only " if len(table.label_values) == 1 else ""
    found = f"{only}the label {printable(table.label_values[value])}"
    return Problem(code, path, int(line), table.label_field, None, found, expected, hint)


def _hint(found: Sequence[str], expected: Sequence[str]) -> str:
    if all(map(is_whole, (*found, *expected))):
        ours, theirs = sorted(map(int, expected)), sorted(map(int, found))
        if (ours[0], theirs[0], theirs[-1]) == (0, 1, ours[-1] + 1):
            return "labels that count from 1 where the classes count from 0? subtract 1"
        if (ours[0], theirs[0], theirs[-1]) == (1, 0, ours[-1] - 1):
            return "labels that count from 0 where the classes count from 1? add 1"
    return "no training image has this class; another spelling?"
