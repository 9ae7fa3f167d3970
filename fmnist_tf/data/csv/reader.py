"""A CSV of images -> blocks of pixels and label codes for the store; all faults at once.

Lines are read some thousand at a time: by pandas' C parser where all of them are plain, else cell
by cell, which reads rarer forms and finds faults. What pandas would read otherwise is not plain:
quotes, comments, lone carriage returns, `True` for 1, control characters, a cell too many.

docs/data.md lists what is accepted, and the codes of what is not.
"""

from __future__ import annotations

import io
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.arrays import SHAPES, to_28
from fmnist_tf.data.csv.cells import pixel_value, split_line
from fmnist_tf.data.csv.columns import is_one_hot
from fmnist_tf.data.csv.faults import LINE_BYTES, SCALED, fault
from fmnist_tf.data.csv.layout import Layout, plan_layout
from fmnist_tf.data.files import File
from fmnist_tf.data.labels import LabelCodes
from fmnist_tf.data.store import Content, Write
from fmnist_tf.errors import DataError, Problem, file_error

HEAD_BYTES = 1 << 20
"""Text by which the layout is decided; an ARFF header of 784 attributes has some 40 KB."""
CHUNK_BYTES = 1 << 24

_BOM = b"\xef\xbb\xbf"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BLANK = b" \t\r\n\x1a"  # Ctrl-Z ends a text file of DOS
_NUMERIC = b"0123456789.+-eE \t\r\n"


def read_csv(file: File, label_column: str | None, store_dir: Path, write: Write) -> Content:
    """Read the rows, and return what a store keeps beside their pixels.

    Args:
        file: of text.
        label_column: see `read_table`.
        store_dir: on the disk that must have room for the images.
        write: takes the pixels, block by block.

    Raises:
        DataError: E004, E009..E023, E025, E026, E038, E044; if there is none of them, all faults of
            the rows.
    """
    head = b""
    with suppress(DataError):  # raised again, with all other faults, by the rows
        for block in _read_text(file):
            head += block
            if len(head) >= HEAD_BYTES:
                break
    if not head.strip(_BLANK):
        next(_read_text(file), None)
        raise file_error("E004", file.path, "a file without any text (empty)", "a CSV of images")
    n_bytes = file.estimate_bytes(len(head))

    def sample_lines(skipped: int) -> list[bytes]:
        """Return all lines of the first block and a few of every other one."""
        blocks = (block.split(b"\n") for block in _read_text(file))
        sample = next(blocks)[skipped:]
        for lines in blocks:  # the first and the last one may be cut
            sample += lines[:: len(lines) // 4 + 1]
        return sample

    layout = plan_layout(file.path, head, label_column, sample_lines)
    _check_room(file.path, layout, head, n_bytes, store_dir)
    rows = _Rows(file.path, layout)
    codes = rows.read(_read_chunks(file), write)
    values, place = rows.labels.sort()
    is_labelled = bool(layout.label_columns)
    header = "a header and" if layout.top.names else "no header,"
    labels = ", ".join(str(column + 1) for column in layout.label_columns) or "none"
    return (place[codes] if is_labelled else None), {
        "label_values": values if is_labelled else (),
        "first_line": layout.top.n_lines + 1,
        "decisions": [*dict.fromkeys(file.notes), *layout.decisions],
        "label_field": layout.label_columns[0] + 1 if is_labelled else None,
        "layout": f"{header} {layout.width} columns, label: {labels}",
    }


def _read_text(file: File) -> Iterator[bytes]:
    """Yield the text without a byte-order mark of UTF-8; E010, another one."""
    for number, block in enumerate(file.read_blocks()):
        if number == 0 and block.startswith(_OTHER_MARKS):
            found = "a byte-order mark of UTF-16 or UTF-32"
            raise file_error("E010", file.path, found, "text in UTF-8", "save it as UTF-8")
        if number == 0 and block.startswith(_BOM):
            file.notes.append("skipped a UTF-8 byte-order mark (E013)")
            block = block.removeprefix(_BOM)
        yield block


def _read_chunks(file: File) -> Iterator[bytes]:
    """Yield the text in pieces that end at a line's end, the last perhaps not.

    Blank lines at the end are left out. What was read before an error is yielded first.
    """
    text = bytearray()
    try:
        for block in _read_text(file):
            text += block
            if len(text) >= CHUNK_BYTES:
                # The last line may be cut, and blank lines may be the last of the file.
                end = text.rfind(b"\n", 0, len(text.rstrip(_BLANK))) + 1
                yield bytes(text[:end] or text)
                if not end:
                    return  # an endless line: a fault
                del text[:end]
    except DataError:
        yield bytes(text[: text.rfind(b"\n") + 1])
        raise
    kept = text.rstrip(_BLANK)
    if b"\n" in text[len(kept) :]:
        kept += b"\n"
    else:
        file.notes.append("the last line has no line end (E015)")
    yield bytes(kept)


def _check_room(path: str, layout: Layout, head: bytes, n_bytes: int, folder: Path) -> None:
    """Compare the estimated size of the store with the free space; E044."""
    n_rows = int(n_bytes * max(head.count(b"\n") - layout.top.n_lines, 1) / len(head))
    needed = n_rows * (N_PIXELS + (8 if layout.label_columns else 0))
    if needed > (free := shutil.disk_usage(folder).free):
        found = f"about {n_rows} images, which need {needed} bytes in {folder}"
        hint = "free some space, or put the run directory elsewhere"
        raise file_error("E044", path, found, f"at most the {free} bytes that are free", hint)


class _Rows:
    """Reads the rows of one file once."""

    def __init__(self, path: str, layout: Layout) -> None:
        self.labels = LabelCodes()
        self._path, self._layout = path, layout
        self._problems: list[Problem] = []
        self._totals: Counter[str] = Counter()

    def read(self, chunks: Iterator[bytes], write: Write) -> NDArray[np.int32]:
        """Write the rows below the top of the text; return their label codes, (N,).

        Raises:
            DataError: all faults of the file, after its last row.
        """
        layout = self._layout
        line = first = layout.top.n_lines + 1
        brightest = 0
        codes = []
        try:
            for chunk in chunks:
                if line == first:
                    chunk = re.sub(rb"\A(?:[^\n]*\n?){%d}" % (first - 1), b"", chunk)
                if not chunk:
                    continue
                pixels, cells = _read_plain(chunk, layout) or self._read_exactly(chunk, line)
                of_chunk = [self._encode(cell, number) for number, cell in enumerate(cells, line)]
                codes.append(np.array(of_chunk, np.int32))
                brightest = max(brightest, int(pixels.max()))
                write(to_28(pixels, *SHAPES[len(layout.pixel_columns)]))
                line += len(pixels)
        except DataError as error:
            self._problems += error.problems
            self._totals.update(error.totals)
        if not self._problems and line == first:
            self._add(fault("E005"), line - 1)
        for number, problem in self.labels.find_mixed():
            self._add(problem, number, layout.label_columns[0])
        if self._problems:
            if self._totals["E034"] == self._totals.total() and brightest <= 1:
                self._problems = [replace(problem, hint=SCALED) for problem in self._problems]
            self._problems.sort(key=lambda p: (p.line is None, p.line or 0, p.column or 0))
            raise DataError(self._problems, self._totals)
        return np.concatenate(codes)

    def _encode(self, cell: str | None, line: int) -> int:
        """Return the code of a label, 0 if there is none or if it has a fault."""
        code = 0 if cell is None else self.labels.encode(cell, line)
        if isinstance(code, int):
            return code
        self._add(code, line, self._layout.label_columns[0])
        return 0

    def _add(self, problem: Problem, line: int, column: int | None = None) -> None:
        """Count a fault; keep it if it is among the first of its code."""
        self._totals[problem.code] += 1
        if self._totals[problem.code] <= DataError.SHOWN:
            number = problem.column if column is None else column + 1
            name = dict(enumerate(self._layout.top.names or (), 1)).get(number or 0) or None
            self._problems.append(
                replace(problem, path=self._path, line=line, column=number, column_name=name)
            )

    def _read_exactly(self, chunk: bytes, line: int) -> tuple[np.ndarray, list[str | None]]:
        """Return pixels and labels, zeros and None where a line has a fault."""
        lines = chunk.split(b"\n")
        is_open = bool(lines[-1])  # the file ends without ending this line
        lines = lines if is_open else lines[:-1]
        last = line + len(lines) - 1
        read = [self._read_line(raw, n, is_open and n == last) for n, raw in enumerate(lines, line)]
        pixels, labels = zip(*read, strict=True)
        return np.frombuffer(b"".join(pixels), np.uint8).reshape(len(lines), -1), list(labels)

    def _read_line(self, raw: bytes, line: int, is_open: bool) -> tuple[bytes, str | None]:
        layout = self._layout
        cells = split_line(raw, layout.top.separator)
        if layout.top.header is not None and raw.rstrip(b"\r") == layout.top.header:
            cells = fault("E039 header")
        elif isinstance(cells, list) and len(cells) != layout.width:
            cells = _find_width_fault(cells, layout.width, is_open)
        if isinstance(cells, Problem):
            self._add(cells, line)
            return bytes(len(layout.pixel_columns)), None
        key = [cells[column] for column in layout.label_columns]
        label = key[0] if key else None
        if layout.classes and is_one_hot([key], range(len(key))):
            label = layout.classes[[pixel_value(cell) for cell in key].index(1)]
        elif layout.classes:
            self._add(fault("E027 one-hot", ",".join(key)), line, layout.label_columns[0])
            label = None
        values = [pixel_value(cells[column]) for column in layout.pixel_columns]
        try:
            return bytes(values), label  # type: ignore[arg-type]
        except TypeError:  # some are faults
            for column, value in sorted(zip(layout.pixel_columns, values, strict=True)):
                if isinstance(value, Problem):
                    self._add(value, line, column)
            return bytes(value if isinstance(value, int) else 0 for value in values), label


def _find_width_fault(cells: list[str], width: int, is_open: bool) -> Problem:
    n = len(cells)
    if n < width:
        return fault("E015" if is_open else "E018", n, width, "")
    hint = "decimal commas?" if n >= 2 * width - 2 else ""
    return fault("E019", n, width, hint if cells[-1] else "a comma at the end of the line?")


def _read_plain(chunk: bytes, layout: Layout) -> tuple[np.ndarray, list[str | None]] | None:
    """Return pixels and labels; None if pandas would read a line otherwise than we do."""
    import pandas as pd  # 0.3 s that a second start saves

    separator = layout.top.separator.encode()
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
    pixels = list(layout.pixel_columns)
    one_hot = list(layout.label_columns) if layout.classes else []
    dtypes: Any = dict.fromkeys(range(layout.width), object)
    dtypes |= dict.fromkeys(pixels + one_hot, np.dtype(np.uint8))
    try:
        # numpy warns of the cast of inf, pandas of cells too many.
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.BytesIO(chunk),
                sep=layout.top.separator,
                header=None,
                index_col=False,
                names=range(layout.width),
                dtype=dtypes,
                skip_blank_lines=False,
                na_filter=False,
            )
    except (ValueError, OverflowError, pd.errors.ParserError, pd.errors.ParserWarning):
        return None
    labels: list[str | None] = [None] * len(frame)
    if one_hot:
        ones = frame[one_hot].to_numpy()
        if (ones.sum(axis=1) != 1).any():
            return None
        labels = [layout.classes[k] for k in ones.argmax(axis=1)]
    elif layout.label_columns:
        labels = frame[layout.label_columns[0]].tolist()
    return np.ascontiguousarray(frame[pixels].to_numpy()), labels
