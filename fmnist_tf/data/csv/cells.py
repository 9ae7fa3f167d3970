"""One line -> cells; one cell -> a pixel value or a label text; or the `Fault` that it has."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from fmnist_tf.errors import Problem, printable

LINE_BYTES = 1 << 16
"""Longest line, line end not counted; 784 pixels need at most about 3,200 bytes."""
LABEL_CHARS = 200
"""Longest class name."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,9})?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_OTHER_NOTATION = re.compile(
    r"[+-]?(?:0[xob][0-9a-f]+|[0-9]+(?:_[0-9]+)+|[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})+)",
    re.IGNORECASE,
)
_MISSING = frozenset(
    "|nan|+nan|-nan|inf|+inf|-inf|infinity|+infinity|-infinity"
    "|na|n/a|#n/a|<na>|null|none|nil|?".split("|")
)
_PIXEL = "a whole number 0..255"
_LABEL = "a whole number or a class name"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a line or a cell.

    Attributes:
        code: `E001`..`E044`.
        found: what stands there.
        expected: what should stand there.
        hint: what to do about it; may be empty.
        column: 1-based field of the line, or None where the caller knows it.
    """

    code: str
    found: str
    expected: str
    hint: str = ""
    column: int | None = None

    def at(self, path: str, line: int, column_name: str | None = None) -> Problem:
        """Return the problem of this fault in a line of a file."""
        return Problem(
            self.code, path, line, self.column, column_name, self.found, self.expected, self.hint
        )


def split_line(raw: bytes, separator: str = ",") -> list[str] | Fault:
    r"""Split one line, without its `\n`, into cells, not stripped; quotes around them are removed.

    Carriage returns at its end belong to the line end: `\r\n`, and the `\r\r\n` that Python's csv
    module writes on Windows into a file opened without `newline=""`.

    Returns:
        The cells; or E014 (lone CR), E038 (too long, or a quote without partner), E012 (NUL), E011
        (not UTF-8) or E039 (blank or comment line).
    """
    raw = raw.rstrip(b"\r")
    mark = separator.encode()

    def field(at: int) -> int:
        return raw[:at].count(mark) + 1

    at = raw.find(b"\r")
    if len(raw) > LINE_BYTES and at < 0:
        return Fault(
            "E038",
            f"a line longer than {LINE_BYTES} bytes",
            f"lines of at most {LINE_BYTES} bytes, one image each",
            "is this a CSV of 28x28 images?",
        )
    if (nul := raw.find(b"\0")) >= 0:
        hint = "the file is binary, damaged, or UTF-16 without a mark"
        return Fault("E012", "a NUL byte", "text in UTF-8", hint, field(nul))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        return Fault("E011", found, "text in UTF-8", "save the file as UTF-8", field(error.start))
    if at >= 0:
        hint = "convert the old Mac line ends: tr '\\r' '\\n' < old.csv > new.csv"
        found, expected = "a carriage return (CR) inside a line", "lines that end in LF or CR LF"
        return Fault("E014", found, expected, hint, field(at))
    if not text.strip(separator + " \t"):
        what = "a line of empty cells" if separator in text else "a blank line"
        return Fault("E039", what, "one image a line", "delete the line")
    if text.lstrip(" \t").startswith("#"):
        return Fault("E039", "a comment line", "one image a line", "delete the line")
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        hint = "a cell may not hold a line break"
        expected = "quotes around whole cells, opened and closed in the same line"
        found = "a quote that is not closed before the cell's end"
        return Fault("E038", found, expected, hint, _open_quote(text, separator))


def _open_quote(text: str, separator: str) -> int:
    """Return the first 1-based field that ends a prefix which is no valid CSV."""
    ends = [at for at, letter in enumerate(text) if letter == separator]
    field = 1
    for at in ends:
        try:
            field = len(next(csv.reader([text[:at]], delimiter=separator, strict=True))) + 1
        except csv.Error:
            continue  # a separator inside quotes, or the fault
    return field


@lru_cache(1024)  # a file has few different cells; the longest take 64 MB
def pixel_value(cell: str) -> int | Fault:
    """Read one pixel: 0..255, or E017, E031..E037.

    Spaces and tabs around the number, a sign, leading zeros, a fraction of zeros (`12.0`) and an
    exponent (`1.2e1`, as numpy.savetxt writes it) are accepted; every other notation is refused.
    """
    text = cell.strip(" \t")
    if _NUMBER.fullmatch(text):
        value = float(text)
        if not -(2**63) <= value < 2**63:
            return Fault("E037", f"the number {printable(text)}", _PIXEL)
        if not value.is_integer():
            hint = "round the pixels to whole numbers before export"
            if value < 0:
                hint = "standardised pixels? export the raw ones, 0..255"
            return Fault("E034", f"the fraction {printable(text)}", _PIXEL, hint)
        if value < 0:
            hint = "standardised or signed pixels? export the raw ones"
            return Fault("E032", f"value {value:.0f} is below 0", _PIXEL, hint)
        if value > 255:
            hint = "16-bit images? rescale before export"
            return Fault("E033", f"value {value:.0f} is above 255", _PIXEL, hint)
        return int(value)
    if text.lower() in _MISSING:
        found = f"{printable(text)!r}" if text else "an empty cell"
        return Fault("E035", found, _PIXEL, "fill in or drop the images with missing pixels")
    if fault := _other_notation(text, _PIXEL):
        return fault
    if _DECIMAL_COMMA.fullmatch(text):
        hint = "use a point, and whole numbers"
        return Fault("E017", f"the decimal comma {text!r}", _PIXEL, hint)
    return Fault("E031", f"{printable(text)!r}, not a number", _PIXEL)


@lru_cache(1024)
def label_text(cell: str) -> str | Fault:
    """Read one label: a whole number in its shortest form, or a class name; or E027, E036, E037.

    `05`, `+5`, `5.0` and `5e0` are the label `5`. A name is at most 200 printable characters;
    spaces and tabs around it do not count.
    """
    text = cell.strip(" \t")
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        if number.adjusted() > 19 or abs(number) >= 2**63:
            return Fault("E037", f"the number {printable(text)}", f"{_LABEL} within 64 bits")
        if number != number.to_integral_value():
            hint = "is this the label column? name it with --label-column"
            return Fault("E027", f"the fraction {printable(text)}", _LABEL, hint)
        return str(int(number))
    if text.lower() in _MISSING:
        found = f"the label {printable(text)!r}" if text else "an empty label"
        return Fault("E027", found, _LABEL, "fill in or drop the images without label")
    if fault := _other_notation(text, _LABEL):
        return fault
    if len(text) > LABEL_CHARS or not text.isprintable():
        expected = f"a class name of at most {LABEL_CHARS} printable characters"
        return Fault("E027", f"the label {printable(text)!r}", expected)
    return text


def is_whole(label: str) -> bool:
    """Return whether a label made by `label_text` is a whole number, not a name."""
    return re.fullmatch(r"-?[0-9]+", label) is not None


def _other_notation(text: str, expected: str) -> Fault | None:
    """Hexadecimal, underscores, thousands separators, digits of other scripts."""
    foreign = any(c.isdecimal() and not c.isascii() for c in text) and all(
        c.isdecimal() or c in "+-.,_" for c in text
    )
    if foreign or _OTHER_NOTATION.fullmatch(text):
        found = f"the notation {printable(text)!r}"
        return Fault("E036", found, f"{expected} in plain digits", "write numbers as 0, 7, 255")
    return None
