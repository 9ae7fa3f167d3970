"""The rows of a plain CSV, read by pandas' C parser.

What pandas would read otherwise than the exact scan is not plain: quotes inside cells, comments,
lone carriage returns, `True` for 1, control characters, a cell too many.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.io.parsers import TextFileReader

from fmnist_tf.data.csv.cells import LINE_BYTES, Fault, label_text
from fmnist_tf.data.csv.labels import LabelCodes, NotPlainError
from fmnist_tf.data.csv.layout import Layout
from fmnist_tf.data.resize import to_28
from fmnist_tf.data.store import Block

CHUNK_ROWS = 8192
_NUMERIC = b'0123456789.+-eE \t\r\n"'


class _Watched(io.RawIOBase):
    """Hands blocks of text to pandas and notes what pandas would not complain of."""

    def __init__(self, blocks: Iterator[bytes], separator: str) -> None:
        self._blocks = blocks
        self._separator = separator.encode()
        self._plain = _NUMERIC + self._separator
        self._line_bytes = 0  # of the line that the last block left open
        self._tail = b"\n\n"  # the last two bytes
        self._lone = re.compile(rb'[\n%b]"[\r\n%b]' % (self._separator, self._separator))
        self.n_quotes = self.n_opening = self.n_closing = 0
        self.n_lines = self.n_separators = 0
        self.ends_line = True
        self.letters = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return the next block; pandas asks for as many bytes as the largest block has."""
        block = next(self._blocks, b"")
        if not block:
            return block
        self.n_lines += block.count(b"\n")
        self.n_separators += block.count(self._separator)
        self.letters += block.translate(None, self._plain)
        self.ends_line = block.endswith(b"\n")
        if b'"' in (text := self._tail + block):
            self._count_quotes(text)
        self._tail = text[-2:]
        at = -self._line_bytes
        while len(block) - at > LINE_BYTES:
            end = block.rfind(b"\n", max(at, 0), at + LINE_BYTES + 1)
            if end < 0:
                raise NotPlainError
            at = end + 1
        self._line_bytes = len(block) - max(at, block.rfind(b"\n") + 1)
        return block

    def _count_quotes(self, text: bytes) -> None:
        """Count the quotes of a block that follows two bytes counted before."""
        if self._lone.search(text):
            raise NotPlainError
        self.n_quotes += text.count(b'"', 2)
        before, after = (b"\n", self._separator), (b"\r", b"\n", self._separator)
        self.n_opening += sum(text.count(mark + b'"', 1) for mark in before)
        self.n_closing += sum(text.count(b'"' + mark, 1) for mark in after)

    @property
    def is_plain(self) -> bool:
        """Whether what was read means the same to pandas and to the exact scan."""
        n_closing = self.n_closing + self._tail.endswith(b'"')
        if not self.n_opening == n_closing == self.n_quotes / 2:
            return False  # a quote inside a cell, or one without partner
        try:
            text = self.letters.decode("utf-8").casefold()
        except UnicodeDecodeError:
            return False
        # pandas reads a column of true and false (less their e's) as 1 and 0.
        return text.isprintable() and not any(word in text for word in ("#", "tru", "fals"))


def read_plain(blocks: Iterator[bytes], layout: Layout, labels: LabelCodes) -> Iterator[Block]:
    """Yield pixels (R, 784) uint8 and label codes (R,) int32 of at most `CHUNK_ROWS` rows.

    Args:
        blocks: the text after the header.
        layout: of the file.
        labels: gives the codes.

    Raises:
        NotPlainError: now or after any block; what was yielded does not count then.
    """
    text = _Watched(blocks, layout.separator)
    columns = list(layout.pixel_columns)
    n_rows = 0
    dtypes = dict.fromkeys(range(layout.width), "str")
    dtypes |= dict.fromkeys(columns, "uint8")
    if layout.classes:
        dtypes |= dict.fromkeys(layout.label_columns, "uint8")
    try:
        frames = pd.read_csv(
            text,
            sep=layout.separator,
            header=None,
            index_col=False,
            names=range(layout.width),
            dtype=dtypes,
            skip_blank_lines=False,
            na_filter=False,
            chunksize=CHUNK_ROWS,
        )
        with frames:
            while (frame := _read_chunk(frames)) is not None:
                pixels = np.ascontiguousarray(frame[columns].to_numpy())
                yield to_28(pixels, *layout.shape), _codes(frame, layout, labels)
                n_rows += len(frame)
    except (ValueError, OverflowError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise NotPlainError from error
    n_lines = text.n_lines + (not text.ends_line)
    if not n_rows or n_rows != n_lines or not text.is_plain:
        raise NotPlainError
    if text.n_separators != n_rows * (layout.width - 1):
        raise NotPlainError


def _read_chunk(frames: TextFileReader) -> pd.DataFrame | None:
    # numpy warns of the cast of inf, pandas of cells too many; both are refused.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return next(frames, None)


def _codes(frame: pd.DataFrame, layout: Layout, labels: LabelCodes) -> np.ndarray:
    if not layout.label_columns:
        return np.zeros(len(frame), np.int32)
    if layout.classes:
        one_hot = frame[list(layout.label_columns)].to_numpy()
        if one_hot.max() > 1 or (one_hot.sum(axis=1) != 1).any():
            raise NotPlainError
        values, cells = one_hot.argmax(axis=1), list(layout.classes)
    else:
        values, index = pd.factorize(frame[layout.label_columns[0]])
        cells = index.tolist()
    codes = []
    for text in map(label_text, cells):
        if isinstance(text, Fault):
            raise NotPlainError
        codes.append(labels.add(text))
    return np.array(codes, np.int32)[values]
