"""A CSV of 28x28 images -> a `Table` of uint8 pixels and labels, or `DataError` with all faults.

docs/data.md lists what is accepted.

Codes; (a): accepted, and said in `Table.decisions`.

    E001 no such file                       E023 a pixel column is missing
    E002 directory, pipe, socket, device    E024 (a) pixel columns permuted: put in order by name
    E003 no permission                      E025 a column that is neither pixel, label nor index
    E004 0 bytes                            E026 label column absent, unclear, or not the
    E005 no image                                one named
    E006 larger than `max_bytes`            E027 label empty, fraction, nan, unprintable, or names
                                                 mixed with numbers
    E007 grows absurdly when decompressed   E028 label that train lacks; more than 1,000 classes
    E008 compressed data truncated,         E029 names in one file, numbers in the other
         damaged or followed by more        E030 fewer than 2 classes
    E009 another format                     E031 pixel not a number
    E010 UTF-16 or UTF-32                   E032 pixel below 0
    E011 not UTF-8                          E033 pixel above 255
    E012 NUL byte                           E034 fraction (all within 0..1: already scaled?)
    E013 (a) UTF-8 byte-order mark          E035 nan, inf, NA or an empty cell
    E014 CR without LF                      E036 hexadecimal, underscore, thousands
    E015 (a) no line end at the end, but         separator, digits of another script
         refused if the last line is short  E037 number beyond 64 bits
    E016 separator '|' or space             E038 line over 64 KiB; quote not closed in its line
    E017 decimal comma                      E039 header again, blank or comment line
    E018 line too short                     W040 see `summary`
    E019 line too long                      E041 file changed while it was read
    E020 header without 784 pixels          E042 one file as train and as test
    E021 --label-column without a header;   E043 pattern matches nothing; loop of symbolic links
         first line neither header nor row  E044 store would not fit on the disk
    E022 the same name twice                E045 what a file of another form than CSV holds does
                                                 not fit; see `data.tables`
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.csv.labels import MAX_CLASSES, LabelCodes, NotPlainError
from fmnist_tf.data.csv.layout import Layout, plan_layout
from fmnist_tf.data.csv.scan import Scanner
from fmnist_tf.data.csv.source import TextFile
from fmnist_tf.data.images import Table
from fmnist_tf.data.store import Block, read_store, write_store
from fmnist_tf.errors import DataError, file_error

MAX_BYTES = 64 << 30
HEAD_BYTES = 1 << 20
"""Text by which the layout is decided; an ARFF header of 784 attributes has some 40 KB."""
READER_VERSION = 2
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""


def read_csv(
    path: str | os.PathLike[str],
    store_dir: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    member: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Read and check a CSV, or open the store that an earlier call wrote.

    Memory is bounded: pandas reads some thousand rows at a time. What it refuses is scanned again
    line by line, which reads rarer forms and finds the place of every fault.

    Args:
        path: the CSV, perhaps compressed.
        store_dir: folder of stores, made if needed; the store's name holds the file's SHA-256.
        label_column: the label's name in the header, its number from 1, "first" or "last";
            default: decided by the names, else by what the columns hold.
        member: the file of a zip archive; default: its only CSV.
        max_bytes: greatest size of the file, and of its text after decompression.

    Raises:
        DataError: E001..E041, E043 (a loop), E044, all faults of the file at once.
        OSError: the disk is full or fails.
    """
    path = os.fspath(path)
    with TextFile(path, max_bytes, member) as file:
        sha256 = file.read_sha256()
        options = json.dumps([READER_VERSION, label_column, member])
        name = f"{sha256}-{hashlib.sha256(options.encode()).hexdigest()[:16]}"
        directory = Path(store_dir, name)
        table = read_store(directory, path, sha256)
        if table is None:
            try:
                table = _parse(file, directory, sha256, label_column)
            except DataError:
                file.check_unchanged()  # faults of a half-written file would mislead
                raise
        file.check_unchanged()
    return table


def _parse(file: TextFile, directory: Path, sha256: str, label_column: str | None) -> Table:
    """Write the store, which is published only if the file has no fault."""
    from fmnist_tf.data.csv.fast import read_plain  # pandas: 0.3 s that a second start saves

    head = b""
    with suppress(DataError):  # raised again, with all other faults, by the scan
        for block in file.read_blocks():
            head += block
            if len(head) >= HEAD_BYTES:
                break
    if not head:
        next(file.read_blocks(), None)
        raise file_error("E004", file.path, "a file without any text", "a CSV of images")
    text_bytes = file.estimate_text_bytes(len(head))

    layout = plan_layout(file.path, head, label_column, lambda start: _sample_lines(file, start))
    _check_room(file.path, layout, head, text_bytes, directory.parent)
    try:
        labels = LabelCodes()
        blocks = read_plain(file.read_blocks(layout.start), layout, labels)
        return _write(file, layout, directory, sha256, labels, blocks)
    except (NotPlainError, DataError):
        labels = LabelCodes()
        blocks = Scanner(file.path, layout, labels).read(file.read_blocks(layout.start))
        return _write(file, layout, directory, sha256, labels, blocks)


def _write(
    file: TextFile,
    layout: Layout,
    directory: Path,
    sha256: str,
    labels: LabelCodes,
    blocks: Iterator[Block],
) -> Table:
    def finish() -> tuple[NDArray[np.int32] | None, dict[str, Any]]:
        if labels.is_mixed or len(labels.codes) > MAX_CLASSES:
            raise NotPlainError
        values, place = labels.sort()
        file.check_unchanged()
        facts = {
            "label_values": values,
            "first_line": layout.first_line,
            "decisions": [*file.notes, *layout.decisions],
            "label_field": layout.label_columns[0] + 1 if layout.label_columns else None,
        }
        return (place if layout.label_columns else None), facts

    return write_store(directory, file.path, sha256, blocks, finish)


def _sample_lines(file: TextFile, start: int) -> list[bytes]:
    """Return all lines of the first block after `start` bytes and a few of every other one."""
    sample: list[bytes] = []
    for block in file.read_blocks(start):
        lines = block.split(b"\n")
        # The first and last line of a block may be cut; those of other widths are left out later.
        sample += lines[:: len(lines) // 4 + 1] if sample else lines
    return sample


def _check_room(path: str, layout: Layout, head: bytes, text_bytes: int, folder: Path) -> None:
    """Compare the estimated size of the store with the free space; E044."""
    rows = head[layout.start :]
    line_bytes = len(rows) / max(rows.count(b"\n"), 1)
    n_rows = int((text_bytes - layout.start) / max(line_bytes, 1))
    needed = n_rows * (N_PIXELS + (8 if layout.label_columns else 0))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"about {n_rows} images, which need {needed} bytes in {folder}"
        hint = "free some space, or put the run directory elsewhere"
        raise file_error("E044", path, found, f"at most the {free} bytes that are free", hint)


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
        same = Path(train_path) == Path(test_path) or os.path.samefile(train_path, test_path)
    except (OSError, ValueError):
        return  # `read_csv` says what is wrong
    if same:
        found = f"the same file as the training data {os.fspath(train_path)}"
        hint = "accuracy on the training images says nothing about new ones: give other images"
        raise file_error("E042", os.fspath(test_path), found, "another file", hint)
