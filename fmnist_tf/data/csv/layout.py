"""The first lines of a CSV -> which column holds what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.csv.cells import Fault
from fmnist_tf.data.csv.columns import Candidate, choose_label, is_one_hot, is_planar
from fmnist_tf.data.csv.opening import (
    CHOOSE_LABEL,
    LayoutError,
    Opening,
    normalise,
    read_opening,
    skip_separator_line,
)
from fmnist_tf.data.resize import SHAPES
from fmnist_tf.errors import DataError, printable

LABEL_NAMES = frozenset(
    "label labels class classes target targets category y class_label classlabel class_name"
    " label_name ground_truth truth".split()
)
INDEX_NAME = re.compile(r"unnamed: ?\d+(?:\.\d+)?|id|idx|index|image_?id|row_?id|row")
MAX_ONE_HOT = 100
"""Most one-hot columns that are looked for where no header names them."""

_ONE_HOT = "columns {}..{} are one-hot labels"
_NUMBERED = re.compile(r"(.*?)(\d{1,5})", re.DOTALL)
_GRID = re.compile(r"(?:[a-z]+[ _.-])?(\d{1,3})[x_](\d{1,3})")


@dataclass(frozen=True)
class Layout:
    """Which column holds what; columns count from 0.

    Attributes:
        separator: "," or ";" or a tab.
        header: the header's bytes without line end, or None.
        names: a name for each column, or None.
        width: columns of every line.
        label_columns: none in an unlabelled file; several if they are one-hot.
        classes: the label that each of several label columns stands for.
        pixel_columns: columns in row-major pixel order, the channels of a pixel together.
        first_line: 1-based line of the first image.
        start: bytes of text before it.
        decisions: what was decided, one sentence each.
    """

    separator: str
    header: bytes | None
    names: tuple[str, ...] | None
    width: int
    label_columns: tuple[int, ...]
    classes: tuple[str, ...]
    pixel_columns: tuple[int, ...]
    first_line: int
    start: int
    decisions: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Side and channels of the images."""
        return SHAPES[len(self.pixel_columns)]

    def name(self, column: int) -> str | None:
        """Return the header's name of a 0-based column, or None where it has none."""
        if self.names is None or column >= self.width:
            return None
        return self.names[column]


def plan_layout(
    path: str, head: bytes, label_column: str | None, sample_lines: Callable[[int], list[bytes]]
) -> Layout:
    """Decide what the columns are.

    With a header, columns go by name: names that share a prefix and are numbered from 0 or 1, or
    `1x1`..`28x28` (row x column), are pixels; a label-like name or the only other column is the
    label; index-like names are dropped. Where no name tells the label (no header, or one numbered
    column more than an image has pixels) what the columns hold does.

    Args:
        path: the file, for the errors.
        head: the first bytes of the text.
        label_column: what the user gave: a name, a number from 1, "first" or "last"; or None.
        sample_lines: returns lines from all over the file, given the bytes before the first image.

    Raises:
        DataError: E009, E011, E012, E014, E016..E023, E025, E026, E038.
    """
    lines = head.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # empty, or the start of a line that the head cuts
    names: list[str] | None = None
    first_line = 1 + skip_separator_line(lines)
    try:
        opening = read_opening(lines, label_column, sample_lines)
        names = opening.names
        return _plan(opening, label_column)
    except LayoutError as error:
        problems = []
        for fault in error.faults:
            name = names[fault.column - 1] if names and fault.column else None
            problems.append(fault.at(path, first_line, name))
        raise DataError(problems) from None


def _plan(opening: Opening, label_column: str | None) -> Layout:
    width = len(opening.names) if opening.names else _find_width(opening)
    if opening.names and opening.rows and all(len(row) > width for row in opening.rows):
        if opening.rows[0][-1].strip():
            found = f"a header of {width} names over rows of {len(opening.rows[0])} cells"
            hint = "complete the header, or delete its line if it is no use"
            raise LayoutError(Fault("E020", found, "a name for each column", hint))
    names = opening.names or [str(column + 1) for column in range(width)]
    norms = [normalise(name) for name in names]
    if width > 1 and not norms[-1]:
        hint = "a comma at the end of the line?"
        raise LayoutError(
            Fault("E020", "an empty last name", "a name for each column", hint, width)
        )
    pixels = max(_families(norms), key=lambda family: len(family.columns))
    repeated = sorted({*_repeated(norms), *pixels.repeated})
    faults = [
        Fault("E022", f"the name {printable(names[c])} again", "each name once", "", c + 1)
        for c in repeated
    ]
    labels, classes, decisions = _choose_labels(opening, label_column, names, norms, pixels)
    pixels = pixels.without(labels)
    size = pixels.size()
    if size is None:
        found = f"{width} columns, {len(pixels.columns)} of them numbered pixels"
        expected = f"{N_PIXELS} pixel columns, pixel1..pixel{N_PIXELS}, with or without a label"
        hint = "images are 28x28, or of another square size: one column for each pixel"
        raise LayoutError(Fault("E020", found, expected, hint), *faults)
    wanted = pixels.wanted(size)
    columns = [pixels.columns[number] for number in wanted if number in pixels.columns]
    for column in sorted(set(range(width)) - {*columns, *labels, *pixels.repeated}):
        is_like = norms[column] in LABEL_NAMES
        if _is_index(column, norms) or (is_like and label_column is not None):
            name = printable(names[column]) or "''"
            decisions.append(f"column {column + 1}, {name}, was dropped")
            continue
        found = "a column that is neither pixel, label nor index"
        hint = f"delete the column, or {CHOOSE_LABEL}"
        if is_like and labels:
            found, hint = "a second column that could be the label", CHOOSE_LABEL
        faults.append(Fault("E025", found, "one label column at most", hint, column + 1))
    faults.sort(key=lambda fault: fault.column or 0)
    first, last = pixels.name(wanted[0]), pixels.name(wanted[-1])
    missing = [pixels.name(number) for number in wanted if number not in pixels.columns]
    faults += [Fault("E023", f"no column {name}", f"all of {first}..{last}") for name in missing]
    if faults:
        raise LayoutError(*faults)
    if columns != sorted(columns):
        decisions.append("the pixel columns were put in order by their names (E024)")
    side, channels = SHAPES[size]
    if channels == 3 and is_planar(opening.sample(width), columns):
        columns = [
            columns[plane * side * side + i] for i in range(side * side) for plane in range(3)
        ]
    if (side, channels) != (IMAGE_SIZE, 1):
        what = f"{side}x{side} {'RGB' if channels == 3 else 'grey'}"
        decisions.append(f"the images are {what}: made {IMAGE_SIZE}x{IMAGE_SIZE} grey")
    return Layout(
        opening.separator,
        opening.header,
        None if opening.names is None else tuple(names),
        width,
        labels,
        classes,
        tuple(columns),
        opening.n_lines + 1,
        opening.start,
        (*opening.decisions, *decisions),
    )


def _find_width(opening: Opening) -> int:
    """Count the columns of a file without header; E018, E019.

    One damaged line does not decide, the commonest width of the first block does.
    """
    rows = opening.rows
    widths = Counter(map(len, rows)).most_common()
    for width, _ in widths:
        if width in SHAPES or width - 1 in SHAPES or _one_hot_columns(width, opening):
            return width
    found = len(rows[0])
    hint = "a comma at the end of each line?" if not rows[0][-1] else ""
    if found > N_PIXELS + 1 and not hint:
        hint = "an index column can be dropped only where a header names it"
    expected = f"{N_PIXELS} pixels, with or without a label"
    code = "E018" if found < N_PIXELS else "E019"
    raise LayoutError(Fault(code, f"{found} fields", expected, hint))


def _one_hot_columns(width: int, opening: Opening) -> tuple[int, ...]:
    """Return the one-hot labels before or after the pixels of a file without header."""
    rows = [row for row in opening.rows if len(row) == width]
    for size in SHAPES:
        n_classes = width - size
        if 2 <= n_classes <= MAX_ONE_HOT:
            for columns in (range(n_classes), range(size, width)):
                if is_one_hot(rows, columns):
                    return tuple(columns)
    return ()


def _choose_labels(
    opening: Opening,
    label_column: str | None,
    names: list[str],
    norms: list[str],
    pixels: _Family,
) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """Return the label's column, or those of one-hot labels, what these stand for, decisions."""
    ends = pixels.ends()
    in_family = {*pixels.columns.values(), *pixels.repeated}
    others = [c for c in range(len(names)) if c not in in_family and not _is_index(c, norms)]
    if label_column is not None:
        column = _find_named(opening, label_column, names)
        is_pixel = column in in_family and not (ends and column in (ends[0].column, ends[1].column))
        if column is None or is_pixel:
            have = ", ".join(printable(names[c]) for c in others[:5]) or "none"
            found = f"{'no' if column is None else 'a pixel'} column {printable(label_column)}"
            expected = (
                f"a label column: a column that is no pixel ({have}), its number, first or last"
            )
            raise LayoutError(Fault("E026", found, expected, "see --label-column"))
        return (column,), (), [f"the label is column {column + 1}, {printable(names[column])}"]
    if opening.names is None and (columns := _one_hot_columns(len(names), opening)):
        classes = tuple(str(k) for k in range(len(columns)))
        return columns, classes, [_ONE_HOT.format(columns[0] + 1, columns[-1] + 1)]
    if ends and not others:
        chosen, why = choose_label(opening.sample(len(names)), *ends)
        if chosen is None:
            hint = "choose with --label-column first or --label-column last"
            raise LayoutError(Fault("E026", f"{why} could each be the label", "one label", hint))
        return (chosen,), (), [why]
    like = [c for c in others if norms[c] in LABEL_NAMES] or (others if len(others) == 1 else [])
    if like and norms[like[0]]:
        column = like[0]
        return (column,), (), [f"the label is column {column + 1}, {printable(names[column])}"]
    if others and is_one_hot(opening.sample(len(names)), others):
        numbered = [_NUMBERED.fullmatch(norms[c]) for c in others]
        is_family = all(numbered) and len({match[1] for match in numbered if match}) == 1
        classes = tuple(m[2].lstrip("0") or "0" for m in numbered if m) if is_family else ()
        classes = classes or tuple(names[c] for c in others)
        return (
            tuple(others),
            classes,
            [f"columns {others[0] + 1}..{others[-1] + 1} are one-hot labels"],
        )
    return (), (), ["no label column: the images are unlabelled"]


def _find_named(opening: Opening, label_column: str, names: list[str]) -> int | None:
    """Return the column that `--label-column` means; E021 for a name where there are none."""
    wanted = label_column.strip()
    if opening.names is not None and wanted in names:
        return len(names) - 1 - names[::-1].index(wanted)
    if wanted in ("first", "last"):
        return 0 if wanted == "first" else len(names) - 1
    if wanted.isascii() and wanted.isdecimal():
        return int(wanted) - 1 if 1 <= int(wanted) <= len(names) else None
    if opening.names is None:
        found = f"no header, so no column can be named {printable(label_column)}"
        hint = "give its number, first or last, or leave out --label-column"
        raise LayoutError(Fault("E021", found, "a header", hint))
    return None


def _is_index(column: int, norms: list[str]) -> bool:
    name = norms[column]
    return bool(INDEX_NAME.fullmatch(name)) or (column == 0 and not name)


@dataclass
class _Family:
    """Names that share a prefix and differ in a number; `RxC` names count as 1000 R + C."""

    prefix: str
    is_grid: bool
    columns: dict[int, int] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)

    def size(self) -> int | None:
        """Return the pixels of the image that these columns are, or nearly are, or None."""
        n = len(self.columns)
        if n in SHAPES and sorted(self.columns) == self.wanted(n):
            return n
        return N_PIXELS if N_PIXELS // 2 <= n < 2 * N_PIXELS else None

    def wanted(self, size: int) -> list[int]:
        if self.is_grid:
            base = 0 if any(n < 1000 or n % 1000 == 0 for n in self.columns) else 1
            steps = range(base, base + SHAPES[size][0])
            return [1000 * row + column for row in steps for column in steps]
        base = 0 if 0 in self.columns else 1
        return list(range(base, base + size))

    def ends(self) -> tuple[Candidate, Candidate] | None:
        """Return the columns of the first and last number if there is one too many."""
        numbers, n = sorted(self.columns), len(self.columns)
        is_run = n > 1 and numbers[0] in (0, 1) and numbers[-1] - numbers[0] == n - 1
        if self.is_grid or not is_run or n - 1 not in SHAPES:
            return None
        columns = [self.columns[number] for number in numbers]
        return Candidate(columns[0], columns[1]), Candidate(columns[-1], columns[-2])

    def without(self, labels: Sequence[int]) -> _Family:
        """Return the family counted anew from 0 if any of the labels is in it."""
        kept = [n for n in sorted(self.columns) if self.columns[n] not in labels]
        if len(kept) == len(self.columns):
            return self
        return replace(self, columns={i: self.columns[n] for i, n in enumerate(kept)})

    def name(self, number: int) -> str:
        return f"{number // 1000}x{number % 1000}" if self.is_grid else f"{self.prefix}{number}"


def _families(norms: list[str]) -> list[_Family]:
    """Group the columns by prefix; the list is never empty."""
    grid = _Family("", True)
    numbered: dict[str, _Family] = {}
    for column, norm in enumerate(norms):
        if match := _GRID.fullmatch(norm):
            family, number = grid, 1000 * int(match[1]) + int(match[2])
        elif match := _NUMBERED.fullmatch(norm):
            family = numbered.setdefault(match[1], _Family(match[1], False))
            number = int(match[2])
        else:
            continue
        if number in family.columns:
            family.repeated.append(column)
        else:
            family.columns[number] = column
    return [grid, *numbered.values()]


def _repeated(norms: list[str]) -> list[int]:
    counts = Counter(norms)
    seen: set[str] = set()
    repeated = []
    for column, norm in enumerate(norms):
        if norm in seen and counts[norm] > 1:
            repeated.append(column)
        seen.add(norm or str(column))
    return repeated
