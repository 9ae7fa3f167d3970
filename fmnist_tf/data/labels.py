"""Labels as text -> class indices; N images, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.csv.cells import is_whole, label_text
from fmnist_tf.data.images import Table
from fmnist_tf.errors import DataError, Problem, file_error, printable

MAX_CLASSES = 1000
FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The class names of labels 0..9, https://github.com/zalandoresearch/fashion-mnist#labels."""


def sort_labels(codes: dict[str, int]) -> tuple[list[str], NDArray[np.int32]]:
    """Return K labels of codes 0..K-1 in order, and the place (K,) of each code in that order.

    By value if they are whole numbers, else by text.
    """
    texts = sorted(codes, key=int if all(map(is_whole, codes)) else str)
    return texts, np.argsort([codes[text] for text in texts]).astype(np.int32)


def encode_labels(
    path: Path, labels: Sequence[str], first_line: int = 1
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the K distinct labels in order, and the index (N,) of each label in them.

    Raises:
        DataError: E027, a label that is missing, a fraction or unprintable, or names beside
            numbers; E028, more than 1,000 classes; E036, E037, a number in another notation.
    """
    codes: dict[str, int] = {}
    code_of: dict[str, int] = {}
    for text in dict.fromkeys(labels):
        value = label_text(text)
        if isinstance(value, Problem):
            line = first_line + labels.index(text)
            raise DataError([replace(value, path=str(path), line=line)])
        code_of[text] = codes.setdefault(value, len(codes))
    if len({is_whole(text) for text in codes}) > 1:
        found = f"labels such as {', '.join(list(codes)[:3])}"
        raise file_error("E027", str(path), found, "numbers in every row, or names")
    if len(codes) > MAX_CLASSES:
        found = f"{len(codes):,} different labels"
        raise file_error("E028", str(path), found, f"at most {MAX_CLASSES:,} classes")
    values, place = sort_labels(codes)
    return tuple(values), place[[code_of[text] for text in labels]]


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
