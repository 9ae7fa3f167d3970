"""A CSV of images -> blocks of pixels and labels for the store; all faults of the file at once.

docs/data.md lists what is accepted, and the codes of what is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.csv.layout import Layout, plan_layout
from fmnist_tf.data.csv.rows import Rows
from fmnist_tf.data.files import BLOCK_BYTES, File
from fmnist_tf.data.labels import sort_labels
from fmnist_tf.data.store import Block, Finish
from fmnist_tf.errors import DataError, file_error

HEAD_BYTES = 1 << 20
"""Text by which the layout is decided; an ARFF header of 784 attributes has some 40 KB."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\x1a"  # Ctrl-Z ends a text file of DOS
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def read_csv(
    file: File, label_column: str | None, store_dir: Path
) -> tuple[Iterator[Block], Finish]:
    """Return the rows, read when they are asked for, and what `write_store` calls after the last.

    Args:
        file: of text.
        label_column: the label's name in the header, its number from 1, "first" or "last";
            default: decided by the names, else by what the columns hold.
        store_dir: on the disk that must have room for the images.

    Raises:
        DataError: E004, E009..E023, E025, E026, E038, E044; from the rows all others to E041.
    """
    head = b""
    with suppress(DataError):  # raised again, with all other faults, by the rows
        for block in _read_text(file):
            head += block
            if len(head) >= HEAD_BYTES:
                break
    if not head:
        next(_read_text(file), None)
        raise file_error("E004", file.path, "a file without any text (empty)", "a CSV of images")
    n_bytes = file.estimate_bytes(len(head))
    layout = plan_layout(file.path, head, label_column, lambda start: _sample_lines(file, start))
    _check_room(file.path, layout, head, n_bytes, store_dir)
    rows = Rows(file.path, layout)

    def finish() -> tuple[NDArray[np.int32] | None, dict[str, Any]]:
        values, place = sort_labels(rows.codes)
        facts = {
            "label_values": values if layout.label_columns else (),
            "first_line": layout.first_line,
            "decisions": [*dict.fromkeys(file.notes), *layout.decisions],
            "label_field": layout.label_columns[0] + 1 if layout.label_columns else None,
        }
        return (place if layout.label_columns else None), facts

    return rows.read(_read_text(file, layout.start)), finish


def _read_text(file: File, start: int = 0) -> Iterator[bytes]:
    """Yield the text from `start` on, without a byte-order mark and blank lines at the end.

    What was accepted is added to the file's notes; E010, another byte-order mark.
    """
    blocks = file.read_blocks()
    block = next(blocks, b"")
    if block.startswith(_OTHER_MARKS):
        found = "a byte-order mark of UTF-16 or UTF-32"
        raise file_error("E010", file.path, found, "text in UTF-8", "save it as UTF-8")
    if block.startswith(_BOM):
        file.notes.append("skipped a UTF-8 byte-order mark (E013)")
        start += len(_BOM)
    blank = b""  # not yet known to be followed by anything
    while block:
        start, block = max(start - len(block), 0), block[start:]
        text = blank + block
        kept = text if len(text) > 2 * BLOCK_BYTES else text.rstrip(_BLANK)
        blank = text[len(kept) :]
        if kept:
            yield kept
        block = next(blocks, b"")
    if b"\n" in blank:
        yield b"\n"
    else:
        file.notes.append("the last line has no line end (E015)")


def _sample_lines(file: File, start: int) -> list[bytes]:
    """Return all lines of the first block after `start` bytes and a few of every other one."""
    sample: list[bytes] = []
    for block in _read_text(file, start):
        lines = block.split(b"\n")
        # The first and last line of a block may be cut; those of other widths are left out later.
        sample += lines[:: len(lines) // 4 + 1] if sample else lines
    return sample


def _check_room(path: str, layout: Layout, head: bytes, n_bytes: int, folder: Path) -> None:
    """Compare the estimated size of the store with the free space; E044."""
    rows = head[layout.start :]
    n_rows = int((n_bytes - layout.start) * max(rows.count(b"\n"), 1) / max(len(rows), 1))
    needed = n_rows * (N_PIXELS + (8 if layout.label_columns else 0))
    while not folder.exists():
        folder = folder.parent
    if needed > (free := shutil.disk_usage(folder).free):
        found = f"about {n_rows} images, which need {needed} bytes in {folder}"
        hint = "free some space, or put the run directory elsewhere"
        raise file_error("E044", path, found, f"at most the {free} bytes that are free", hint)
