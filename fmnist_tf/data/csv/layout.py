"""The top of a CSV -> which column holds what.

With a header, columns go by name: names that share a prefix and are numbered from 0 or 1, or
`1x1`..`28x28` (row x column), are pixels; a label-like name or the only other column is the label;
index-like names are dropped. Where no name tells the label (no header, or one numbered column more
than an image has pixels) what the columns hold does.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.arrays import SHAPES, describe_resize
from fmnist_tf.data.csv.columns import choose_label, is_one_hot, is_planar
from fmnist_tf.data.csv.faults import fault, refuse
from fmnist_tf.data.csv.top import Top, find_separator_line, read_top, split_rows
from fmnist_tf.errors import DataError, printable

LABEL_NAMES = frozenset(
    "label labels class classes target targets category y class_label classlabel class_name"
    " label_name ground_truth truth".split()
)
_INDEX_NAME = re.compile(r"unnamed: ?\d+(?:\.\d+)?|id|idx|index|image_?id|row_?id|row")
_NUMBERED = re.compile(r"(.*?)(\d{1,5})", re.DOTALL)
_GRID = re.compile(r"(?:[a-z]+[ _.-])?(\d{1,3})[x_](\d{1,3})")


@dataclass(frozen=True)
class Layout:
    """Which column holds what; columns count from 0.

    Attributes:
        top: what stands before the first image.
        width: columns of every line.
        label_columns: none in an unlabelled file; several if they are one-hot.
        classes: the label that each of several label columns stands for.
        pixel_columns: columns in row-major pixel order, the channels of a pixel together.
        decisions: what was decided, one sentence each.
    """

    top: Top
    width: int
    label_columns: tuple[int, ...]
    classes: tuple[str, ...]
    pixel_columns: tuple[int, ...]
    decisions: tuple[str, ...]


def plan_layout(
    path: str, head: bytes, label_column: str | None, sample_lines: Callable[[int], list[bytes]]
) -> Layout:
    """Decide what the columns are; DataError: E009..E023, E025, E026, E038.

    Args:
        path: the file, for the errors.
        head: the first bytes of the text.
        label_column: see `read_table`.
        sample_lines: returns lines from all over the file, without this many at its top.
    """
    lines = head.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # empty, or the start of a line that the head cuts
    try:
        top = read_top(lines, label_column)
        columns = _Columns(top, sample_lines)
        labels, classes, why = columns.choose_labels(label_column)
        pixels, decisions = columns.arrange_pixels(labels, is_chosen=label_column is not None)
    except DataError as error:
        line = 2 if find_separator_line(lines) else 1
        raise DataError([replace(p, path=path, line=line) for p in error.problems]) from None
    decisions = [*top.decisions, why, *decisions]
    side, channels = SHAPES[len(pixels)]
    if channels == 3 and is_planar(columns.sample, pixels):
        pixels = [pixels[plane * side**2 + i] for i in range(side**2) for plane in range(3)]
    if (side, channels) != (IMAGE_SIZE, 1):
        decisions.append(describe_resize(side, channels))
    return Layout(top, len(columns.names), labels, classes, tuple(pixels), tuple(decisions))


class _Columns:
    """The columns of a file, by their names; those of a file without header get numbers."""

    def __init__(self, top: Top, sample_lines: Callable[[int], list[bytes]]) -> None:
        self._top, self._sample_lines = top, sample_lines
        self.names = names = top.names or _make_names(top.rows)
        if top.rows and all(len(row) > len(names) for row in top.rows) and top.rows[0][-1].strip():
            raise refuse("E020 short", len(names), len(top.rows[0]))
        if len(names) > 1 and not names[-1]:
            raise refuse("E020 comma", column=len(names))
        self._norms = norms = [name.casefold() for name in names]
        self._pixels, self._n_numbered = _find_pixels(norms)
        self._numbered = [column for found in self._pixels.values() for column in found]
        index = (c for c, n in enumerate(norms) if _INDEX_NAME.fullmatch(n) or (c == 0 and not n))
        self._index = set(index)
        known = {*self._numbered, *self._index}
        self._others = [c for c in range(len(names)) if c not in known]

    @cached_property
    def sample(self) -> list[list[str]]:
        """Rows from all over the file."""
        rows = split_rows(self._sample_lines(self._top.n_lines), self._top.separator)
        return [row for row in rows if len(row) == len(self.names)]

    def choose_labels(
        self, label_column: str | None
    ) -> tuple[tuple[int, ...], tuple[str, ...], str]:
        """Return the label columns, what each of several stands for, and why; E021, E026."""
        names, others, run = self.names, self._others, self._numbered
        # One end of a run that is longer than an image may be the label.
        ends = (run[0], run[-1]) if len(self._pixels) - 1 in SHAPES else ()
        like = [c for c in others if self._norms[c] in LABEL_NAMES]
        like = like or (others if len(others) == 1 and names[others[0]] else [])
        if label_column is not None:
            like = [_find_named(label_column, self._top.names, len(names))]
            if like[0] not in (*others, *ends):
                have = ", ".join(printable(names[c]) for c in others[:5]) or "none"
                raise refuse("E026", label_column, have)
        elif ends and not others:
            column = choose_label(self.sample, ends, (run[1], run[-2]))
            values = {row[column] for row in self.sample}
            why = f"{len(values)} values in {len(self.sample)} rows, unlike the pixel beside it"
            return (column,), (), f"the label is column {column + 1}, by what it holds: {why}"
        if like:
            name = f", {printable(names[like[0]])}" if self._top.names else ""
            return (like[0],), (), f"the label is column {like[0] + 1}{name}"
        if len(others) > 1 and is_one_hot(self.sample, others):
            what = f"columns {others[0] + 1}..{others[-1] + 1} are one-hot labels"
            return tuple(others), _name_classes([names[c] for c in others]), what
        return (), (), "no label column: the images are unlabelled"

    def arrange_pixels(
        self, labels: tuple[int, ...], *, is_chosen: bool
    ) -> tuple[list[int], list[str]]:
        """Return the pixel columns in order, and decisions; E020, E022, E023, E025.

        `is_chosen`: the user chose the label.
        """
        names, norms = self.names, self._norms
        pixels = {name: c for name, c in self._pixels.items() if not set(c) & set(labels)}
        if len(pixels) not in SHAPES:
            pixels = dict(list(pixels.items())[:N_PIXELS])
        columns = [found[0] for found in pixels.values() if found]
        first: dict[str, int] = {}
        repeats = {c for c, norm in enumerate(norms) if norm and first.setdefault(norm, c) != c}
        repeats |= {c for found in pixels.values() for c in found[1:]}
        faults = [fault("E022", names[c], column=c + 1, name=names[c]) for c in sorted(repeats)]
        if len(columns) < len(pixels) and not N_PIXELS // 2 <= self._n_numbered < 2 * N_PIXELS:
            raise DataError([fault("E020", len(names), self._n_numbered), *faults])
        decisions = []
        for column in sorted(set(range(len(names))) - {*columns, *labels, *repeats}):
            is_like = norms[column] in LABEL_NAMES
            if column in self._index or (is_like and is_chosen):
                name = printable(names[column]) or "''"
                decisions.append(f"column {column + 1}, {name}, was dropped")
            else:
                key = "E025 label" if is_like and labels else "E025"
                faults.append(fault(key, column=column + 1, name=names[column]))
        faults.sort(key=lambda problem: problem.column or 0)
        every = list(pixels)
        missing = (name for name, found in pixels.items() if not found)
        faults += [fault("E023", name, every[0], every[-1]) for name in missing]
        if faults:
            raise DataError(faults)
        if columns != sorted(columns):
            decisions.append("the pixel columns were put in order by their names (E024)")
        return columns, decisions


def _make_names(rows: list[list[str]]) -> list[str]:
    """Return names for the columns of a file without header; E018, E019.

    One damaged line does not decide, the commonest width of the first rows does.
    """
    for width, _ in Counter(map(len, rows)).most_common():
        if width in SHAPES or width - 1 in SHAPES:
            return [str(column) for column in range(1, width + 1)]
        whole = [row for row in rows if len(row) == width]
        for size in SHAPES:
            labels = [f"label {k}" for k in range(width - size)]
            pixels = [str(k) for k in range(size)]
            if len(labels) > 1 and is_one_hot(whole, range(len(labels))):
                return labels + pixels
            if len(labels) > 1 and is_one_hot(whole, range(size, width)):
                return pixels + labels
    width, hint = len(rows[0]), ""
    if not rows[0][-1]:
        hint = "a comma at the end of each line?"
    elif width > N_PIXELS + 1:
        hint = "an index column can be dropped only where a header names it"
    code, expected = "E018" if width < N_PIXELS else "E019", "with or without a label"
    raise refuse(code, width, f"{N_PIXELS} pixels, {expected}", hint)


def _find_pixels(norms: list[str]) -> tuple[dict[str, list[int]], int]:
    """Return the columns that have each pixel's name, in pixel order, and how many are numbered.

    Of several groups of numbered columns the largest counts. One end of it may be the label.
    """
    groups: dict[str | None, dict[tuple[int, ...], list[int]]] = {None: defaultdict(list)}
    for column, norm in enumerate(norms):
        if match := _GRID.fullmatch(norm):
            groups[None][int(match[1]), int(match[2])].append(column)
        elif match := _NUMBERED.fullmatch(norm):
            groups.setdefault(match[1], defaultdict(list))[(int(match[2]),)].append(column)
    prefix = max(groups, key=lambda key: len(groups[key]))
    places = groups[prefix]
    n, base = len(places), int(not any(0 in place for place in places))
    if prefix is None:
        side = SHAPES.get(n, (IMAGE_SIZE, 1))[0]
        numbers = range(base, base + side)
        return {f"{y}x{x}": places.get((y, x), []) for y in numbers for x in numbers}, n
    is_run = {n, n - 1} & set(SHAPES) and max(places) == (base + n - 1,)
    size = n if is_run else N_PIXELS
    return {f"{prefix}{x}": places.get((x,), []) for x in range(base, base + size)}, n


def _name_classes(names: list[str]) -> tuple[str, ...]:
    """Return the labels that one-hot columns stand for: their numbers, or else their names."""
    matches = [match for name in names if (match := _NUMBERED.fullmatch(name.casefold()))]
    if len(matches) == len(names) and len({match[1] for match in matches}) == 1:
        return tuple(str(int(match[2])) for match in matches)
    return tuple(names)


def _find_named(label_column: str, names: list[str] | None, width: int) -> int:
    """Return the column that `--label-column` means, -1 for none; E021, no header has its name."""
    wanted = label_column.strip()
    if wanted in (names or ()):
        return (names or []).index(wanted)
    if wanted in ("first", "last"):
        return 0 if wanted == "first" else width - 1
    if wanted.isascii() and wanted.isdecimal():
        return int(wanted) - 1 if int(wanted) <= width else -1
    if names is None:
        raise refuse("E021 name", label_column)
    return -1
