"""One line -> cells; one cell -> a pixel value or a label text; or the `Problem` that it has."""

from __future__ import annotations

import csv
import re
from decimal import Decimal
from functools import lru_cache

from fmnist_tf.data.csv.faults import LABEL, LABEL_CHARS, LINE_BYTES, PIXEL, fault
from fmnist_tf.errors import Problem

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,9})?", re.ASCII | re.IGNORECASE)
_OTHER_NOTATION = re.compile(
    r"[+-]?(?:0[xob][0-9a-f]+|[0-9]+(?:_[0-9]+)+|[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})+)",
    re.IGNORECASE,
)
_MISSING = re.compile(r"[+-]?(nan|inf(inity)?)|#?n/?a|<na>|null|none|nil|\?|", re.IGNORECASE)


def split_line(raw: bytes, separator: str = ",") -> list[str] | Problem:
    r"""Split one line, without its `\n`, into cells, not stripped; quotes around them are removed.

    Carriage returns at its end are part of the line end: `\r\n`, and Windows' `\r\r\n`.

    Returns:
        The cells; or E012 (NUL), E014 (lone CR), E038 (too long, or a quote without partner), E011
        (not UTF-8) or E039 (blank or comment line).
    """
    raw = raw.rstrip(b"\r")

    def column(at: int) -> int:
        return raw[:at].count(separator.encode()) + 1

    for code, mark in (("E012", b"\0"), ("E014", b"\r")):
        if mark in raw:
            return fault(code, column=column(raw.index(mark)))
    if len(raw) > LINE_BYTES:
        return fault("E038 long")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        return fault("E011", raw[at], at + 1, column=column(at))
    if not text.strip(separator + " \t"):
        return fault("E039 blank")
    if text.lstrip(" \t").startswith("#"):
        return fault("E039 comment")
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        end = re.escape(separator)
        cell = re.compile(rf'(?:"(?:[^"]|"")*"|[^"{end}][^{end}]*)?{end}')
        n_cells, at = 0, 0
        while match := cell.match(text, at):
            n_cells, at = n_cells + 1, match.end()
        return fault("E038", column=n_cells + 1)


@lru_cache(1024)  # a file has few different cells; the longest take 64 MB
def pixel_value(cell: str) -> int | Problem:
    """Read one pixel: 0..255, or E017, E031..E037.

    Spaces and tabs around the number, a sign, leading zeros, a fraction of zeros (`12.0`) and an
    exponent (`1.2e1`, as numpy.savetxt writes it) are accepted; every other notation is refused.
    """
    text = cell.strip(" \t")
    if not _NUMBER.fullmatch(text):
        return _no_number(text, PIXEL) or fault("E031", text)
    value = float(text)
    if not -(2**63) <= value < 2**63:
        return fault("E037", text, PIXEL)
    if not value.is_integer():
        return fault("E034" if value >= 0 else "E034 signed", text)
    if not 0 <= value <= 255:
        return fault("E032" if value < 0 else "E033", int(value))
    return int(value)


@lru_cache(1024)
def label_text(cell: str) -> str | Problem:
    """Read one label: a whole number in its shortest form, or a class name; or E027, E036, E037.

    `05`, `+5`, `5.0` and `5e0` are the label `5`. A name is at most 200 printable characters;
    spaces and tabs around it do not count.
    """
    text = cell.strip(" \t")
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        if number.adjusted() > 19 or abs(number) >= 2**63:
            return fault("E037", text, LABEL)
        if number != number.to_integral_value():
            return fault("E027 fraction", text)
        return str(int(number))
    problem = _no_number(text, LABEL)
    if problem and problem.code != "E017":
        return problem
    if len(text) > LABEL_CHARS or not text.isprintable():
        return fault("E027", text)
    return text


def is_whole(label: str) -> bool:
    """Return whether a label made by `label_text` is a whole number, not a name."""
    return re.fullmatch(r"-?[0-9]+", label) is not None


def _no_number(text: str, expected: str) -> Problem | None:
    """Return the problem of a missing value, or of a number in another notation, if it is one."""
    if _MISSING.fullmatch(text):
        key = "E035" if expected is PIXEL else "E027 missing"
        return fault(key, repr(text) if text else "an empty cell")
    is_foreign = any(c.isdecimal() and not c.isascii() for c in text)
    is_foreign = is_foreign and all(c.isdecimal() or c in "+-.,_" for c in text)
    if is_foreign or _OTHER_NOTATION.fullmatch(text):
        return fault("E036", text, expected)
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
        return fault("E017", text, expected)
    return None
