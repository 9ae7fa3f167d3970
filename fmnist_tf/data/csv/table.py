"""A CSV of 28x28 images -> validated uint8 pixels and labels, every fault with file, line, column.

In: a path and a folder for the parsed store. Out: a `CsvTable`, memory-mapped, or `DataError` with
all faults of the file. Kept apart: `decode` (disk and gzip), `cells` (one line, one cell),
`layout` (header and columns), `rows` (blocks of rows), `data.store` (the store) and
`data.checks` (warnings). This module must not know where CSVs come from, nor labels as 0..K-1.

What is accepted: `label,pixel1..pixel784` and its relatives (`pixel0..`, `1x1..28x28`, any shared
prefix numbered 0..783 or 1..784), no header, the label first, last or named, an index column,
no label at all; gzip; LF or CR LF, also mixed; a UTF-8 byte-order mark; no line end at the end;
quotes and spaces around a cell, a sign, leading zeros, `12.0` for 12. Labels are whole numbers of
any value or names, not both in one file.

Codes, by what was met. (a) = accepted, and told in `CsvTable.decisions`.

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
    E018 line too short                     W040 see `find_pixel_warnings`
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.checks import find_warnings
from fmnist_tf.data.csv.cells import is_whole
from fmnist_tf.data.csv.decode import CsvBytes, file_error
from fmnist_tf.data.csv.layout import PIXELS, Layout, plan_layout
from fmnist_tf.data.csv.rows import RowReader
from fmnist_tf.data.store import StoredPixels, StoreWriter, read_store
from fmnist_tf.errors import DataError, Problem, printable

MAX_BYTES = 64 << 30
READER_VERSION = 1
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""


@dataclass(frozen=True)
class CsvTable:
    """One CSV file, validated.

    Attributes:
        pixels: (N, 784), row-major, read-only memory map.
        label_index: (N,) places in `label_values`, read-only memory map; None if unlabelled.
        label_values: the K distinct labels as text, ordered by value if all are whole numbers,
            else by text; empty if unlabelled.
        path: the file as the user named it.
        sha256: of the file's bytes as they lie on disk.
        first_line: line of row 0, so row i stands in line `first_line + i`.
        decisions: what was decided, one sentence each.
        label_field: the label's 1-based field, or None.
    """

    pixels: NDArray[np.uint8]
    label_index: NDArray[np.int32] | None
    label_values: tuple[str, ...]
    path: str
    sha256: str
    first_line: int
    decisions: tuple[str, ...]
    label_field: int | None = None


def read_csv(
    path: str | os.PathLike[str],
    store_dir: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> CsvTable:
    """Read and check a CSV once; later calls open the store that the first one left.

    Memory stays bounded whatever the size: the text passes in blocks of 256 KiB.

    Args:
        path: the CSV, perhaps gzipped.
        store_dir: folder of stores, made if needed; the store's name holds the file's SHA-256.
        label_column: the label's name in the header; default: decided by the names.
        max_bytes: greatest size of the file, and of its text after decompression.

    Raises:
        DataError: E001..E041, E043 (a loop), E044, all faults of the file at once.
        OSError: the disk is full or fails; nothing half-written stays behind.
    """
    path = os.fspath(path)
    with CsvBytes(path, max_bytes) as file:
        sha256 = file.read_sha256()
        options = json.dumps([READER_VERSION, label_column])
        name = f"{sha256}-{hashlib.sha256(options.encode()).hexdigest()[:16]}"
        directory = Path(store_dir, name)
        stored = read_store(directory)
        if stored is None:
            stored = _write_parsed(file, directory, label_column)
        file.check_unchanged()
    facts = stored.facts
    return CsvTable(
        pixels=stored.pixels,
        label_index=stored.label_index,
        label_values=tuple(facts["label_values"]),
        path=path,
        sha256=sha256,
        first_line=facts["first_line"],
        decisions=tuple(facts["decisions"]),
        label_field=facts["label_field"],
    )


def _write_parsed(file: CsvBytes, directory: Path, label_column: str | None) -> StoredPixels:
    """Parse the file into a new store; nothing is published unless the file is without fault."""
    try:
        return _parse(file, directory, label_column)
    except DataError:
        file.check_unchanged()  # the faults of a half-written file are not worth telling
        raise


def _parse(file: CsvBytes, directory: Path, label_column: str | None) -> StoredPixels:
    blocks = file.read_blocks()
    block = next(blocks, b"")
    if not block:
        raise file_error("E004", file.path, "a file without any text", "a CSV of images")
    layout, rest = _split_header(file.path, block, label_column)
    _check_room(file, layout, len(block) - len(rest), rest, directory.parent)
    reader = RowReader(file.path, layout)
    with StoreWriter(directory, PIXELS, layout.label_column is not None) as writer:
        block = rest
        ends_line = True
        while True:
            if block:
                ends_line = block.endswith(b"\n")
                pixels, codes = reader.read_block(block)
                if not reader.problem_total:
                    writer.append(pixels, codes)
            try:
                block = next(blocks)
            except StopIteration:
                break
            except DataError as error:
                raise DataError(
                    reader.problems + error.problems, reader.problem_total + error.total
                ) from None
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
        return writer.publish(new_code, facts)


def _split_header(path: str, block: bytes, label_column: str | None) -> tuple[Layout, bytes]:
    """Plan the layout by the first block; return it and the block without the header."""
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
    needed = rows * (PIXELS + (0 if layout.label_column is None else 8))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"about {rows} images, which need {needed} bytes in {printable(str(folder))}"
        hint = "free some space, or put the run directory elsewhere"
        raise file_error("E044", file.path, found, f"at most the {free} bytes that are free", hint)


def expand_path(pattern: str | os.PathLike[str]) -> Path:
    """Return the one file or folder a path or shell pattern stands for; an exact name wins.

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
        shown = ", ".join(printable(path) for path in paths[:3])
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
        return  # `read_csv` tells what is wrong with either
    if same:
        shown = printable(os.fspath(train_path), 200)
        found = f"the same file as the training data {shown}"
        hint = "a test on the training images measures memory: give other images"
        raise file_error("E042", os.fspath(test_path), found, "another file", hint)


def find_pixel_warnings(train: CsvTable, test: CsvTable | None = None) -> tuple[str, ...]:
    """Return W040 sentences on images and labels that are readable but probably not meant.

    See `checks.find_warnings` for what is looked at.
    """
    return find_warnings(
        train.pixels,
        train.label_index,
        train.label_values,
        None if test is None else test.pixels,
    )


def check_label_map(train: CsvTable, test: CsvTable | None = None) -> None:
    """Refuse labels that cannot be learnt, or tested against what was learnt.

    Raises:
        DataError: E026 (no label column), E028 (a label that train lacks), E029 (names here,
            numbers there), E030 (fewer than 2 classes); one problem for each such label, at the
            first line that has it.
    """
    for table in (train, test):
        if table is not None and table.label_index is None:
            hint = "name it with --label-column"
            raise file_error("E026", table.path, "no label column", "labelled images", hint)
    if len(train.label_values) < 2:
        found = f"one class only, {printable(train.label_values[0])}"
        hint = "is this the label column? name it with --label-column"
        raise DataError([_label_problem(train, 0, "E030", found, "2 classes or more", hint)])
    if test is None:
        return
    known = set(train.label_values)
    unknown = [place for place, text in enumerate(test.label_values) if text not in known]
    is_number = is_whole(train.label_values[0])
    shown = ", ".join(printable(text, 20) for text in train.label_values[:10])
    expected = f"a label of {printable(train.path, 200)}: {shown}"
    expected += ", ..." if len(train.label_values) > 10 else ""
    problems = []
    for place in unknown:
        text = test.label_values[place]
        found = f"the label {printable(text)}"
        if is_whole(text) != is_number:
            hint = "write names in both files, or numbers in both"
            problems.append(_label_problem(test, place, "E029", found, expected, hint))
        else:
            hint = _shift_hint(train, test) if is_number else "another spelling?"
            problems.append(_label_problem(test, place, "E028", found, expected, hint))
    if problems:
        raise DataError(sorted(problems, key=lambda problem: problem.line or 0))


def _label_problem(
    table: CsvTable, place: int, code: str, found: str, expected: str, hint: str
) -> Problem:
    index = table.label_index
    row = 0 if index is None else int(np.argmax(index == place))
    line = table.first_line + row
    return Problem(code, table.path, line, table.label_field, None, found, expected, hint)


def _shift_hint(train: CsvTable, test: CsvTable) -> str:
    ours, theirs = [int(x) for x in train.label_values], [int(x) for x in test.label_values]
    if min(ours) == 0 and min(theirs) == 1 and max(theirs) == max(ours) + 1:
        return "one-based labels here, zero-based in training? subtract 1"
    if min(ours) == 1 and min(theirs) == 0 and max(theirs) == max(ours) - 1:
        return "zero-based labels here, one-based in training? add 1"
    return "the model has never seen this class"
