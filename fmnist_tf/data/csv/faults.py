"""Every fault that a CSV can have: what is found, what is expected, and a step that works."""

from __future__ import annotations

from fmnist_tf.data import N_PIXELS
from fmnist_tf.errors import DataError, Problem, printable

LINE_BYTES = 1 << 16
"""Longest line, line end not counted; 784 pixels need at most about 3,200 bytes."""
LABEL_CHARS = 200
"""Longest class name."""
MAX_CLASSES = 1000
PIXEL, LABEL = "a whole number 0..255", "a whole number or a class name"

_CHOOSE = "choose the label with --label-column NAME, a column's number, first or last"
_HEADER = "write label,pixel1,...,pixel784 as the first line, or no header at all"
_TOP = "a header of names, or a row of numbers"
_NAMES = "a name for each column"
_UTF8 = "text in UTF-8"
_FILL = "fill in or drop the images where it is missing"
_RAW = "standardised or signed pixels? export the raw ones, 0..255"
_IMAGE = "one image a line"
SCALED = "already scaled to 0..1? multiply by 255 and round before export"
"""The hint of fractions where no pixel passes 1."""

# A key is a code, and a word where a code has several texts; {0} is the first value, and so on.
_TEXTS = {
    "E005": ("a header and no image", "at least one line of pixels"),
    "E009 no data": ("an ARFF file without @data", "a complete ARFF file"),
    "E009 sparse": ("a sparse ARFF file", "a dense one", "write it out densely before export"),
    "E011": ("byte 0x{0:02x} at byte {1} of the line", _UTF8, "save the file as UTF-8"),
    "E012": ("a NUL byte", _UTF8, "the file is binary, damaged, or UTF-16 without a mark"),
    "E014": ("a carriage return (CR) inside a line", "lines that end in LF or CR LF",
             "convert the old Mac line ends: tr '\\r' '\\n' < old.csv > new.csv"),
    "E015": ("{0} fields and no line end", "{1}",
             "the file breaks off in its last line: fetch or export it again"),
    "E016": ("{0} between cells", "cells separated by ',', ';' or tabs",
             "convert it: tr '{1}' ',' < old.txt > new.csv"),
    "E017": ("the decimal comma {0!r}", "{1}", "use a point"),
    "E017 top": ("decimal commas, and {0} between cells", "cells separated by ','",
                 "export with ',' between cells, and whole numbers"),
    "E018": ("{0} fields", "{1}", "{2}"),
    "E019": ("{0} fields", "{1}", "{2}"),
    "E020": ("{0} columns, {1} of them numbered pixels",
             f"{N_PIXELS} pixel columns, pixel1..pixel{N_PIXELS}, with or without a label",
             "images are 28x28, or of another square size: one column for each pixel"),
    "E020 short": ("a header of {0} names over rows of {1} cells", _NAMES,
                   "complete the header, or delete its line if it is no use"),
    "E020 comma": ("an empty last name", _NAMES, "a comma at the end of the line?"),
    "E021 mixed": ("names and numbers mixed", _TOP, _HEADER),
    "E021 fractions": ("a row of pixels that was turned into column names", _TOP, _HEADER),
    "E021 numbers": ("the column numbers {0}..{1}", _TOP, f"if they are the header, {_CHOOSE}"),
    "E021 name": ("no header, so no column can be named {0}", "a header",
                  "give its number, first or last, or leave out --label-column"),
    "E022": ("the name {0} again", "each name once"),
    "E023": ("no column {0}", "all of {1}..{2}"),
    "E025": ("a column that is neither pixel, label nor index", "one label column at most",
             f"delete the column, or {_CHOOSE}"),
    "E025 label": ("a second column that could be the label", "one label column at most", _CHOOSE),
    "E026": ("--label-column {0}",
             "a column that is no pixel ({1}), its number, first or last"),
    "E026 unclear": ("column {0} ({1}, ...) and column {2} ({3}, ...) could each be the label",
             "one label",
                     "choose with --label-column first or --label-column last"),
    "E027": ("the label {0!r}", f"a class name of at most {LABEL_CHARS} printable characters"),
    "E027 missing": ("{0}", LABEL, _FILL),
    "E027 fraction": ("the fraction {0}", LABEL, "is this the label column? see --label-column"),
    "E027 mixed": ("the label {0} among {1}", "only {1} or only {2}"),
    "E027 one-hot": ("the labels {0}", "a 1 in one of the label columns and 0 in the others"),
    "E028": ("one more label, {0}", f"at most {MAX_CLASSES} classes",
             "is this the label column? see --label-column"),
    "E031": ("{0!r}", PIXEL),
    "E032": ("value {0} is below 0", PIXEL, _RAW),
    "E033": ("value {0} is above 255", PIXEL, "16-bit images? rescale before export"),
    "E034": ("the fraction {0}", PIXEL, "round the pixels to whole numbers before export"),
    "E034 signed": ("the fraction {0}", PIXEL, _RAW),
    "E035": ("{0}", PIXEL, _FILL),
    "E036": ("{0!r}", "{1} in plain digits", "write numbers as 0, 7, 255"),
    "E037": ("the number {0}", "{1} within 64 bits"),
    "E038": ("a quote that is not closed", "quotes around whole cells, closed in the same line",
             "a cell may not hold a line break"),
    "E038 long": (f"a line over {LINE_BYTES} bytes", "shorter lines", "is this a CSV of images?"),
    "E039 blank": ("a blank line", _IMAGE, "delete the line"),
    "E039 comment": ("a comment line", _IMAGE, "delete the line"),
    "E039 header": ("the header again", _IMAGE, "files joined? delete the inner header"),
}  # fmt: skip


def fault(key: str, *values: object, column: int | None = None, name: str = "") -> Problem:
    """Return a problem, of a column from 1, whose path and line are not known yet."""
    shown = [value if isinstance(value, int) else printable(str(value)) for value in values]
    found, expected, hint = (text.format(*shown) for text in (*_TEXTS[key], "")[:3])
    return Problem(key[:4], "", None, column, name or None, found, expected, hint)


def refuse(key: str, *values: object, column: int | None = None) -> DataError:
    """Return the error of one fault."""
    return DataError([fault(key, *values, column=column)])
