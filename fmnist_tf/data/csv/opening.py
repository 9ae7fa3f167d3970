"""The first lines of a CSV: separator, header or none, ARFF and Excel's oddities."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.arrays import SHAPES
from fmnist_tf.data.csv.cells import fault, pixel_value, split_line
from fmnist_tf.errors import Problem

CHOOSE_LABEL = "choose the label with --label-column NAME, a column's number, first or last"

_ROWS = 50  # of the first block, enough to count columns
_PIXEL_NAME = re.compile(r"(?:pixel|px|pix)[ _.-]?\d{1,5}|\d{1,3}x\d{1,3}")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?,*[ \t\r]*', re.IGNORECASE)
_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s", re.IGNORECASE)
_HEADER_HINT = "write label,pixel1,...,pixel784 as the first line, or no header at all"


class LayoutError(Exception):
    """Problems of the first lines; their path and line are not known yet."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(problems)
        self.problems = problems


@dataclass
class Opening:
    """What stands before the first image; `names` and `header` as in `Layout`."""

    separator: str
    header: bytes | None
    names: list[str] | None
    n_lines: int
    lines: list[bytes]
    sample_lines: Callable[[int], list[bytes]]
    decisions: list[str]

    @property
    def start(self) -> int:
        """Bytes of text before the first image."""
        return sum(len(line) + 1 for line in self.lines[: self.n_lines])

    def split(self, lines: list[bytes]) -> list[list[str]]:
        """Return the cells of the lines that have no fault."""
        rows = (split_line(line, self.separator) for line in lines)
        return [row for row in rows if isinstance(row, list)]

    @cached_property
    def rows(self) -> list[list[str]]:
        """The rows of the first block."""
        return self.split(self.lines[self.n_lines : self.n_lines + _ROWS])

    def sample(self, width: int) -> list[list[str]]:
        """Return rows of this width from all over the file."""
        return [row for row in self.split(self.sample_lines(self.start)) if len(row) == width]


def find_separator_line(lines: list[bytes]) -> str | None:
    """Return the separator that Excel's first line `sep=;` names, if there is one."""
    match = _SEPARATOR_LINE.fullmatch(lines[0]) if len(lines) > 1 else None
    return match and match[1].decode("latin-1")


def read_opening(
    lines: list[bytes], label_column: str | None, sample_lines: Callable[[int], list[bytes]]
) -> Opening:
    """Read what stands before the first image; the arguments are those of `plan_layout`."""
    named = find_separator_line(lines)
    n_lines, rest = int(named is not None), lines[named is not None :]
    if rest[0].lstrip()[:1] == b"%" or rest[0].lstrip()[:9].lower() == b"@relation":
        n_lines, names = _read_arff(lines)
        return Opening(",", None, names, n_lines, lines, sample_lines, ["an ARFF file"])
    separator = named or _find_separator(rest)
    if isinstance(cells := split_line(rest[0], separator), Problem):
        raise LayoutError(cells)
    found = f"no header: line {n_lines + 1} is the first image"
    opening = Opening(separator, None, None, n_lines, lines, sample_lines, [found])
    if _is_header(cells, rest, separator, label_column):
        opening.header, opening.n_lines = rest[0].removesuffix(b"\r"), n_lines + 1
        opening.names = [cell.strip(" \t") for cell in cells]
        opening.decisions = [f"line {n_lines + 1} is the header"]
        if _has_row_names(opening.rows, len(cells) + 1):
            opening.names.insert(0, "")
            opening.decisions.append("the header is one name short: column 1 is row names, as in R")
    if separator != ",":
        name = "tabs" if separator == "\t" else repr(separator)
        opening.decisions.append(f"cells are separated by {name}")
    return opening


def normalise(cell: str) -> str:
    """Return a column's name as names are compared."""
    return cell.strip(" \t").casefold()


def _read_arff(lines: list[bytes]) -> tuple[int, list[str]]:
    """Return the lines before the data of an ARFF file, and the names of its columns.

    Format: https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/
    """
    names = []
    for number, raw in enumerate(lines, 1):
        text = raw.decode("utf-8", "replace").strip()
        if match := _ATTRIBUTE.match(text):
            names.append(match[1].strip("'\""))
        elif text.lower() == "@data":
            if number < len(lines) and lines[number].lstrip().startswith(b"{"):
                hint = "write it out densely before export"
                raise LayoutError(fault("E009", "a sparse ARFF file", "a dense one", hint))
            return number, names
    raise LayoutError(fault("E009", "an ARFF file without @data", "a complete ARFF file"))


def _find_separator(lines: list[bytes]) -> str:
    """Return the separator, or raise E016, or E017 where decimal commas forced another one."""
    mark = max((b";", b"\t", b"|", b" "), key=lines[0].count)
    n_marks = lines[0].count(mark)
    name = {b"\t": "a tab", b" ": "a space"}.get(mark, repr(mark.decode()))
    decimal = re.compile(rb"(?:^|[;\t| ])[+-]?\d+,\d+(?:$|[;\t| ])")
    if n_marks >= N_PIXELS - 1 and any(map(decimal.search, lines[:2])):
        found, expected = f"decimal commas, and {name} between cells", "cells separated by ','"
        hint = "export with ',' between cells, and whole numbers"
        raise LayoutError(fault("E017", found, expected, hint, 1))
    if b"," in lines[0] or n_marks < (N_PIXELS // 2 if mark == b" " else 1):
        return ","
    if mark in (b";", b"\t"):
        return mark.decode()
    hint = f"convert it: tr '{mark.decode()}' ',' < old.txt > new.csv"
    found, expected = f"{name} between cells", "cells separated by ',', ';' or tabs"
    raise LayoutError(fault("E016", found, expected, hint, 1))


def _is_header(
    cells: list[str], lines: list[bytes], separator: str, label_column: str | None
) -> bool:
    """Decide between header and row; raise E021 for what is neither."""

    def unclear(what: str, hint: str, column: int = 0) -> LayoutError:
        expected = "a header of names, or a row of numbers"
        return LayoutError(fault("E021", what, expected, hint, column + 1))

    codes = [value.code if isinstance(value := pixel_value(c), Problem) else "" for c in cells]
    if 2 * codes.count("E031") > len(cells):
        return True
    for column, code in enumerate(codes):
        if code == "E031" and _PIXEL_NAME.fullmatch(normalise(cells[column])):
            raise unclear("names and numbers mixed", _HEADER_HINT, column)
    digits = [int(cell) for cell in cells if re.fullmatch(r"[ \t]*\d{1,5}[ \t]*", cell)]
    if len(digits) > 255 and digits == list(range(digits[0], digits[0] + len(digits))):
        if "E031" in codes or label_column is not None or len(digits) in SHAPES:
            return True
        what = f"the column numbers {digits[0]}..{digits[-1]}"
        raise unclear(what, f"if they are the header, {CHOOSE_LABEL}")
    is_unique_fractions = 2 * codes.count("E034") > len(cells) and len(set(cells)) == len(cells)
    if is_unique_fractions and len(lines) > 1:
        below = split_line(lines[1], separator)
        if isinstance(below, list) and not any("." in cell for cell in below):
            raise unclear("a row of pixels that was turned into column names", _HEADER_HINT)
    return False


def _has_row_names(rows: list[list[str]], width: int) -> bool:
    """Return whether each row has a cell more than the header, and the first ones differ."""
    is_wider = all(len(row) == width and row[-1].strip() for row in rows)
    return bool(rows) and is_wider and len({row[0] for row in rows}) == len(rows)
