"""A CSV of 28x28 images -> a `Table` of uint8 pixels and labels, or `DataError` with all faults.

What is accepted: `label,pixel1..pixel784` and its relatives (`pixel0..`, `1x1..28x28`, any shared
prefix numbered 0..783 or 1..784), no header, the label first, last or named, an index column,
no label at all; gzip; LF or CR LF, also mixed; a UTF-8 byte-order mark; no line end at the end;
quotes and spaces around a cell, a sign, leading zeros, `12.0` for 12. Labels are whole numbers of
any value or names, not both in one file.

Codes; (a): accepted, and said in `Table.decisions`.

    E001 no such file                       E023 a pixel column is missing
    E002 directory, pipe, socket, device    E024 (a) pixel columns permuted: put in order by name
    E003 no permission                      E025 a column that is neither pixel, label nor index
    E004 0 bytes                            E026 label column absent, or not the one named
    E005 no image                           E027 label empty, fraction, nan, unprintable, or names
    E006 larger than `max_bytes`                 mixed with numbers
    E007 gzip bomb                          E028 label that train lacks; more than 1,000 classes
    E008 gzip truncated or damaged, or      E029 names in one file, numbers in the other
         followed by something else         E030 fewer than 2 classes
    E009 another format                     E031 pixel not a number
    E010 UTF-16 or UTF-32                   E032 pixel below 0
    E011 not UTF-8                          E033 pixel above 255
    E012 NUL byte                           E034 fraction (all within 0..1: already scaled?)
    E013 (a) UTF-8 byte-order mark          E035 nan, inf, NA or an empty cell
    E014 CR without LF                      E036 exponent, hexadecimal, underscore, thousands
    E015 (a) no line end at the end, but         separator, digits of another script
         refused if the last line is short  E037 number beyond 64 bits
    E016 separator ';', tab, '|' or space   E038 line over 64 KiB; quote not closed in its line
    E017 decimal comma                      E039 header again, blank or comment line
    E018 line too short                     W040 see `summary`
    E019 line too long                      E041 file changed while it was read
    E020 header without 784 pixels          E042 one file as train and as test
    E021 --label-column without a header;   E043 pattern matches nothing; loop of symbolic links
         first line neither header nor row  E044 store would not fit on the disk
    E022 the same name twice
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.csv.decode import CsvBytes
from fmnist_tf.data.csv.layout import Layout, plan_layout
from fmnist_tf.data.csv.rows import RowReader
from fmnist_tf.data.images import Table
from fmnist_tf.data.store import Block, read_store, write_store
from fmnist_tf.errors import DataError, file_error

MAX_BYTES = 64 << 30
READER_VERSION = 1
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""


def read_csv(
    path: str | os.PathLike[str],
    store_dir: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Read and check a CSV, or open the store that an earlier call wrote.

    Memory is bounded: the text is read in blocks of 256 KiB.

    Args:
        path: the CSV, perhaps gzipped.
        store_dir: folder of stores, made if needed; the store's name holds the file's SHA-256.
        label_column: the label's name in the header; default: decided by the names.
        max_bytes: greatest size of the file, and of its text after decompression.

    Raises:
        DataError: E001..E041, E043 (a loop), E044, all faults of the file at once.
        OSError: the disk is full or fails; nothing incomplete is left.
    """
    path = os.fspath(path)
    with CsvBytes(path, max_bytes) as file:
        sha256 = file.read_sha256()
        options = json.dumps([READER_VERSION, label_column])
        name = f"{sha256}-{hashlib.sha256(options.encode()).hexdigest()[:16]}"
        directory = Path(store_dir, name)
        table = read_store(directory, path, sha256)
        if table is None:
            table = _write_parsed(file, directory, sha256, label_column)
        file.check_unchanged()
    return table


def _write_parsed(file: CsvBytes, directory: Path, sha256: str, label_column: str | None) -> Table:
    """Parse the file into a new store, which is published only if the file has no fault."""
    try:
        return _parse(file, directory, sha256, label_column)
    except DataError:
        file.check_unchanged()  # faults of a half-written file would mislead
        raise


def _parse(file: CsvBytes, directory: Path, sha256: str, label_column: str | None) -> Table:
    blocks = file.read_blocks()
    first = next(blocks, b"")
    if not first:
        raise file_error("E004", file.path, "a file without any text", "a CSV of images")
    layout, rest = _split_header(file.path, first, label_column)
    _check_room(file, layout, len(first) - len(rest), rest, directory.parent)
    reader = RowReader(file.path, layout)
    ends_line = True

    def read_rows() -> Iterator[Block]:
        nonlocal ends_line
        block = rest
        while True:
            if block:
                ends_line = block.endswith(b"\n")
                pixels, codes = reader.read_block(block)
                if not reader.problem_total:
                    yield pixels, codes
            try:
                block = next(blocks)
            except StopIteration:
                return
            except DataError as error:
                raise DataError(
                    reader.problems + error.problems, reader.problem_total + error.total
                ) from None

    def finish() -> tuple[NDArray[np.int32] | None, dict[str, Any]]:
        label_values, new_code = reader.finish()
        file.check_unchanged()
        decisions = [*file.notes, *layout.decisions, *reader.notes]
        if not ends_line:
            decisions.append("the last line is complete but has no line end (E015)")
        column = layout.label_column
        facts = {
            "label_values": list(label_values),
            "first_line": layout.first_line,
            "decisions": decisions,
            "label_field": None if column is None else column + 1,
        }
        return None if column is None else new_code, facts

    return write_store(directory, file.path, sha256, read_rows(), finish)


def _split_header(path: str, block: bytes, label_column: str | None) -> tuple[Layout, bytes]:
    """Return the layout, planned by the first block, and the block without the header."""
    lines = block.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # empty, or the start of a line that the block cuts
    layout = plan_layout(path, lines, 1, label_column)
    skipped = layout.first_line - 1
    if not skipped:
        return layout, block
    return layout, block.split(b"\n", skipped)[skipped] if b"\n" in block else b""


def _check_room(
    file: CsvBytes, layout: Layout, header_bytes: int, sample: bytes, folder: Path
) -> None:
    """Compare the estimated size of the store with the free space; E044."""
    line_bytes = len(sample) / max(sample.count(b"\n"), 1)
    rows = int((file.estimate_text_bytes() - header_bytes) / max(line_bytes, 1))
    needed = rows * (N_PIXELS + (0 if layout.label_column is None else 8))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"about {rows} images, which need {needed} bytes in {folder}"
        hint = "free some space, or put the run directory elsewhere"
        raise file_error("E044", file.path, found, f"at most the {free} bytes that are free", hint)


def expand_path(pattern: str | os.PathLike[str]) -> Path:
    """Return the one file or folder that a path or shell pattern means; an exact name wins.

    A path without `*`, `?` or `[` is returned as it is, whether it exists or not.

    Raises:
        DataError: E043, a pattern that matches nothing or several files, or a loop of symbolic
            links.
    """
    text = os.fspath(pattern)
    try:
        os.stat(text)
        return Path(text)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise file_error("E043", text, "a loop of symbolic links", "a CSV of images") from None
    if not glob.has_magic(text):
        return Path(text)
    paths = [] if "\0" in text else sorted(glob.glob(text))
    if len(paths) != 1:
        shown = ", ".join(paths[:3])
        found = f"the pattern matches {len(paths)} files: {shown}" if paths else "no file matches"
        raise file_error("E043", text, found, "a pattern of one file", "check folder and pattern")
    return Path(paths[0])


def check_paths(train_path: str | os.PathLike[str], test_path: str | os.PathLike[str]) -> None:
    """Refuse one file given twice, under whatever names.

    Raises:
        DataError: E042.
    """
    try:
        same = os.path.samefile(train_path, test_path)
    except (OSError, ValueError):
        return  # `read_csv` says what is wrong
    if same:
        found = f"the same file as the training data {os.fspath(train_path)}"
        hint = "accuracy on the training images says nothing about new ones: give other images"
        raise file_error("E042", os.fspath(test_path), found, "another file", hint)
