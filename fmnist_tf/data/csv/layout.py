"""The first lines of a CSV -> which column holds what."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.csv.cells import Fault, label_text, pixel_value, split_line
from fmnist_tf.errors import DataError, Problem, printable

LABEL_NAMES = frozenset(
    "label labels class classes target targets category y class_label classlabel class_name"
    " label_name ground_truth truth".split()
)
INDEX_NAME = re.compile(r"unnamed: ?\d+(?:\.\d+)?|id|idx|index|image_?id|row_?id|row")

_NUMBERED = re.compile(r"(.*?)(\d{1,4})", re.DOTALL)
_GRID = re.compile(r"(\d{1,2})x(\d{1,2})")
_PIXEL_NAME = re.compile(r"(?:pixel|px|pix)[ _.-]?\d{1,4}|\d{1,2}x\d{1,2}")


@dataclass(frozen=True)
class Layout:
    """Which column holds what; columns count from 0.

    Attributes:
        header: the header's bytes without line end, or None.
        names: the header's names, or None.
        width: columns of every line.
        label_column: None in an unlabelled file.
        pixel_columns: the 784 columns in row-major pixel order.
        first_line: 1-based line of the first image.
        decisions: what was decided, one sentence each.
    """

    header: bytes | None
    names: tuple[str, ...] | None
    width: int
    label_column: int | None
    pixel_columns: tuple[int, ...]
    first_line: int
    decisions: tuple[str, ...]

    def name(self, column: int) -> str | None:
        """Return the header's name of a 0-based column, or None where it has none."""
        if self.names is None or column >= self.width:
            return None
        return self.names[column]


def plan_layout(path: str, lines: list[bytes], first_line: int, label_column: str | None) -> Layout:
    """Decide what the columns are.

    With a header, columns go by name: 784 names that share a prefix and are numbered 0..783 or
    1..784, or `1x1`..`28x28` (row x column); a label-like name or the only other column is the
    label; index-like names are dropped. Without one, 784 columns are pixels; of 785 the first is
    the label unless, in the sample, only the last column can be it.

    Args:
        path: the file, for the errors.
        lines: the first line and whatever complete lines of the first block follow it.
        first_line: 1-based line of `lines[0]`.
        label_column: the name the user gave, or None.

    Raises:
        DataError: E011, E012, E014, E016..E023, E025, E026, E038.
    """
    cells = split_line(lines[0])
    if isinstance(cells, Fault):
        raise _layout_error(path, first_line, [cells])
    if fault := _other_separator(lines):
        raise _layout_error(path, first_line, [fault])
    is_header = _is_header(path, cells, lines, first_line)
    if is_header:
        return _by_name(path, lines[0].removesuffix(b"\r"), cells, first_line, label_column)
    if label_column is not None:
        found = f"no header, so no column can be named {printable(label_column)}"
        hint = "write a header, or leave out --label-column"
        raise _layout_error(path, first_line, [Fault("E021", found, "a header", hint)])
    return _by_position(path, lines, first_line)


def _layout_error(
    path: str, line: int, faults: list[Fault], names: list[str] | None = None
) -> DataError:
    return DataError(
        [
            Problem(
                fault.code,
                path,
                line,
                fault.column,
                names[fault.column - 1] if names and fault.column else None,
                fault.found,
                fault.expected,
                fault.hint,
            )
            for fault in faults
        ]
    )


def _other_separator(lines: list[bytes]) -> Fault | None:
    """Return E016, or E017 where decimal commas forced the other separator."""
    first = lines[0]
    commas = first.count(b",")
    expected = "cells separated by ','"
    for separator, name, fewest in (
        (b";", "';'", 1),
        (b"\t", "a tab", 1),
        (b"|", "'|'", 1),
        (b" ", "a space", N_PIXELS // 2),
    ):
        count = first.count(separator)
        decimal = re.compile(rb"(?:^|[;\t| ])[+-]?\d+,\d+(?:$|[;\t| ])")
        if count >= N_PIXELS - 1 and any(decimal.search(line) for line in lines[:2]):
            hint = "export with ',' between cells, and whole numbers"
            return Fault("E017", f"decimal commas, and {name} between cells", expected, hint, 1)
        if not commas and count >= fewest:
            hint = "export with ',' between cells"
            return Fault("E016", f"{name} between cells", expected, hint, 1)
    return None


def _is_header(path: str, cells: list[bytes], lines: list[bytes], line: int) -> bool:
    """Decide between header and row; raise E021 for what is neither."""
    values = [pixel_value(cell) for cell in cells]
    texts = [isinstance(value, Fault) and value.code == "E031" for value in values]
    if 2 * sum(texts) > len(cells):
        return True
    named = [c for c, text in enumerate(texts) if text and _PIXEL_NAME.fullmatch(_norm(cells[c]))]
    if named:
        raise _ambiguous(path, line, named[0], "names and numbers mixed")
    digits = [int(cell) for cell in cells if re.fullmatch(rb"[ \t]*\d{1,4}[ \t]*", cell)]
    if len(digits) >= N_PIXELS and digits == list(range(digits[0], digits[0] + len(digits))):
        if any(texts):
            return True
        raise _ambiguous(path, line, 0, f"the column numbers {digits[0]}..{digits[-1]}")
    fractions = sum(isinstance(value, Fault) and value.code == "E034" for value in values)
    if 2 * fractions > len(cells) and len(set(cells)) == len(cells) and len(lines) > 1:
        below = split_line(lines[1])
        if isinstance(below, list) and not any(b"." in cell for cell in below):
            raise _ambiguous(path, line, 0, "a row of pixels that was turned into column names")
    return False


def _ambiguous(path: str, line: int, column: int, what: str) -> DataError:
    hint = "write label,pixel1,...,pixel784 as the first line, or no header at all"
    expected = "a header of names, or a row of numbers"
    return _layout_error(path, line, [Fault("E021", what, expected, hint, column + 1)])


def _norm(cell: bytes) -> str:
    return cell.strip(b" \t").decode("utf-8", "replace").casefold()


def _by_name(
    path: str, header: bytes, cells: list[bytes], line: int, label_column: str | None
) -> Layout:
    names = [cell.strip(b" \t").decode("utf-8") for cell in cells]
    norms = [_norm(cell) for cell in cells]
    if len(names) > 1 and not norms[-1]:
        hint = "a comma at the end of the line?"
        fault = Fault("E020", "an empty last name", "a name for each column", hint, len(names))
        raise _layout_error(path, line, [fault], names)
    family = max(_families(norms), key=lambda family: len(family.columns))
    faults = [
        Fault(
            "E022", f"the name {printable(names[column])} again", "each name once", "", column + 1
        )
        for column in sorted({*_repeated(norms), *family.repeated})
    ]
    if len(family.columns) < N_PIXELS // 2:
        found = f"{len(names)} columns, {len(family.columns)} of them numbered pixels"
        expected = f"{N_PIXELS} pixel columns, pixel1..pixel{N_PIXELS}, with or without a label"
        hint = "images are 28x28: one column for each pixel"
        raise _layout_error(path, line, [Fault("E020", found, expected, hint), *faults], names)
    wanted = family.wanted()
    columns = tuple(family.columns[number] for number in wanted if number in family.columns)
    others = [column for column in range(len(names)) if column not in {*columns, *family.repeated}]
    label, decisions, strange = _label_by_name(names, norms, others, label_column)
    faults = sorted(faults + strange, key=lambda fault: fault.column or 0)
    first, last = family.name(wanted[0]), family.name(wanted[-1])
    faults += [
        Fault("E023", f"no column {printable(family.name(number))}", f"all of {first}..{last}")
        for number in wanted
        if number not in family.columns
    ]
    if faults:
        raise _layout_error(path, line, faults, names)
    decisions.insert(0, f"line {line} is the header")
    if list(columns) != sorted(columns):
        decisions.append("the pixel columns were put in order by their names (E024)")
    return Layout(header, tuple(names), len(names), label, columns, line + 1, tuple(decisions))


@dataclass
class _Family:
    """Names that share a prefix and differ in a number; `RxC` names count as 100 R + C."""

    prefix: str
    is_grid: bool
    columns: dict[int, int] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)

    def wanted(self) -> list[int]:
        if self.is_grid:
            base = 0 if any(n < 100 or n % 100 == 0 for n in self.columns) else 1
            steps = range(base, base + IMAGE_SIZE)
            return [100 * row + column for row in steps for column in steps]
        base = 0 if 0 in self.columns else 1
        return list(range(base, base + N_PIXELS))

    def name(self, number: int) -> str:
        return f"{number // 100}x{number % 100}" if self.is_grid else f"{self.prefix}{number}"


def _families(norms: list[str]) -> list[_Family]:
    """Group the columns by prefix; the list is never empty."""
    grid = _Family("", True)
    numbered: dict[str, _Family] = {}
    for column, norm in enumerate(norms):
        if match := _GRID.fullmatch(norm):
            family, number = grid, 100 * int(match[1]) + int(match[2])
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
    seen: set[str] = set()
    repeated = []
    for column, norm in enumerate(norms):
        if norm and norm in seen:
            repeated.append(column)
        seen.add(norm)
    return repeated


def _label_by_name(
    names: list[str], norms: list[str], others: list[int], label_column: str | None
) -> tuple[int | None, list[str], list[Fault]]:
    """Choose the label among the columns that are no pixels.

    Returns:
        The label's column or None, decisions, faults (E025, E026).
    """
    shown = [printable(name) or "''" for name in names]
    index = [c for c in others if INDEX_NAME.fullmatch(norms[c]) or (c == 0 and not norms[c])]
    like = [c for c in others if norms[c] in LABEL_NAMES]
    decisions: list[str] = []
    faults: list[Fault] = []
    label: int | None = None
    if label_column is not None:
        chosen = [c for c, name in enumerate(names) if name == label_column.strip()]
        if not set(chosen) & set(others):
            found = "a pixel column" if chosen else "no column"
            have = ", ".join(shown[c] for c in others[:5]) or "none"
            expected = f"one of the columns that are no pixels: {have}"
            found = f"{found} named {printable(label_column)}"
            return None, [], [Fault("E026", found, expected, "see --label-column")]
        label = next(c for c in chosen if c in others)
        index = [c for c in {*index, *like} if c != label]
    else:
        strange = [c for c in others if c not in index and c not in like]
        if not like and len(strange) == 1 and norms[strange[0]]:
            like = strange
        for column in like[1:]:
            hint = "choose with --label-column NAME"
            found = "a second column that could be the label"
            faults.append(Fault("E025", found, "one label column", hint, column + 1))
        label = like[0] if like else None
    for column in others:
        if column not in index and column not in like and column != label:
            hint = "delete the column, or name the label with --label-column"
            found = "a column that is neither pixel, label nor index"
            expected = f"{N_PIXELS} pixels and at most one label"
            faults.append(Fault("E025", found, expected, hint, column + 1))
    if label is None:
        decisions.append("no label column: the images are unlabelled")
    else:
        decisions.append(f"the label is column {label + 1}, {shown[label]}")
    for column in sorted(index):
        decisions.append(f"column {column + 1}, {shown[column]}, was dropped")
    return label, decisions, faults


def _by_position(path: str, lines: list[bytes], line: int) -> Layout:
    """Count the columns; one damaged line does not decide, the sample's commonest width does."""
    rows = [cells for raw in lines if isinstance(cells := split_line(raw), list)]
    widths = Counter(len(cells) for cells in rows)
    width = max((N_PIXELS + 1, N_PIXELS), key=lambda width: widths[width])
    if not widths[width]:
        found = len(rows[0])
        code = "E018" if found < N_PIXELS else "E019"
        hint = "a comma at the end of each line?" if not rows[0][-1] else ""
        if found > N_PIXELS + 1 and not hint:
            hint = "an index column can be dropped only where a header names it"
        expected = f"{N_PIXELS} pixels, with or without a label"
        raise _layout_error(path, line, [Fault(code, f"{found} fields", expected, hint)])
    decisions = [f"no header: line {line} is the first image"]
    if width == N_PIXELS:
        decisions.append("no label column: the images are unlabelled")
        return Layout(None, None, width, None, tuple(range(N_PIXELS)), line, tuple(decisions))
    rows = [cells for cells in rows if len(cells) == width]
    only_last = sum(
        isinstance(pixel_value(cells[0]), int)
        and not isinstance(pixel_value(cells[-1]), int)
        and isinstance(label_text(cells[-1]), str)
        for cells in rows
    )
    if 2 * only_last > len(rows):
        decisions.append(f"the label is the last column, {width}: it cannot be a pixel")
        return Layout(None, None, width, N_PIXELS, tuple(range(N_PIXELS)), line, tuple(decisions))
    decisions.append("the label is column 1 (a header can name another)")
    columns = tuple(range(1, width))
    return Layout(None, None, width, 0, columns, line, tuple(decisions))
