"""What the columns hold, where no name tells it: label or pixel, one-hot labels, colour planes.

Rows are lists of cells, taken from all over a file; columns count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmnist_tf.data.csv.cells import is_whole, label_text, pixel_value
from fmnist_tf.data.csv.faults import refuse

CLEAR = 4
"""How many times as label-like the better of two columns must be. Of 1,000 rows of Fashion-MNIST or
of scikit-learn's digits it is over 1,000 times, of two columns of noise 1.1 times at most; of six
rows of noise one column passes in 8 % of cases."""
MIN_LIKENESS = 0.02

Rows = Sequence[Sequence[str]]


def label_likeness(rows: Rows, column: int, beside: int) -> float:
    """Return how much a column looks like labels and unlike the pixels beside it, 0..1.

    Labels take few values without gaps, no value in most rows, and do not follow the pixel beside
    them; a pixel near the border is constant in most rows, or follows its neighbour. What no pixel
    can be (a name, a negative number) in most rows is a label: 1.
    """
    cells = [(label_text(row[column]), pixel_value(row[beside])) for row in rows]
    pairs = [(text, pixel) for text, pixel in cells if isinstance(text, str)]
    if 2 * len(pairs) <= len(cells):
        return 0.0
    if 2 * sum(not isinstance(pixel_value(text), int) for text, _ in pairs) > len(pairs):
        return 1.0
    known = [(int(t), p) for t, p in pairs if is_whole(t) and isinstance(p, int)]
    values, counts = np.unique([value for value, _ in known], return_counts=True)
    if len(values) < 2:
        return 0.0
    density = len(values) / (int(values[-1]) - int(values[0]) + 1)
    most_common = counts.max() / len(known)
    return float((1 - abs(_correlation(*np.transpose(known)))) * density * (1 - most_common))


def choose_label(rows: Rows, columns: Sequence[int], beside: Sequence[int]) -> int:
    """Return which of two columns is the label; E026, it is not clear."""
    scores = [label_likeness(rows, *pair) for pair in zip(columns, beside, strict=True)]
    best = int(scores[1] > scores[0])
    if scores[best] < max(MIN_LIKENESS, CLEAR * scores[1 - best]):
        first, last = (", ".join(row[column].strip() for row in rows[:8]) for column in columns)
        raise refuse("E026 unclear", columns[0] + 1, first, columns[1] + 1, last)
    return columns[best]


def is_one_hot(rows: Rows, columns: Sequence[int]) -> bool:
    """Return whether each row has a 1 in one of the columns and 0 in the others."""
    values = [sorted(str(pixel_value(row[column])) for column in columns) for row in rows]
    return bool(rows) and all(row == ["0"] * (len(columns) - 1) + ["1"] for row in values)


def is_planar(rows: Rows, columns: Sequence[int]) -> bool:
    """Return whether colours come in planes (all red values first) and not pixel by pixel.

    The colours of a pixel and neighbouring pixels go together, pixels a third of the image apart
    do not.
    """
    values = [[pixel_value(row[column]) for column in columns] for row in rows]
    pixels = np.array([row for row in values if all(isinstance(value, int) for value in row)])
    if not len(pixels):
        return False
    n = len(columns) // 3
    planes = _correlation(pixels[:, :n], pixels[:, n : 2 * n])
    return planes > 0.75 * _correlation(pixels[:, 0::3], pixels[:, 1::3])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two arrays, 0 if one is constant."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
