"""The first lines of a CSV: separator, header or none, ARFF and Excel's oddities."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.csv.cells import Fault, pixel_value, split_line
from fmnist_tf.data.resize import SHAPES

_ROWS = 50  # of the first block, enough to count columns
_PIXEL_NAME = re.compile(r"(?:pixel|px|pix)[ _.-]?\d{1,5}|\d{1,3}x\d{1,3}")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?,*[ \t\r]*', re.IGNORECASE)
_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s", re.IGNORECASE)
_HEADER_HINT = "write label,pixel1,...,pixel784 as the first line, or no header at all"
CHOOSE_LABEL = "choose the label with --label-column NAME, a column's number, first or last"


class LayoutError(Exception):
    """Faults of the first lines, before path and line are known."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(faults)
        self.faults = faults


@dataclass
class Opening:
    """What stands before the first image; `names` and `header` as in `Layout`."""

    separator: str
    header: bytes | None
    names: list[str] | None
    n_lines: int
    lines: list[bytes]
    sample_lines: Callable[[int], list[bytes]]
    decisions: list[str] = field(default_factory=list)

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


def skip_separator_line(lines: list[bytes]) -> int:
    """Return 1 if the first line is Excel's `sep=;` and not the only one, else 0."""
    return int(len(lines) > 1 and _SEPARATOR_LINE.fullmatch(lines[0]) is not None)


def read_opening(
    lines: list[bytes], label_column: str | None, sample_lines: Callable[[int], list[bytes]]
) -> Opening:
    """Read what stands before the first image.

    Args:
        lines: complete lines from the start of the text.
        label_column: see `plan_layout`; a number tells that a first line of numbers is a header.
        sample_lines: see `plan_layout`.

    Raises:
        LayoutError: E009, E011, E012, E014, E016, E017, E021, E038.
    """
    n_skipped = skip_separator_line(lines)
    first = lines[n_skipped]
    if first.lstrip()[:1] == b"%" or first.lstrip()[:9].lower() == b"@relation":
        n_lines, names = _read_arff(lines)
        return Opening(",", None, names, n_lines, lines, sample_lines, ["an ARFF file"])
    separator = _find_separator(lines[n_skipped:])
    if n_skipped and (match := _SEPARATOR_LINE.fullmatch(lines[0])):
        separator = match[1].decode("latin-1")
    cells = split_line(first, separator)
    if isinstance(cells, Fault):
        raise LayoutError(cells)
    opening = Opening(separator, None, None, n_skipped, lines, sample_lines)
    if _is_header(cells, lines[n_skipped:], separator, label_column):
        opening.header, opening.n_lines = first.removesuffix(b"\r"), n_skipped + 1
        opening.names = [cell.strip(" \t") for cell in cells]
        opening.decisions.append(f"line {n_skipped + 1} is the header")
        if _has_row_names(opening):
            opening.names.insert(0, "")
            opening.decisions.append("the header is one name short: column 1 is row names, as in R")
    else:
        opening.decisions.append(f"no header: line {n_skipped + 1} is the first image")
    if separator != ",":
        name = "tabs" if separator == "\t" else repr(separator)
        opening.decisions.append(f"cells are separated by {name}")
    return opening


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
                raise LayoutError(Fault("E009", "a sparse ARFF file", "a dense one", hint))
            return number, names
    raise LayoutError(Fault("E009", "an ARFF file without @data", "a complete ARFF file"))


def _find_separator(lines: list[bytes]) -> str:
    """Return the separator, or raise E016, or E017 where decimal commas forced another one."""
    first = lines[0]
    counts = {mark: first.count(mark) for mark in (b";", b"\t", b"|", b" ")}
    mark = max(counts, key=lambda mark: counts[mark])
    if counts[mark] >= N_PIXELS - 1:
        decimal = re.compile(rb"(?:^|[;\t| ])[+-]?\d+,\d+(?:$|[;\t| ])")
        if any(decimal.search(line) for line in lines[:2]):
            hint = "export with ',' between cells, and whole numbers"
            name = _separator_name(mark)
            found = f"decimal commas, and {name} between cells"
            raise LayoutError(Fault("E017", found, "cells separated by ','", hint, 1))
    if b"," in first or counts[mark] < (N_PIXELS // 2 if mark == b" " else 1):
        return ","
    if mark in (b";", b"\t"):
        return mark.decode()
    hint = f"convert it: tr '{mark.decode()}' ',' < old.txt > new.csv"
    found = f"{_separator_name(mark)} between cells"
    raise LayoutError(Fault("E016", found, "cells separated by ',', ';' or tabs", hint, 1))


def _separator_name(mark: bytes) -> str:
    return {b"\t": "a tab", b" ": "a space"}.get(mark) or repr(mark.decode())


def _is_header(
    cells: list[str], lines: list[bytes], separator: str, label_column: str | None
) -> bool:
    """Decide between header and row; raise E021 for what is neither."""
    values = [pixel_value(cell) for cell in cells]
    texts = [isinstance(value, Fault) and value.code == "E031" for value in values]
    if 2 * sum(texts) > len(cells):
        return True
    named = [
        c for c, text in enumerate(texts) if text and _PIXEL_NAME.fullmatch(normalise(cells[c]))
    ]
    if named:
        raise _ambiguous(named[0], "names and numbers mixed", _HEADER_HINT)
    digits = [int(cell) for cell in cells if re.fullmatch(r"[ \t]*\d{1,5}[ \t]*", cell)]
    if len(digits) > 255 and digits == list(range(digits[0], digits[0] + len(digits))):
        if any(texts) or label_column is not None or len(digits) in SHAPES:
            return True
        what = f"the column numbers {digits[0]}..{digits[-1]}"
        raise _ambiguous(0, what, f"if they are the header, {CHOOSE_LABEL}")
    fractions = sum(isinstance(value, Fault) and value.code == "E034" for value in values)
    if 2 * fractions > len(cells) and len(set(cells)) == len(cells) and len(lines) > 1:
        below = split_line(lines[1], separator)
        if isinstance(below, list) and not any("." in cell for cell in below):
            raise _ambiguous(0, "a row of pixels that was turned into column names", _HEADER_HINT)
    return False


def _ambiguous(column: int, what: str, hint: str) -> LayoutError:
    expected = "a header of names, or a row of numbers"
    return LayoutError(Fault("E021", what, expected, hint, column + 1))


def normalise(cell: str) -> str:
    """Return a column's name as names are compared."""
    return cell.strip(" \t").casefold()


def _has_row_names(opening: Opening) -> bool:
    """Return whether each row has one cell more than the header, and the first ones differ."""
    rows, width = opening.rows, len(opening.names or ()) + 1
    firsts = {row[0] for row in rows}
    is_wider = all(len(row) == width and row[-1].strip() for row in rows)
    return bool(rows) and is_wider and len(firsts) == len(rows)
