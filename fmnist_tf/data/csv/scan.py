"""The rows of any CSV, line by line and cell by cell, and every fault with its place.

Slower than `fast`, which reads the same rows where the file is plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np

from fmnist_tf.data.csv.cells import (
    LINE_BYTES,
    Fault,
    is_whole,
    label_text,
    pixel_value,
    split_line,
)
from fmnist_tf.data.csv.columns import is_one_hot
from fmnist_tf.data.csv.labels import MAX_CLASSES, LabelCodes
from fmnist_tf.data.csv.layout import Layout
from fmnist_tf.data.resize import to_28
from fmnist_tf.data.store import Block
from fmnist_tf.errors import DataError, Problem, printable

ROWS = 1024
_SCALED = "already scaled to 0..1? multiply by 255 and round before export"

Row = tuple[bytes, int]
"""Pixels and label code."""


class _EndError(Exception):
    """Reading on makes no sense."""


class Scanner:
    """Reads one file once."""

    def __init__(self, path: str, layout: Layout, labels: LabelCodes) -> None:
        self._path = path
        self._layout = layout
        self._labels = labels
        self._pick_pixels = itemgetter(*layout.pixel_columns)
        self._label_lines: list[int] = []
        self._label_counts: Counter[int] = Counter()
        self._brightest = 0
        self._problems: list[Problem] = []
        self._totals: Counter[str] = Counter()

    def read(self, blocks: Iterator[bytes]) -> Iterator[Block]:
        """Yield pixels (R, 784) uint8 and label codes (R,) int32; rows with a fault are left out.

        Args:
            blocks: the text after the header.

        Raises:
            DataError: all faults of the file, after its last row.
        """
        rows: list[Row] = []
        n_rows, line = 0, self._layout.first_line
        try:
            for raw, is_open in _split_lines(blocks):
                if (row := self._read_line(raw, line, is_open)) is not None:
                    rows.append(row)
                    n_rows += 1
                    if len(rows) == ROWS:
                        yield self._pack(rows)
                        rows = []
                line += 1
            if rows:
                yield self._pack(rows)
        except _EndError:
            pass
        except DataError as error:
            self._problems += error.problems
            self._totals.update(error.totals)
        if not self._problems and not n_rows:
            self._add(
                Fault("E005", "a header and no image", "at least one line of pixels"), line - 1
            )
        self._check_kinds()
        if self._problems:
            self._finish_hints()
            self._problems.sort(key=lambda p: (p.line is None, p.line or 0, p.column or 0))
            raise DataError(self._problems, self._totals)

    def _pack(self, rows: list[Row]) -> Block:
        data = np.frombuffer(b"".join(pixels for pixels, _ in rows), np.uint8)
        codes = np.array([code for _, code in rows], np.int32)
        return to_28(data.reshape(len(rows), -1), *self._layout.shape), codes

    def _read_line(self, raw: bytes, line: int, is_open: bool) -> Row | None:
        """Read one line; `is_open` says that the file ends without ending this line."""
        layout = self._layout
        if layout.header is not None and raw.rstrip(b"\r") == layout.header:
            hint = "files joined end to end? delete the inner header"
            self._add(Fault("E039", "the header again", "one image a line", hint), line)
            return None
        cells = split_line(raw, layout.separator)
        if isinstance(cells, Fault):
            self._add(cells, line)
            if len(raw) > LINE_BYTES:
                raise _EndError
            return None
        if len(cells) != layout.width:
            self._add(_width_fault(cells, layout.width, is_open), line)
            return None
        faults = []
        code = self._label_code(cells, line)
        if isinstance(code, Fault):
            faults.append(code)
        pixels = b""
        try:
            pixels = bytes(map(pixel_value, self._pick_pixels(cells)))  # type: ignore[arg-type]
        except TypeError:  # some are faults
            for column in layout.pixel_columns:
                value = pixel_value(cells[column])
                if isinstance(value, Fault):
                    faults.append(replace(value, column=column + 1))
                else:
                    self._brightest = max(self._brightest, value)
        for fault in sorted(faults, key=lambda fault: fault.column or 0):
            self._add(fault, line)
        self._brightest = max(self._brightest, max(pixels, default=0))
        if faults or isinstance(code, Fault):
            return None
        self._label_counts[code] += 1
        return pixels, code

    def _label_code(self, cells: list[str], line: int) -> int | Fault:
        layout = self._layout
        if not layout.label_columns:
            return 0
        key = [cells[column] for column in layout.label_columns]
        field = layout.label_columns[0] + 1
        text: str | Fault
        if layout.classes:
            if not is_one_hot([cells], layout.label_columns):
                expected = "a 1 in one of the label columns and 0 in the others"
                return Fault("E027", f"the labels {printable(','.join(key))}", expected, "", field)
            text = label_text(layout.classes[list(map(pixel_value, key)).index(1)])
        else:
            text = label_text(key[0])
        if isinstance(text, Fault):
            return replace(text, column=field)
        code = self._labels.add(text)
        if code == len(self._label_lines):
            if code == MAX_CLASSES:
                found = f"a label beyond the first {MAX_CLASSES} distinct ones, {printable(text)}"
                hint = "is this the label column? name it with --label-column"
                expected = f"at most {MAX_CLASSES} classes"
                self._add(Fault("E028", found, expected, hint, field), line)
                raise _EndError
            self._label_lines.append(line)
        return code

    def _check_kinds(self) -> None:
        """Refuse whole numbers and names in one label column: the rarer kind is the fault."""
        if not self._labels.is_mixed:
            return
        images = Counter({True: 0, False: 0})
        for text, code in self._labels.codes.items():
            images[is_whole(text)] += self._label_counts[code]
        rarer = images[True] < images[False]
        kinds = ("names", "whole numbers") if rarer else ("whole numbers", "names")
        field = self._layout.label_columns[0] + 1
        for text, code in self._labels.codes.items():
            if is_whole(text) == rarer and self._label_counts[code]:
                found = f"the label {printable(text)} among {kinds[0]}"
                fault = Fault("E027", found, f"only {kinds[0]} or only {kinds[1]}", "", field)
                self._add(fault, self._label_lines[code])

    def _add(self, fault: Fault, line: int) -> None:
        """Count a fault; keep it if it is among the first of its code."""
        self._totals[fault.code] += 1
        if self._totals[fault.code] <= DataError.SHOWN:
            name = None if fault.column is None else self._layout.name(fault.column - 1)
            self._problems.append(fault.at(self._path, line, name))

    def _finish_hints(self) -> None:
        if self._totals["E034"] == self._totals.total() and self._brightest <= 1:
            self._problems = [replace(problem, hint=_SCALED) for problem in self._problems]


def _split_lines(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    r"""Yield lines without `\n`, and whether the text ends without ending this line.

    A line that is too long comes as far as it was read, and is the last.
    """
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line, False
        if len(rest) > LINE_BYTES + 2:
            break
    if rest:
        yield rest, True


def _width_fault(cells: Sequence[str], width: int, is_open: bool) -> Fault:
    found, expected = f"{len(cells)} fields", f"{width}"
    if len(cells) < width:
        if is_open:
            hint = "the file breaks off in its last line: fetch or export it again"
            return Fault("E015", f"{found} and no line end", expected, hint)
        return Fault("E018", found, expected)
    hint = ""
    if not cells[-1]:
        hint = "a comma at the end of the line?"
    elif len(cells) >= 2 * width - 2:
        hint = "decimal commas?"
    return Fault("E019", found, expected, hint)
