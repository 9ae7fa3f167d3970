"""One line -> cells; one cell -> a pixel value or a label text; or the `Fault` that it has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fmnist_tf.errors import printable

LINE_BYTES = 1 << 16
"""Longest line, line end not counted; 784 pixels need at most about 3,200 bytes."""
LABEL_CHARS = 200
"""Longest class name."""

_INT64_MAX = (1 << 63) - 1
_WHOLE = re.compile(r"([+-]?)0*([0-9]+)")
_DECIMAL = re.compile(r"([+-]?)0*([0-9]*)\.([0-9]*)")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})+")
_OTHER_NOTATION = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)e[+-]?[0-9]+|0[xob][0-9a-f]+|[0-9]+(?:_[0-9]+)+)",
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
        fraction: the cell is a number within 0..1 with a fractional part.
    """

    code: str
    found: str
    expected: str
    hint: str = ""
    column: int | None = None
    fraction: bool = False


def split_line(raw: bytes) -> list[bytes] | Fault:
    r"""Split one line, without its `\n`, at its commas; quotes around a cell are taken off.

    Args:
        raw: the line; a `\r` at its end belongs to the line end and is dropped.

    Returns:
        The cells, not stripped; or E011 (not UTF-8), E012 (NUL), E014 (lone CR), E038 (too long, or
        a quote without partner) or E039 (blank or comment line), whichever comes first in this
        order: length, NUL, UTF-8, CR, blank, quotes.
    """
    if raw.endswith(b"\r"):
        raw = raw[:-1]
    at = raw.find(b"\r")
    lone_cr = Fault(
        "E014",
        "a carriage return (CR) inside a line",
        "lines that end in LF or CR LF",
        "convert the old Mac line ends: tr '\\r' '\\n' < old.csv > new.csv",
        raw[: max(at, 0)].count(b",") + 1,
    )
    if len(raw) > LINE_BYTES:
        if at >= 0:
            return lone_cr
        return Fault(
            "E038",
            f"a line longer than {LINE_BYTES} bytes",
            f"lines of at most {LINE_BYTES} bytes, one image each",
            "is this a CSV of 28x28 images?",
        )
    nul = raw.find(b"\0")
    if nul >= 0:
        return Fault(
            "E012",
            "a NUL byte",
            "text in UTF-8",
            "the file is binary, damaged, or UTF-16 without a mark",
            raw[:nul].count(b",") + 1,
        )
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(
            "E011",
            f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line",
            "text in UTF-8",
            "save the file as UTF-8",
            raw[: error.start].count(b",") + 1,
        )
    if at >= 0:
        return lone_cr
    if not raw.strip(b", \t"):
        what = "a line of empty cells" if b"," in raw else "a blank line"
        return Fault("E039", what, "one image a line", "delete the line")
    if raw.lstrip(b" \t").startswith(b"#"):
        return Fault("E039", "a comment line", "one image a line", "delete the line")
    if b'"' not in raw:
        return raw.split(b",")
    return _split_quoted(raw)


def _split_quoted(raw: bytes) -> list[bytes] | Fault:
    if len(raw) > 1 and raw.startswith(b'"') and raw.endswith(b'"'):
        inside = raw[1:-1]
        cells = inside.split(b'","')
        if inside.count(b'"') == 2 * (len(cells) - 1):  # each cell is quoted and holds no quote
            return cells
    cells = []
    held: list[bytes] = []  # pieces of a quoted cell whose closing quote has not come
    quotes = 0
    for piece in raw.split(b","):
        if not held and not piece.startswith(b'"'):
            cells.append(piece)
            continue
        held.append(piece)
        quotes += piece.count(b'"')
        if quotes % 2:
            continue
        cell = b",".join(held)
        inner = cell[1:-1].replace(b'""', b"")
        if not cell.endswith(b'"') or b'"' in inner:
            break
        cells.append(cell[1:-1].replace(b'""', b'"'))
        held, quotes = [], 0
    if not held:
        return cells
    return Fault(
        "E038",
        "a quote that is not closed before the cell's end",
        "quotes around whole cells, opened and closed in the same line",
        "a cell may not hold a line break",
        len(cells) + 1,
    )


def pixel_value(cell: bytes) -> int | Fault:
    """Read one pixel: 0..255, or E017, E031..E037.

    Spaces and tabs around the number, a sign, leading zeros and a fraction of zeros (`12.0`) are
    accepted; every other notation is refused.
    """
    text = cell.strip(b" \t").decode("utf-8", "replace")
    if match := _WHOLE.fullmatch(text):
        return _in_range(text, *match.groups())
    if (match := _DECIMAL.fullmatch(text)) and text.strip("+-") != ".":
        sign, whole, fraction = match.groups()
        if fraction.strip("0"):
            return Fault(
                "E034",
                f"the fraction {printable(text)}",
                _PIXEL,
                "round the pixels to whole numbers before export",
                fraction=sign != "-" and not whole.strip("0"),
            )
        return _in_range(text, sign, whole or "0")
    if text.lower() in _MISSING:
        found = f"{printable(text)!r}" if text else "an empty cell"
        return Fault("E035", found, _PIXEL, "fill in or drop the images with missing pixels")
    if fault := _other_notation(text, _PIXEL):
        return fault
    if _DECIMAL_COMMA.fullmatch(text):
        hint = "use a point, and whole numbers"
        return Fault("E017", f"the decimal comma {text!r}", _PIXEL, hint)
    return Fault("E031", f"{printable(text)!r}, not a number", _PIXEL)


def label_text(cell: bytes) -> str | Fault:
    """Read one label: a whole number in its shortest form, or a class name; or E027, E036, E037.

    `05`, `+5` and `5.0` are the label `5`. A name is at most 200 printable characters; spaces and
    tabs around it do not count.
    """
    try:
        text = cell.strip(b" \t").decode("utf-8")
    except UnicodeDecodeError:
        return Fault("E027", "a label that is not UTF-8", _LABEL)
    sign = digits = ""
    if match := _WHOLE.fullmatch(text):
        sign, digits = match.groups()
    elif (match := _DECIMAL.fullmatch(text)) and text.strip("+-") != ".":
        sign, digits, fraction = match.groups()
        if fraction.strip("0"):
            hint = "is this the label column? name it with --label-column"
            return Fault("E027", f"the fraction {printable(text)}", _LABEL, hint)
        digits = digits or "0"
    if digits:
        if len(digits) > 19 or int(digits) > _INT64_MAX:
            return Fault("E037", f"the number {printable(text)}", f"{_LABEL} within 64 bits")
        return str(int(sign + digits))
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
    return _WHOLE.fullmatch(label) is not None


def _in_range(text: str, sign: str, digits: str) -> int | Fault:
    if len(digits) > 19 or int(digits) > _INT64_MAX:
        return Fault("E037", f"the number {printable(text)}", _PIXEL)
    value = int(sign + digits)
    if value < 0:
        hint = "standardised pixels? export the raw ones"
        return Fault("E032", f"value {value} is below 0", _PIXEL, hint)
    if value > 255:
        hint = "16-bit images? rescale before export"
        return Fault("E033", f"value {value} is above 255", _PIXEL, hint)
    return value


def _other_notation(text: str, expected: str) -> Fault | None:
    """Exponent, hexadecimal, underscores, thousands separators, digits of other scripts."""
    foreign = any(c.isdecimal() and not c.isascii() for c in text) and all(
        c.isdecimal() or c in "+-.,_" for c in text
    )
    if foreign or _OTHER_NOTATION.fullmatch(text) or _THOUSANDS.fullmatch(text):
        found = f"the notation {printable(text)!r}"
        return Fault("E036", found, f"{expected} in plain digits", "write numbers as 0, 7, 255")
    return None
