"""What stands before the first image of a CSV: separator, header, oddities of Excel and R."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.arrays import SHAPES
from fmnist_tf.data.csv.cells import pixel_value, split_line
from fmnist_tf.data.csv.faults import refuse
from fmnist_tf.errors import DataError, Problem

_ROWS = 50  # enough to count columns
_PIXEL_NAME = re.compile(r"(?:pixel|px|pix)[ _.-]?\d{1,5}|\d{1,3}x\d{1,3}")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?,*[ \t\r]*', re.IGNORECASE)
_DECIMAL_COMMA = re.compile(rb"(?:^|[;\t| ])[+-]?\d+,\d+(?:$|[;\t| ])")
_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s", re.IGNORECASE)


@dataclass
class Top:
    """What stands before the first image.

    Attributes:
        separator: "," or ";" or a tab, or what Excel's line `sep=` names.
        header: the header's bytes without line end, or None.
        names: of the columns; None without a header.
        n_lines: lines before the first image.
        rows: cells of the first lines below, those with a fault left out.
        decisions: what was decided, one sentence each.
    """

    separator: str
    header: bytes | None
    names: list[str] | None
    n_lines: int
    rows: list[list[str]]
    decisions: list[str]


def find_separator_line(lines: list[bytes]) -> str | None:
    """Return the separator that Excel's first line `sep=;` names, if there is one."""
    match = _SEPARATOR_LINE.fullmatch(lines[0]) if len(lines) > 1 else None
    return match and match[1].decode("latin-1")


def read_top(lines: list[bytes], label_column: str | None) -> Top:
    """Read the first lines; DataError: E009, E011, E012, E014, E016, E017, E021, E038, E039."""
    named = find_separator_line(lines)
    n = 1 if named else 0  # of the line that may be a header
    if lines[n].lstrip()[:1] == b"%" or lines[n].lstrip()[:9].lower() == b"@relation":
        n, names = _read_arff(lines)
        rows = split_rows(lines[n : n + _ROWS], ",")
        return Top(",", None, names, n, rows, ["an ARFF file"])
    separator = named or _find_separator(lines[n:])
    if isinstance(cells := split_line(lines[n], separator), Problem):
        raise DataError([cells])
    rows = split_rows(lines[n + 1 : n + _ROWS], separator)
    top = Top(separator, None, None, n, [cells, *rows], [f"no header: line {n + 1} is an image"])
    if _is_header(cells, rows, label_column):
        names, header = [cell.strip(" \t") for cell in cells], lines[n].rstrip(b"\r")
        top = Top(separator, header, names, n + 1, rows, [f"line {n + 1} is the header"])
        is_wider = all(len(row) == len(cells) + 1 and row[-1].strip() for row in rows)
        if rows and is_wider and len({row[0] for row in rows}) == len(rows):
            names.insert(0, "")
            top.decisions.append("the header is one name short: column 1 is row names, as in R")
    if separator != ",":
        name = "tabs" if separator == "\t" else repr(separator)
        top.decisions.append(f"cells are separated by {name}")
    return top


def split_rows(lines: list[bytes], separator: str) -> list[list[str]]:
    """Return the cells of the lines that have no fault."""
    rows = (split_line(line, separator) for line in lines)
    return [row for row in rows if isinstance(row, list)]


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
            if b"".join(lines[number : number + 1]).lstrip().startswith(b"{"):
                raise refuse("E009 sparse")
            return number, names
    raise refuse("E009 no data")


def _find_separator(lines: list[bytes]) -> str:
    """Return the separator, or raise E016, or E017 where decimal commas forced another one."""
    mark = max((b";", b"\t", b"|", b" "), key=lines[0].count)
    n_marks = lines[0].count(mark)
    name = {b"\t": "a tab", b" ": "a space"}.get(mark, repr(mark.decode()))
    if n_marks >= N_PIXELS - 1 and any(map(_DECIMAL_COMMA.search, lines[:2])):
        raise refuse("E017 top", name, column=1)
    if b"," in lines[0] or n_marks < (N_PIXELS // 2 if mark == b" " else 1):
        return ","
    if mark in (b"|", b" "):
        raise refuse("E016", name, mark.decode(), column=1)
    return mark.decode()


def _is_header(cells: list[str], rows: list[list[str]], label_column: str | None) -> bool:
    """Decide between header and row; E021, neither."""
    codes = [value.code if isinstance(value := pixel_value(c), Problem) else "" for c in cells]
    if 2 * codes.count("E031") > len(cells):
        return True
    for column, (cell, code) in enumerate(zip(cells, codes, strict=True), 1):
        if code == "E031" and _PIXEL_NAME.fullmatch(cell.strip(" \t").casefold()):
            raise refuse("E021 mixed", column=column)
    numbers = [int(cell) for cell in cells if re.fullmatch(r"[ \t]*\d{1,5}[ \t]*", cell)]
    if len(numbers) > 255 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        if "E031" in codes or label_column is not None or len(numbers) in SHAPES:
            return True
        raise refuse("E021 numbers", numbers[0], numbers[-1], column=1)
    is_unique_fractions = 2 * codes.count("E034") > len(cells) == len(set(cells))
    if is_unique_fractions and rows and not any("." in cell for cell in rows[0]):
        raise refuse("E021 fractions", column=1)
    return False
