"""What the columns hold, where no name tells it: label or pixel, one-hot labels, colour planes.

Rows are lists of cells, taken from all over a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fmnist_tf.data.csv.cells import is_whole, label_text, pixel_value

CLEAR = 4
"""How many times as label-like the better of two columns must be. Of 1,000 rows of Fashion-MNIST or
of scikit-learn's digits it is over 1,000 times, of two columns of noise 1.1 times at most; of six
rows of noise one column passes in 8 % of cases."""
MIN_LIKENESS = 0.02

Rows = Sequence[Sequence[str]]


class Candidate(NamedTuple):
    """A column that may hold the label, and the pixel column beside it; from 0."""

    column: int
    neighbour: int


def label_likeness(rows: Rows, candidate: Candidate) -> float:
    """Return how much a column looks like labels and unlike pixels, 0..1.

    Labels take few values without gaps, no value in most rows, and do not follow the pixel beside
    them; a pixel near the border is constant in most rows, or follows its neighbour. What no pixel
    can be (a name, a negative number) in most rows is a label: 1.
    """
    cells = [(label_text(row[candidate.column]), row[candidate.neighbour]) for row in rows]
    pairs = [(text, beside) for text, beside in cells if isinstance(text, str)]
    if 2 * len(pairs) <= len(cells):
        return 0.0
    if 2 * sum(not isinstance(pixel_value(text), int) for text, _ in pairs) > len(pairs):
        return 1.0
    known = [(int(text), value) for text, beside in pairs
             if is_whole(text) and isinstance(value := pixel_value(beside), int)]  # fmt: skip
    counts = Counter(value for value, _ in known)
    if len(counts) < 2:
        return 0.0
    most_common = counts.most_common(1)[0][1] / len(known)
    density = len(counts) / (max(counts) - min(counts) + 1)
    with np.errstate(invalid="ignore"):  # a constant neighbour has no correlation: nan
        likeness = abs(float(np.nan_to_num(np.corrcoef(np.transpose(known))[0, 1])))
    return (1 - likeness) * density * (1 - most_common)


def choose_label(rows: Rows, first: Candidate, last: Candidate) -> tuple[int | None, str]:
    """Return the label's column and why, or None and what both columns hold."""
    scores = [label_likeness(rows, candidate) for candidate in (first, last)]
    order = (0, 1) if scores[0] >= scores[1] else (1, 0)
    shown = []
    for candidate in (first, last):
        values = [row[candidate.column].strip() for row in rows]
        shown.append(f"column {candidate.column + 1} ({', '.join(values[:8])}, ...)")
    best, other = scores[order[0]], scores[order[1]]
    if best < MIN_LIKENESS or best < CLEAR * other:
        return None, f"{shown[0]} and {shown[1]}"
    column = (first, last)[order[0]].column
    kinds = len({row[column] for row in rows})
    why = f"{kinds} values in {len(rows)} rows, unlike the pixel beside it"
    return column, f"the label is column {column + 1}, by what it holds: {why}"


def is_one_hot(rows: Rows, columns: Sequence[int]) -> bool:
    """Return whether each row has a 1 in one of the columns and 0 in the others."""
    for row in rows:
        values = [pixel_value(row[column]) for column in columns]
        if not set(values) <= {0, 1} or values.count(1) != 1:
            return False
    return bool(rows) and len(columns) > 1


def is_planar(rows: Rows, columns: Sequence[int]) -> bool:
    """Return whether colours come in planes (all red values first) and not pixel by pixel.

    The colours of one pixel go together, and so do neighbouring pixels, but not pixels a third of
    the image apart.
    """
    values = [[pixel_value(row[column]) for column in columns] for row in rows]
    good = [row for row in values if all(isinstance(value, int) for value in row)]
    if not good:
        return False
    pixels = np.array(good, np.float64)
    n = len(columns) // 3
    with np.errstate(invalid="ignore"):
        planes = np.corrcoef(pixels[:, :n].ravel(), pixels[:, n : 2 * n].ravel())[0, 1]
        together = np.corrcoef(pixels[:, 0::3].ravel(), pixels[:, 1::3].ravel())[0, 1]
    return bool(planes > 0.75 * together)
