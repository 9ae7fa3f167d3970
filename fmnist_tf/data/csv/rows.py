"""The rows of a CSV -> pixels and label codes, and every fault with its place.

Lines are read some thousand at a time: by pandas' C parser where all of them are plain, else cell
by cell, which reads rarer forms and finds faults. What pandas would read otherwise is not plain:
quotes, comments, lone carriage returns, `True` for 1, control characters, a cell too many.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.data.arrays import to_28
from fmnist_tf.data.csv.cells import (
    LINE_BYTES,
    fault,
    is_whole,
    label_text,
    pixel_value,
    split_line,
)  # fmt: skip
from fmnist_tf.data.csv.columns import is_one_hot
from fmnist_tf.data.csv.layout import Layout
from fmnist_tf.data.labels import MAX_CLASSES
from fmnist_tf.data.store import Block
from fmnist_tf.errors import DataError, Problem, printable

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 1 << 24
_NUMERIC = b"0123456789.+-eE \t\r\n"
_SCALED = "already scaled to 0..1? multiply by 255 and round before export"


class Rows:
    """Reads the rows of one file once; `codes` are those of the label texts met so far."""

    def __init__(self, path: str, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self.codes: dict[str, int] = {}
        self._label_lines: list[int] = []  # where each code appears first
        self._label_counts: Counter[int] = Counter()
        self._brightest = 0
        self._problems: list[Problem] = []
        self._totals: Counter[str] = Counter()
        self._dtypes: dict[int, Any] = dict.fromkeys(range(layout.width), object)
        numbers = layout.pixel_columns + (layout.label_columns if layout.classes else ())
        self._dtypes |= dict.fromkeys(numbers, np.dtype(np.uint8))

    def read(self, blocks: Iterator[bytes]) -> Iterator[Block]:
        """Yield the rows of the text after the header that have no fault.

        Raises:
            DataError: all faults of the file, after its last row.
        """
        n_rows, line = 0, self._layout.first_line
        try:
            for chunk in _whole_lines(blocks):
                part = self._read_plain(chunk, line) or self._read_exactly(chunk, line)
                if part is not None:
                    pixels, codes = part
                    n_rows += len(pixels)
                    self._brightest = max(self._brightest, int(pixels.max()))
                    yield to_28(pixels, *self._layout.shape), codes
                line += chunk.count(b"\n") + (not chunk.endswith(b"\n"))
        except DataError as error:
            self._problems += error.problems
            self._totals.update(error.totals)
        if not self._problems and not n_rows:
            found, expected = "a header and no image", "at least one line of pixels"
            self._add(fault("E005", found, expected), line - 1)
        self._check_kinds()
        if self._problems:
            if self._totals["E034"] == self._totals.total() and self._brightest <= 1:
                self._problems = [replace(problem, hint=_SCALED) for problem in self._problems]
            self._problems.sort(key=lambda p: (p.line is None, p.line or 0, p.column or 0))
            raise DataError(self._problems, self._totals)

    def _read_plain(self, chunk: bytes, line: int) -> Block | None:
        """Return the rows of whole lines; None if one is not plain, or may have a fault."""
        layout = self._layout
        if (frame := _parse_plain(chunk, layout, self._dtypes)) is None:
            return None
        index, cells = np.zeros(len(frame), np.int64), ["0"]
        if layout.classes:
            one_hot = frame[list(layout.label_columns)].to_numpy()
            if (one_hot.sum(axis=1) != 1).any():
                return None
            index, cells = one_hot.argmax(axis=1), list(layout.classes)
        elif layout.label_columns:
            index, values = frame[layout.label_columns[0]].factorize()
            cells = list(map(str, values))
        texts = [label_text(cell) for cell in cells]
        if any(isinstance(text, Problem) for text in texts):
            return None
        if len({*self.codes, *texts}) > MAX_CLASSES:
            return None
        found, firsts, counts = np.unique(index, return_index=True, return_counts=True)
        codes = np.zeros(len(texts), np.int32)
        for k, first, count in zip(found, firsts, counts, strict=True):
            codes[k] = self._count_label(str(texts[k]), line + int(first), int(count))
        pixels = np.ascontiguousarray(frame[list(layout.pixel_columns)].to_numpy())
        return pixels, codes[index]

    def _count_label(self, text: str, line: int, count: int = 1) -> int:
        """Return the code of a label that some rows have."""
        code = self.codes.setdefault(text, len(self.codes))
        if code == len(self._label_lines):
            self._label_lines.append(line)
        self._label_counts[code] += count
        return code

    def _read_exactly(self, chunk: bytes, line: int) -> Block | None:
        """Return the rows that have no fault."""
        lines = chunk.split(b"\n")
        is_open = bool(lines[-1])  # the file ends without ending this line
        lines = lines if is_open else lines[:-1]
        last = line + len(lines) - 1
        rows, codes = [], []
        for number, raw in enumerate(lines, line):
            row = self._read_line(raw, number, is_open and number == last)
            if row is not None:
                rows.append(row[0])
                codes.append(row[1])
        if not rows:
            return None
        pixels = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
        return pixels, np.array(codes, np.int32)

    def _read_line(self, raw: bytes, line: int, is_open: bool) -> tuple[bytes, int] | None:
        layout = self._layout
        if layout.header is not None and raw.rstrip(b"\r") == layout.header:
            hint = "files joined end to end? delete the inner header"
            self._add(fault("E039", "the header again", "one image a line", hint), line)
            return None
        cells = split_line(raw, layout.separator)
        if isinstance(cells, Problem):
            self._add(cells, line)
            return None
        if len(cells) != layout.width:
            self._add(_width_fault(cells, layout.width, is_open), line)
            return None
        label = self._read_label(cells)
        values = [pixel_value(cells[column]) for column in layout.pixel_columns]
        try:
            if not isinstance(label, Problem):
                pixels = bytes(values)  # type: ignore[arg-type]
                return pixels, self._count_label(label, line)
        except TypeError:  # some are faults
            pass
        columns = (*layout.label_columns[:1], *layout.pixel_columns)
        for column, value in sorted(zip(columns, (label, *values)[-len(columns) :], strict=True)):
            if isinstance(value, Problem):
                self._add(replace(value, column=column + 1), line)
            elif isinstance(value, int):
                self._brightest = max(self._brightest, value)
        return None

    def _read_label(self, cells: list[str]) -> str | Problem:
        layout = self._layout
        if not layout.label_columns:
            return "0"
        if layout.classes:
            key = [cells[column] for column in layout.label_columns]
            if not is_one_hot([key], range(len(key))):
                expected = "a 1 in one of the label columns and 0 in the others"
                return fault("E027", f"the labels {printable(','.join(key))}", expected)
            return label_text(layout.classes[[pixel_value(cell) for cell in key].index(1)])
        text = label_text(cells[layout.label_columns[0]])
        if isinstance(text, str) and len(self.codes) == MAX_CLASSES and text not in self.codes:
            found = f"a label beyond the first {MAX_CLASSES} distinct ones, {printable(text)}"
            hint = "is this the label column? name it with --label-column"
            return fault("E028", found, f"at most {MAX_CLASSES} classes", hint)
        return text

    def _check_kinds(self) -> None:
        """Refuse whole numbers and names in one label column: the rarer kind is the fault."""
        images = Counter({True: 0, False: 0})
        for text, code in self.codes.items():
            images[is_whole(text)] += self._label_counts[code]
        if not images[True] or not images[False]:
            return
        rarer = images[True] < images[False]
        kinds = ("names", "whole numbers") if rarer else ("whole numbers", "names")
        column = self._layout.label_columns[0] + 1
        for text, code in self.codes.items():
            if is_whole(text) == rarer:
                found = f"the label {printable(text)} among {kinds[0]}"
                expected = f"only {kinds[0]} or only {kinds[1]}"
                self._add(fault("E027", found, expected, "", column), self._label_lines[code])

    def _add(self, problem: Problem, line: int) -> None:
        """Count a fault; keep it if it is among the first of its code."""
        self._totals[problem.code] += 1
        if self._totals[problem.code] <= DataError.SHOWN:
            name = dict(enumerate(self._layout.names, 1)).get(problem.column or 0) or None
            self._problems.append(replace(problem, path=self._path, line=line, column_name=name))


def _parse_plain(chunk: bytes, layout: Layout, dtypes: dict[int, Any]) -> pd.DataFrame | None:
    """Return whole lines as pandas reads them; None if it would read one otherwise than we do."""
    import pandas as pd  # 0.3 s that a second start saves

    separator = layout.separator.encode()
    n_rows = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    if chunk.count(separator) != n_rows * (layout.width - 1):
        return None
    if max(map(len, chunk.split(b"\n"))) > LINE_BYTES:
        return None
    try:
        letters = chunk.translate(None, _NUMERIC + separator).decode().casefold()
    except UnicodeDecodeError:
        return None
    # pandas reads a column of true and false (less their e's) as 1 and 0.
    if not letters.isprintable() or any(word in letters for word in ('"', "#", "tru", "fals")):
        return None
    try:
        # numpy warns of the cast of inf, pandas of cells too many.
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                io.BytesIO(chunk),
                sep=layout.separator,
                header=None,
                index_col=False,
                names=range(layout.width),
                dtype=dtypes,
                skip_blank_lines=False,
                na_filter=False,
            )
    except (ValueError, OverflowError, pd.errors.ParserError, pd.errors.ParserWarning):
        return None


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield text in pieces of about `CHUNK_BYTES` that end at a line's end, the last perhaps not.

    What was read before an error is yielded first.
    """
    parts: list[bytes] = []
    n_bytes = 0
    try:
        for block in blocks:
            parts.append(block)
            n_bytes += len(block)
            if n_bytes >= CHUNK_BYTES:
                text = b"".join(parts)
                end = text.rfind(b"\n") + 1
                yield text[: end or None]
                if not end:
                    return  # an endless line: a fault
                parts, n_bytes = [text[end:]], len(text) - end
    except DataError:
        text = b"".join(parts)
        if b"\n" in text:
            yield text[: text.rfind(b"\n") + 1]
        raise
    if n_bytes:
        yield b"".join(parts)


def _width_fault(cells: list[str], width: int, is_open: bool) -> Problem:
    found, expected = f"{len(cells)} fields", f"{width}"
    if len(cells) < width:
        if is_open:
            hint = "the file breaks off in its last line: fetch or export it again"
            return fault("E015", f"{found} and no line end", expected, hint)
        return fault("E018", found, expected)
    hint = "" if len(cells) < 2 * width - 2 else "decimal commas?"
    return fault("E019", found, expected, hint if cells[-1] else "a comma at the end of the line?")
