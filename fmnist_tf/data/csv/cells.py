"""One line -> cells; one cell -> a pixel value or a label text; or the `Problem` that it has."""

from __future__ import annotations

import csv
import re
from decimal import Decimal
from functools import lru_cache

from fmnist_tf.errors import Problem, printable

LINE_BYTES = 1 << 16
"""Longest line, line end not counted; 784 pixels need at most about 3,200 bytes."""
LABEL_CHARS = 200
"""Longest class name."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,9})?", re.ASCII | re.IGNORECASE)
_OTHER_NOTATION = re.compile(
    r"[+-]?(?:0[xob][0-9a-f]+|[0-9]+(?:_[0-9]+)+|[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})+)",
    re.IGNORECASE,
)
_MISSING = re.compile(r"[+-]?(nan|inf(inity)?)|#?n/?a|<na>|null|none|nil|\?|", re.IGNORECASE)
_PIXEL = "a whole number 0..255"
_LABEL = "a whole number or a class name"


def fault(
    code: str, found: str, expected: str, hint: str = "", column: int | None = None
) -> Problem:
    """Return a problem whose path and line are not known yet; see `Problem`."""
    return Problem(code, "", None, column, None, found, expected, hint)


def split_line(raw: bytes, separator: str = ",") -> list[str] | Problem:
    r"""Split one line, without its `\n`, into cells, not stripped; quotes around them are removed.

    Carriage returns at its end are part of the line end: `\r\n`, and Windows' `\r\r\n`.

    Returns:
        The cells; or E014 (lone CR), E038 (too long, or a quote without partner), E012 (NUL), E011
        (not UTF-8) or E039 (blank or comment line).
    """
    raw = raw.rstrip(b"\r")

    def field(at: int) -> int:
        return raw[:at].count(separator.encode()) + 1

    at = raw.find(b"\r")
    if len(raw) > LINE_BYTES and at < 0:
        found, expected = f"a line longer than {LINE_BYTES} bytes", f"at most {LINE_BYTES} bytes"
        return fault("E038", found, expected, "is this a CSV of 28x28 images?")
    if (nul := raw.find(b"\0")) >= 0:
        hint = "the file is binary, damaged, or UTF-16 without a mark"
        return fault("E012", "a NUL byte", "text in UTF-8", hint, field(nul))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        return fault("E011", found, "text in UTF-8", "save the file as UTF-8", field(error.start))
    if at >= 0:
        hint = "convert the old Mac line ends: tr '\\r' '\\n' < old.csv > new.csv"
        found, expected = "a carriage return (CR) inside a line", "lines that end in LF or CR LF"
        return fault("E014", found, expected, hint, field(at))
    is_blank = not text.strip(separator + " \t")
    if is_blank or text.lstrip(" \t").startswith("#"):
        found = "a blank line" if is_blank else "a comment line"
        return fault("E039", found, "one image a line", "delete the line")
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        expected = "quotes around whole cells, opened and closed in the same line"
        found, hint = "a quote that is not closed", "a cell may not hold a line break"
        mark = re.escape(separator)
        cell = re.compile(rf'(?:"(?:[^"]|"")*"|[^"{mark}][^{mark}]*)?{mark}')
        column, end = 1, 0
        while match := cell.match(text, end):
            column, end = column + 1, match.end()
        return fault("E038", found, expected, hint, column)


@lru_cache(1024)  # a file has few different cells; the longest take 64 MB
def pixel_value(cell: str) -> int | Problem:
    """Read one pixel: 0..255, or E017, E031..E037.

    Spaces and tabs around the number, a sign, leading zeros, a fraction of zeros (`12.0`) and an
    exponent (`1.2e1`, as numpy.savetxt writes it) are accepted; every other notation is refused.
    """
    text = cell.strip(" \t")
    if not _NUMBER.fullmatch(text):
        return _no_number(text, _PIXEL) or fault("E031", f"{printable(text)!r}", _PIXEL)
    value = float(text)
    if not -(2**63) <= value < 2**63:
        return fault("E037", f"the number {printable(text)}", _PIXEL)
    raw = "standardised or signed pixels? export the raw ones, 0..255"
    if not value.is_integer():
        hint = raw if value < 0 else "round the pixels to whole numbers before export"
        return fault("E034", f"the fraction {printable(text)}", _PIXEL, hint)
    if value < 0:
        return fault("E032", f"value {value:.0f} is below 0", _PIXEL, raw)
    if value > 255:
        hint = "16-bit images? rescale before export"
        return fault("E033", f"value {value:.0f} is above 255", _PIXEL, hint)
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
            return fault("E037", f"the number {printable(text)}", f"{_LABEL} within 64 bits")
        if number != number.to_integral_value():
            hint = "is this the label column? name it with --label-column"
            return fault("E027", f"the fraction {printable(text)}", _LABEL, hint)
        return str(int(number))
    problem = _no_number(text, _LABEL)
    if problem and problem.code != "E017":
        return problem
    if len(text) > LABEL_CHARS or not text.isprintable():
        expected = f"a class name of at most {LABEL_CHARS} printable characters"
        return fault("E027", f"the label {printable(text)!r}", expected)
    return text


def is_whole(label: str) -> bool:
    """Return whether a label made by `label_text` is a whole number, not a name."""
    return re.fullmatch(r"-?[0-9]+", label) is not None


def _no_number(text: str, expected: str) -> Problem | None:
    """Return the problem of a missing value, or of a number in another notation, if it is one."""
    shown = f"{printable(text)!r}" if text else "an empty cell"
    if _MISSING.fullmatch(text):
        code = "E035" if expected is _PIXEL else "E027"
        return fault(code, shown, expected, "fill in or drop the images where it is missing")
    is_foreign = any(c.isdecimal() and not c.isascii() for c in text)
    is_foreign = is_foreign and all(c.isdecimal() or c in "+-.,_" for c in text)
    if is_foreign or _OTHER_NOTATION.fullmatch(text):
        return fault("E036", shown, f"{expected} in plain digits", "write numbers as 0, 7, 255")
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
        return fault("E017", f"the decimal comma {text!r}", expected, "use a point")
    return None
