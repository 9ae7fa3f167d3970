"""Which class a label in a file stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmnist_tf.data.csv.table import CsvTable
from fmnist_tf.data.sample import GARMENTS as FASHION_MNIST
from fmnist_tf.errors import DataError, Problem, printable


def index_classes(class_names: Sequence[str]) -> dict[str, int]:
    """Return the class index of each text that stands for a class: its name.

    Where classes 0..9 were named as in Fashion-MNIST, the numbers stand for them too.
    """
    index = {name: k for k, name in enumerate(class_names)}
    # Names that a file itself holds are in alphabetical order, which this is not.
    if tuple(class_names) == FASHION_MNIST:
        index |= {str(k): k for k in range(len(FASHION_MNIST))}
    return index


def map_labels(table: CsvTable, class_names: Sequence[str], where: str = "the run") -> np.ndarray:
    """Return the table's labels as class indices, (N,) int64.

    Raises:
        DataError: E026 without labels; E028 for each label that is no class, at its first line.
    """
    if table.label_index is None:
        hint = "name it with --label-column; without labels use `python -m fmnist_tf.predict`"
        found = "no label column"
        raise DataError(
            [Problem("E026", table.path, None, None, None, found, "labelled images", hint)]
        )
    index = index_classes(class_names)
    problems = []
    for place, text in enumerate(table.label_values):
        if text not in index:
            line = table.first_line + int(np.argmax(table.label_index == place))
            shown = ", ".join(printable(name, 20) for name in list(index)[:10])
            expected = f"a class of {where}: {shown}{', ...' if len(index) > 10 else ''}"
            found = f"the label {printable(text)}"
            field, hint = table.label_field, "the model has never seen this class"
            problems.append(Problem("E028", table.path, line, field, None, found, expected, hint))
    if problems:
        raise DataError(sorted(problems, key=lambda problem: problem.line or 0))
    of_value = np.array([index[text] for text in table.label_values], np.int64)
    return of_value[np.asarray(table.label_index)]
