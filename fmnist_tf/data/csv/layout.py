"""The first lines of a CSV -> which column holds what."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.arrays import SHAPES, describe_resize
from fmnist_tf.data.csv.cells import fault
from fmnist_tf.data.csv.columns import choose_label, is_one_hot, is_planar
from fmnist_tf.data.csv.opening import (
    CHOOSE_LABEL,
    LayoutError,
    Opening,
    find_separator_line,
    normalise,
    read_opening,
)
from fmnist_tf.errors import DataError, printable

LABEL_NAMES = frozenset(
    "label labels class classes target targets category y class_label classlabel class_name"
    " label_name ground_truth truth".split()
)
MAX_ONE_HOT = 100
"""Most one-hot columns that are looked for where no header names them."""

_INDEX_NAME = re.compile(r"unnamed: ?\d+(?:\.\d+)?|id|idx|index|image_?id|row_?id|row")
_NUMBERED = re.compile(r"(.*?)(\d{1,5})", re.DOTALL)
_GRID = re.compile(r"(?:[a-z]+[ _.-])?(\d{1,3})[x_](\d{1,3})")


@dataclass(frozen=True)
class Layout:
    """Which column holds what; columns count from 0.

    Attributes:
        separator: "," or ";" or a tab.
        header: the header's bytes without line end, or None.
        names: a name for each column, empty ones without a header.
        label_columns: none in an unlabelled file; several if they are one-hot.
        classes: the label that each of several label columns stands for.
        pixel_columns: columns in row-major pixel order, the channels of a pixel together.
        first_line: 1-based line of the first image.
        start: bytes of text before it.
        decisions: what was decided, one sentence each.
    """

    separator: str
    header: bytes | None
    names: tuple[str, ...]
    label_columns: tuple[int, ...]
    classes: tuple[str, ...]
    pixel_columns: tuple[int, ...]
    first_line: int
    start: int
    decisions: tuple[str, ...]

    @property
    def width(self) -> int:
        """Columns of every line."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int]:
        """Side and channels of the images."""
        return SHAPES[len(self.pixel_columns)]


@dataclass
class _Pixels:
    """Columns whose names share a prefix and are numbered, or are `1x1`..`28x28`."""

    columns: dict[int, int]  # by number, which counts from 0 in row-major order
    repeated: list[int]  # columns of a number that another has already
    is_grid: bool
    name: Callable[[int], str]  # returns the name of a number


def plan_layout(
    path: str, head: bytes, label_column: str | None, sample_lines: Callable[[int], list[bytes]]
) -> Layout:
    """Decide what the columns are; DataError: E009..E023, E025, E026, E038.

    With a header, columns go by name: names that share a prefix and are numbered from 0 or 1, or
    `1x1`..`28x28` (row x column), are pixels; a label-like name or the only other column is the
    label; index-like names are dropped. Where no name tells the label (no header, or one numbered
    column more than an image has pixels) what the columns hold does.

    Args:
        path: the file, for the errors.
        head: the first bytes of the text.
        label_column: what the user gave: a name, a number from 1, "first" or "last"; or None.
        sample_lines: returns lines from all over the file, given the bytes before the first image.
    """
    lines = head.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # empty, or the start of a line that the head cuts
    names: list[str] | None = None
    try:
        opening = read_opening(lines, label_column, sample_lines)
        names = opening.names
        return _plan(opening, label_column)
    except LayoutError as error:
        line = 1 + (find_separator_line(lines) is not None)
        problems = [replace(problem, path=path, line=line) for problem in error.problems]
    raise DataError([
        replace(p, column_name=names[p.column - 1] if names and p.column else None)
        for p in problems
    ])  # fmt: skip


def _plan(opening: Opening, label_column: str | None) -> Layout:
    names = opening.names or [str(column) for column in range(1, 1 + _find_width(opening))]
    width, norms = len(names), [normalise(name) for name in names]
    rows = opening.rows
    if rows and all(len(row) > width for row in rows) and rows[0][-1].strip():
        found = f"a header of {width} names over rows of {len(rows[0])} cells"
        hint = "complete the header, or delete its line if it is no use"
        raise LayoutError(fault("E020", found, "a name for each column", hint))
    if width > 1 and not norms[-1]:
        expected, hint = "a name for each column", "a comma at the end of the line?"
        raise LayoutError(fault("E020", "an empty last name", expected, hint, width))
    pixels = _find_pixels(norms)
    labels, classes, decisions = _choose_labels(opening, label_column, names, norms, pixels)
    if set(labels) & set(pixels.columns.values()):
        kept = [column for _, column in sorted(pixels.columns.items()) if column not in labels]
        pixels = replace(pixels, columns=dict(enumerate(kept)))
    n = len(pixels.columns)
    is_whole = n in SHAPES and set(pixels.columns) == set(range(n))
    first: dict[str, int] = {}
    repeats = {c for c, norm in enumerate(norms) if norm and first.setdefault(norm, c) != c}
    faults = [
        fault("E022", f"the name {printable(names[c])} again", "each name once", "", c + 1)
        for c in sorted(repeats | set(pixels.repeated))
    ]
    if not is_whole and not N_PIXELS // 2 <= n < 2 * N_PIXELS:
        found = f"{width} columns, {n} of them numbered pixels"
        expected = f"{N_PIXELS} pixel columns, pixel1..pixel{N_PIXELS}, with or without a label"
        hint = "images are 28x28, or of another square size: one column for each pixel"
        raise LayoutError(fault("E020", found, expected, hint), *faults)
    wanted = range(n if is_whole else N_PIXELS)
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
        faults.append(fault("E025", found, "one label column at most", hint, column + 1))
    faults.sort(key=lambda problem: problem.column or 0)
    expected = f"all of {pixels.name(0)}..{pixels.name(wanted[-1])}"
    faults += [
        fault("E023", f"no column {pixels.name(number)}", expected)
        for number in wanted
        if number not in pixels.columns
    ]
    if faults:
        raise LayoutError(*faults)
    if columns != sorted(columns):
        decisions.append("the pixel columns were put in order by their names (E024)")
    side, channels = SHAPES[len(columns)]
    if channels == 3 and is_planar(opening.sample(width), columns):
        columns = [columns[plane * side**2 + i] for i in range(side**2) for plane in range(3)]
    if (side, channels) != (IMAGE_SIZE, 1):
        decisions.append(describe_resize(side, channels))
    return Layout(
        opening.separator,
        opening.header,
        tuple(opening.names or [""] * width),
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
    for width, _ in Counter(map(len, opening.rows)).most_common():
        if width in SHAPES or width - 1 in SHAPES or _one_hot_columns(width, opening):
            return width
    row = opening.rows[0]
    hint = "an index column can be dropped only where a header names it"
    hint = hint if len(row) > N_PIXELS + 1 else ""
    hint = hint if row[-1] else "a comma at the end of each line?"
    expected = f"{N_PIXELS} pixels, with or without a label"
    code = "E018" if len(row) < N_PIXELS else "E019"
    raise LayoutError(fault(code, f"{len(row)} fields", expected, hint))


def _one_hot_columns(width: int, opening: Opening) -> tuple[int, ...]:
    """Return the one-hot labels before or after the pixels of a file without header."""
    rows = [row for row in opening.rows if len(row) == width]
    for size in SHAPES:
        if 2 <= width - size <= MAX_ONE_HOT:
            for columns in (range(width - size), range(size, width)):
                if is_one_hot(rows, columns):
                    return tuple(columns)
    return ()


def _find_pixels(norms: list[str]) -> _Pixels:
    """Return the largest group of numbered columns."""
    groups: dict[str | None, list[tuple[int, int, int]]] = defaultdict(list)
    groups[None] = []  # the grid
    for column, norm in enumerate(norms):
        if match := _GRID.fullmatch(norm):
            groups[None].append((int(match[1]), int(match[2]), column))
        elif match := _NUMBERED.fullmatch(norm):
            groups[match[1]].append((0, int(match[2]), column))
    prefix = max(groups, key=lambda key: len({place[:2] for place in groups[key]}))
    places = groups[prefix]
    if prefix is None:
        side = SHAPES.get(len(places), (IMAGE_SIZE, 1))[0]
        base = 0 if any(0 in place[:2] for place in places) else 1
        numbers = [((row - base) * side + x - base, column) for row, x, column in places]
    else:
        base = 0 if any(x == 0 for _, x, _ in places) else 1
        numbers = [(x - base, column) for _, x, column in places]

    def name(number: int) -> str:
        if prefix is None:
            return f"{number // side + base}x{number % side + base}"
        return f"{prefix}{number + base}"

    columns: dict[int, int] = {}
    repeated = [c for number, c in numbers if columns.setdefault(number, c) != c]
    return _Pixels(columns, repeated, prefix is None, name)


def _choose_labels(
    opening: Opening,
    label_column: str | None,
    names: list[str],
    norms: list[str],
    pixels: _Pixels,
) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """Return the label's column, or those of one-hot labels, what these stand for, decisions."""
    n, numbered = len(pixels.columns), {*pixels.columns.values(), *pixels.repeated}
    others = [c for c in range(len(names)) if c not in numbered and not _is_index(c, norms)]
    is_run = n - 1 in SHAPES and not pixels.is_grid and set(pixels.columns) == set(range(n))
    ends = (pixels.columns[0], pixels.columns[n - 1]) if is_run else ()  # one of them may be it
    like = [c for c in others if norms[c] in LABEL_NAMES] or (others if len(others) == 1 else [])
    if label_column is not None:
        column = _find_named(opening, label_column, names)
        if column is None or (column in numbered and column not in ends):
            have = ", ".join(printable(names[c]) for c in others[:5]) or "none"
            found = f"{'no' if column is None else 'a pixel'} column {printable(label_column)}"
            expected = f"a label column: one that is no pixel ({have}), its number, first or last"
            raise LayoutError(fault("E026", found, expected, "see --label-column"))
        like = [column]
    elif opening.names is None and (columns := _one_hot_columns(len(names), opening)):
        classes = tuple(str(k) for k in range(len(columns)))
        return columns, classes, [f"columns {columns[0] + 1}..{columns[-1] + 1} are one-hot labels"]
    elif ends and not others:
        beside = (pixels.columns[1], pixels.columns[n - 2])
        chosen, why = choose_label(opening.sample(len(names)), ends, beside)
        if chosen is None:
            hint = "choose with --label-column first or --label-column last"
            raise LayoutError(fault("E026", f"{why} could each be the label", "one label", hint))
        return (chosen,), (), [why]
    if like and (norms[like[0]] or label_column is not None):
        name = printable(names[like[0]])
        return (like[0],), (), [f"the label is column {like[0] + 1}, {name}"]
    if others and is_one_hot(opening.sample(len(names)), others):
        matches = [match for c in others if (match := _NUMBERED.fullmatch(norms[c]))]
        if len(matches) == len(others) and len({match[1] for match in matches}) == 1:
            classes = tuple(match[2].lstrip("0") or "0" for match in matches)
        else:
            classes = tuple(names[c] for c in others)
        what = f"columns {others[0] + 1}..{others[-1] + 1} are one-hot labels"
        return tuple(others), classes, [what]
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
        raise LayoutError(fault("E021", found, "a header", hint))
    return None


def _is_index(column: int, norms: list[str]) -> bool:
    name = norms[column]
    return bool(_INDEX_NAME.fullmatch(name)) or (column == 0 and not name)
