"""Blocks of whole lines -> rows of uint8 pixels and label codes, and every fault with its place.

A block of plain digits, commas and line ends is parsed by NumPy at once; any other block is read
cell by cell, which accepts the tolerant forms of `cells` or says what is wrong. Both give the same
rows.

R rows of a block, W columns of the file, 784 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.csv.cells import (
    LINE_BYTES,
    Fault,
    is_whole,
    label_text,
    pixel_value,
    split_line,
)
from fmnist_tf.data.csv.layout import Layout
from fmnist_tf.errors import DataError, Problem, printable

MAX_CLASSES = 1000
_KEPT_BYTES = 16 << 20  # never touched, so never resident
_MEMO_ENTRIES = 1 << 16
_MEMO_CELL_BYTES = 32
_PLAIN_PIXELS = {str(value).encode(): value for value in range(256)}
_SCALED = "already scaled to 0..1? export the raw pixels 0..255"

Pixels = NDArray[np.uint8]
Codes = NDArray[np.int32]


class RowReader:
    """Reads the blocks of one file in order.

    Attributes:
        rows: good rows so far.
        line: 1-based line that the next block begins with.
        problems: the first faults in file order, at most `DataError.SHOWN`.
        problem_total: all faults.
        notes: sentences on tolerant forms that were met, in order of appearance.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        # glibc returns large blocks to the system at each free, and clearing their pages anew for
        # every block of text costs half the reading time; a first free of this size stops that.
        np.empty(_KEPT_BYTES, np.uint8)
        self._path = path
        self._layout = layout
        order = np.argsort(layout.pixel_columns, kind="stable")
        self._columns = [layout.pixel_columns[i] for i in order]
        first = self._columns[0]
        is_run = self._columns == list(range(first, first + N_PIXELS))
        self._fields: slice | list[int] = (
            slice(first, first + N_PIXELS) if is_run else self._columns
        )
        is_ordered = bool((order == np.arange(N_PIXELS)).all())
        self._order = None if is_ordered else np.argsort(order, kind="stable")
        self._others = sorted(set(range(layout.width)) - set(self._columns))
        self._pixel_memo: dict[bytes, int | Fault] = dict(_PLAIN_PIXELS)
        self._label_memo: dict[bytes, int] = {}
        self._labels: dict[str, int] = {}
        self._label_lines: list[int] = []
        self._label_counts: list[int] = []
        self._label_field = None if layout.label_column is None else layout.label_column + 1
        self._brightest = 0
        self._only_fractions = True
        self.rows = 0
        self.line = layout.first_line
        self.problems: list[Problem] = []
        self.problem_total = 0
        self.notes: list[str] = []

    def read_block(self, block: bytes) -> tuple[Pixels, Codes]:
        r"""Read one block of whole lines; only the file's last block may lack its last `\n`.

        Returns:
            pixels (R, 784) uint8 and label codes (R,) int32, zeros in an unlabelled file. Codes
            count labels by first appearance. Rows with a fault are left out.

        Raises:
            DataError: a line too long or more than 1,000 labels, where reading on makes no sense.
        """
        read = self._read_plain(block)
        if read is None:
            read = self._read_exactly(block)
            lines = block.count(b"\n")
        else:
            lines = len(read[0])
        pixels, codes = read
        if self._order is not None:
            pixels = pixels[:, self._order]
        if len(pixels):
            self._brightest = max(self._brightest, int(pixels.max()))
            if self._layout.label_column is not None:
                counts = np.bincount(codes, minlength=len(self._labels)).tolist()
                self._label_counts = [
                    a + b for a, b in zip(self._label_counts, counts, strict=True)
                ]
        self.rows += len(pixels)
        self.line += lines
        return pixels, codes

    def finish(self) -> tuple[tuple[str, ...], Codes]:
        """Judge what only the whole file shows.

        Returns:
            The K distinct labels in order (by value if all are whole numbers, else by text), and
            new_code (K,) int32 such that `new_code[code]` is a label's place in that order.

        Raises:
            DataError: every fault of the file.
        """
        if not self.problem_total and not self.rows:
            fault = Fault("E005", "a header and no image", "at least one line of pixels")
            self._add(fault, self.line - 1)
        self._judge_kinds()
        if self.problem_total:
            self._hint_scaled()
            raise DataError(self.problems, self.problem_total)
        texts = list(self._labels)
        if texts and is_whole(texts[0]):
            texts.sort(key=int)
        else:
            texts.sort()
        new_code = np.empty(len(texts), np.int32)
        for place, text in enumerate(texts):
            new_code[self._labels[text]] = place
        return tuple(texts), new_code

    def _read_plain(self, block: bytes) -> tuple[Pixels, Codes] | None:
        """Read a block of plain lines, or return None and change nothing but new labels."""
        if b'"' in block or b"#" in block or b"\0" in block or not block.isascii():
            return None
        if not block.endswith(b"\n"):
            block += b"\n"
        data = np.frombuffer(block, np.uint8)
        is_end = data == ord("\n")
        rows = np.count_nonzero(is_end)
        is_end |= data == ord(",")
        flat = np.flatnonzero(is_end)
        if len(flat) != rows * self._layout.width:
            return None
        ends = flat.reshape(rows, self._layout.width)  # (R, W): where each field ends
        if (data[ends[:, -1]] != ord("\n")).any():
            return None
        starts = np.zeros(rows, ends.dtype)  # (R,): where each line starts
        starts[1:] = ends[:-1, -1] + 1
        returns = 0
        if b"\r" in block:
            returns = block.count(b"\r")
            is_return = data[ends[:, -1] - 1] == ord("\r")
            if is_return.sum() != returns:
                return None
            ends[:, -1] -= is_return
        if (ends[:, -1] - starts).max() > LINE_BYTES:
            return None
        other_bytes = 0
        for column in self._others:
            begin = starts if column == 0 else ends[:, column - 1] + 1
            other_bytes += int((ends[:, column] - begin).sum())
        pixel_bytes = len(block) - len(flat) - returns - other_bytes
        pixels = _parse_pixels(data, ends[:, self._fields], pixel_bytes)
        if pixels is None:
            return None
        codes = np.zeros(rows, np.int32)
        label = self._layout.label_column
        if label is not None:
            begin = starts if label == 0 else ends[:, label - 1] + 1
            spans = zip(begin.tolist(), ends[:, label].tolist(), strict=True)
            for row, (start, end) in enumerate(spans):
                code = self._label_code(block[start:end], self.line + row)
                if isinstance(code, Fault):
                    return None
                codes[row] = code
        return pixels, codes

    def _read_exactly(self, block: bytes) -> tuple[Pixels, Codes]:
        lines = block.split(b"\n")
        is_whole_block = not lines[-1]
        if is_whole_block:
            lines.pop()
        good: list[bytes] = []
        codes: list[int] = []
        for number, raw in enumerate(lines, self.line):
            is_open = not is_whole_block and number == self.line + len(lines) - 1
            row = self._read_line(raw, number, is_open)
            if row is not None:
                good.append(row[0])
                codes.append(row[1])
        pixels = np.frombuffer(b"".join(good), np.uint8).reshape(len(good), N_PIXELS)
        return pixels, np.array(codes, np.int32)

    def _read_line(self, raw: bytes, line: int, is_open: bool) -> tuple[bytes, int] | None:
        """Read one line; `is_open` says that the file ends without ending this line."""
        layout = self._layout
        if layout.header is not None and raw.removesuffix(b"\r") == layout.header:
            hint = "files joined end to end? delete the inner header"
            self._add(Fault("E039", "the header again", "one image a line", hint), line)
            return None
        cells = split_line(raw)
        if isinstance(cells, Fault):
            self._add(cells, line)
            if len(raw.removesuffix(b"\r")) > LINE_BYTES:
                self._hint_scaled()
                raise DataError(self.problems, self.problem_total)
            return None
        if len(cells) != layout.width:
            self._add(_width_fault(cells, layout.width, is_open), line)
            return None
        if b'"' in raw:
            self._note("quotes around cells were taken off")
        code = 0
        faults: list[tuple[int, Fault]] = []
        if layout.label_column is not None:
            label = self._label_code(cells[layout.label_column], line)
            if isinstance(label, Fault):
                faults.append((layout.label_column + 1, label))
            else:
                code = label
        fields = self._fields
        pixel_cells = cells[fields] if isinstance(fields, slice) else [cells[i] for i in fields]
        try:
            values = bytes(map(self._pixel_memo.__getitem__, pixel_cells))  # type: ignore[arg-type]
        except (KeyError, TypeError):
            values = self._read_cells(pixel_cells, faults)
        if not faults:
            return values, code
        if len(self.problems) >= DataError.SHOWN:  # from here on only the count is told
            self.problem_total += len(faults)
            self._only_fractions &= all(fault.fraction for _, fault in faults)
            return None
        for column, fault in sorted(faults, key=lambda item: item[0]):
            self._add(fault, line, column)
        return None

    def _read_cells(self, cells: list[bytes], faults: list[tuple[int, Fault]]) -> bytes:
        """Read pixel cells one by one; add to `faults`, each with its 1-based field."""
        values = bytearray()
        for column, cell in zip(self._columns, cells, strict=True):
            value = self._pixel_memo.get(cell)
            if value is None:
                value = pixel_value(cell)
                if isinstance(value, int) and b"." in cell:
                    self._note("pixels written as 12.0 were read as 12")
                if len(cell) <= _MEMO_CELL_BYTES:
                    if len(self._pixel_memo) >= _MEMO_ENTRIES:
                        self._pixel_memo = dict(_PLAIN_PIXELS)
                    self._pixel_memo[cell] = value
            if isinstance(value, int):
                values.append(value)
                self._brightest = max(self._brightest, value)
            else:
                faults.append((column + 1, value))
        return bytes(values)

    def _label_code(self, cell: bytes, line: int) -> int | Fault:
        code = self._label_memo.get(cell)
        if code is not None:
            return code
        text = label_text(cell)
        if isinstance(text, Fault):
            return text
        if b"." in cell and is_whole(text):
            self._note("labels written as 5.0 were read as 5")
        code = self._labels.setdefault(text, len(self._labels))
        if code == len(self._label_lines):
            if code == MAX_CLASSES:
                found = f"a label beyond the first {MAX_CLASSES} distinct ones, {printable(text)}"
                hint = "is this the label column? name it with --label-column"
                expected = f"at most {MAX_CLASSES} classes"
                self._add(Fault("E028", found, expected, hint), line, self._label_field)
                raise DataError(self.problems, self.problem_total)
            self._label_lines.append(line)
            self._label_counts.append(0)
        if len(self._label_memo) >= _MEMO_ENTRIES:
            self._label_memo = {}
        if len(cell) <= _MEMO_CELL_BYTES:
            self._label_memo[cell] = code
        return code

    def _judge_kinds(self) -> None:
        """Refuse whole numbers and names in one label column: the rarer kind is the fault."""
        images: dict[bool, int] = {True: 0, False: 0}
        for text, code in self._labels.items():
            images[is_whole(text)] += self._label_counts[code]
        if not (images[True] and images[False]):
            return
        rarer = images[True] < images[False]
        kinds = ("names", "whole numbers") if rarer else ("whole numbers", "names")
        before = len(self.problems)
        for text, code in self._labels.items():
            if is_whole(text) == rarer:
                found = f"the label {printable(text)} among {kinds[0]}"
                fault = Fault("E027", found, f"only {kinds[0]} or only {kinds[1]}")
                self._add(fault, self._label_lines[code], self._label_field, keep=True)
        if len(self.problems) > before:
            self.problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
            del self.problems[DataError.SHOWN :]

    def _add(
        self, fault: Fault, line: int, field: int | None = None, *, keep: bool = False
    ) -> None:
        """Count a fault; keep it if it is among the first, or if `keep`."""
        self._only_fractions &= fault.fraction
        self.problem_total += 1
        if len(self.problems) >= DataError.SHOWN and not keep:
            return
        field = fault.column if field is None else field
        self.problems.append(
            Problem(
                fault.code,
                self._path,
                line,
                field,
                None if field is None else self._layout.name(field - 1),
                fault.found,
                fault.expected,
                fault.hint,
            )
        )

    def _hint_scaled(self) -> None:
        if self._only_fractions and self._brightest <= 1:
            self.problems = [replace(problem, hint=_SCALED) for problem in self.problems]

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _parse_pixels(
    data: NDArray[np.uint8], ends: NDArray[np.intp], pixel_bytes: int
) -> Pixels | None:
    """Read fields of one to three digits that end before `ends` (R, 784); None if any is other.

    The proof of the grammar is a count: every field's last byte is a digit, so each field gives at
    most as many of its (up to three) last bytes to the count of digits as it is long; the sum can
    reach `pixel_bytes`, the bytes of all these fields, only if every byte of every field counted.
    """
    index = ends - 1
    units = data.take(index) - ord("0")
    index -= 1
    tens = data.take(index) - ord("0")
    index -= 1
    hundreds = data.take(index) - ord("0")
    has_tens = tens <= 9
    has_hundreds = hundreds <= 9
    has_hundreds &= has_tens
    digits = units.size + np.count_nonzero(has_tens) + np.count_nonzero(has_hundreds)
    if units.max() > 9 or digits != pixel_bytes:
        return None
    tens *= has_tens
    hundreds *= has_hundreds
    if hundreds.max() > 2:
        return None
    tens *= 10
    tens += units
    hundreds *= 100
    hundreds += tens
    if (hundreds < tens).any():  # 256..299 wrapped round
        return None
    return hundreds


def _width_fault(cells: Sequence[bytes], width: int, is_open: bool) -> Fault:
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
