"""Labels as text -> class indices; N images, K classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.csv.cells import is_whole, label_text
from fmnist_tf.data.csv.faults import MAX_CLASSES, fault
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
        wholes = {text for text in self._codes if is_whole(text)}
        names = set(self._codes) - wholes
        if not wholes or not names:
            return
        kinds = [(names, "names"), (wholes, "whole numbers")]
        kinds.sort(key=lambda kind: sum(self._counts[text] for text in kind[0]))
        (rarer, name), (_, name_of_others) = kinds
        for text in self._codes:
            if text in rarer:
                yield self._lines[text], fault("E027 mixed", text, name_of_others, name)

    def sort(self) -> tuple[list[str], NDArray[np.int32]]:
        """Return the K labels in order, and the place (K,) of each code in that order.

        By value if they are whole numbers, else by text.
        """
        texts = sorted(self._codes, key=int if all(map(is_whole, self._codes)) else str)
        return texts, np.argsort([self._codes[text] for text in texts]).astype(np.int32)


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
        raise DataError(sorted(problems, key=lambda problem: problem.line or 0))
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
    line = table.first_line + int(np.argmax(np.asarray(table.label_index) == value))
    only = "only " if len(table.label_values) == 1 else ""
    found = f"{only}the label {printable(table.label_values[value])}"
    return Problem(code, table.path, line, table.label_field, None, found, expected, hint)


def _hint(found: Sequence[str], expected: Sequence[str]) -> str:
    if all(map(is_whole, (*found, *expected))):
        ours, theirs = sorted(map(int, expected)), sorted(map(int, found))
        if (ours[0], theirs[0], theirs[-1]) == (0, 1, ours[-1] + 1):
            return "labels that count from 1 where the classes count from 0? subtract 1"
        if (ours[0], theirs[0], theirs[-1]) == (1, 0, ours[-1] - 1):
            return "labels that count from 0 where the classes count from 1? add 1"
    return "no training image has this class; another spelling?"
