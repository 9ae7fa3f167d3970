"""Files or a folder of images in any form -> a `Table`; the reader is chosen by the content."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.arrays import Parsed, read_images
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.csv.cells import is_whole
from fmnist_tf.data.csv.faults import MAX_CLASSES
from fmnist_tf.data.csv.reader import read_csv
from fmnist_tf.data.files import File
from fmnist_tf.data.folders import hash_pictures, read_pictures
from fmnist_tf.data.images import JoinedRows, Table, read_blocks
from fmnist_tf.data.labels import encode_labels, read_labels, sort_labels
from fmnist_tf.data.locate import find_labels_beside, list_parts
from fmnist_tf.data.parquet import read_parquet
from fmnist_tf.data.store import Content, Write, open_store
from fmnist_tf.errors import file_error

READER_VERSION = 4
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""
FASHION = Convention(background=0, content_side=IMAGE_SIZE)
"""Bright objects that fill a black image."""

_Read = Callable[[Write], Content]


def read_table(
    path: str | os.PathLike[str],
    store_dir: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    labels: Path | None = None,
    convention: Convention = FASHION,
) -> Table:
    """Read and check images, or open the store that an earlier call wrote. Memory is bounded.

    Args:
        path: a CSV, an IDX, NPY or Parquet file, perhaps compressed or in a zip archive; a pattern
            of several (see `list_parts`), each with a store of its own; or a folder of a folder of
            pictures for each class.
        store_dir: folder of stores, made if needed; a store's name holds the file's SHA-256.
        label_column: of a CSV or Parquet file: the label's name, its number from 1, "first" or
            "last"; default: decided by the names, else by what the columns hold.
        labels: a file of labels, for images that have none of their own; those of IDX and NPY files
            are found beside them.
        convention: of the images that pictures are converted to if they are not grey and 28x28.

    DataError: E001..E046, see docs/data.md; all faults of a CSV at once.
    """
    paths, store_dir = list_parts(path), Path(store_dir)
    if len(paths) == 1:
        return _read_file(paths[0], store_dir, label_column, labels, convention)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a mapped file stays open
    if 0 < soft < (wanted := len(paths) + 512):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard % 2**63), hard))
    tables: list[Table] = []
    for part in paths:
        tables.append(_read_file(part, store_dir, label_column, None, convention))
        _require_alike(tables[0], tables[-1])
        if tables[0].first_line == 1 and tables[0].label_field:
            # Without a header, what the first file holds decides for the others.
            label_column = str(tables[0].label_field)
    table = _join_tables(Path(path), tables)
    return table if labels is None else _add_labels(table, labels)


def _read_file(
    path: Path,
    store_dir: Path,
    label_column: str | None,
    labels: Path | None,
    convention: Convention,
) -> Table:
    read: _Read
    if os.path.isdir(path):
        read = partial(_encode, path, "pictures", partial(read_pictures, path, convention))
        table = _open(path, hash_pictures(path), store_dir, str(convention), read)
    else:
        with File(path) as file:
            form = file.kind.form
            if form == "text":
                read = partial(read_csv, file, label_column, store_dir)
            elif form == "parquet":
                read = partial(_encode, path, form, partial(read_parquet, path, label_column))
            elif form in ("idx", "npy"):
                labels = labels or find_labels_beside(path)
                read = partial(_encode, path, form, partial(read_images, path))
            else:
                raise file.kind.refuse(path, "images")

            def read_unchanged(write: Write) -> Content:
                content = read(write)
                file.check_unchanged()  # else no store appears
                return content

            table = _open(path, file.read_sha256(), store_dir, label_column, read_unchanged)
    return table if labels is None else _add_labels(table, labels)


def _open(path: Path, sha256: str, store_dir: Path, option: str | None, read: _Read) -> Table:
    """Open the store of a file, which depends on the option, or read the file into it."""
    options = json.dumps([READER_VERSION, option]).encode()
    name = f"{sha256}-{hashlib.sha256(options).hexdigest()[:16]}"
    return open_store(store_dir / name, str(path), sha256, read)


def _encode(path: Path, form: str, parse: Callable[[], Parsed], write: Write) -> Content:
    pixels, labels, decisions = parse()
    values, index = ((), None) if labels is None else encode_labels(path, labels)
    write(pixels)
    layout = "; ".join(decisions)
    return index, {"form": form, "label_values": values, "decisions": decisions, "layout": layout}


def _add_labels(table: Table, path: Path) -> Table:
    """Return the table with the labels of a file."""
    if table.label_index is not None:
        found = f"labels of its own ({len(table.label_values)} classes)"
        expected = f"images alone, as their labels are in {path}"
        raise file_error("E025", table.path, found, expected, "leave out --labels")
    values, index = read_labels(path, len(table.pixels), table.path)
    name = path.name if path.parent == Path(table.path).parent else path
    with File(path) as file:
        sha256 = file.read_sha256()
    return replace(
        table,
        label_index=index,
        label_values=values,
        label_digest=hashlib.sha256(index.data).hexdigest(),
        labels_path=str(path),
        labels_sha256=sha256,
        decisions=(*table.decisions, f"the labels are in {name}"),
    )


def _require_alike(first: Table, table: Table) -> None:
    """Check that a file has the form, the columns and the kind of labels of the first (E046)."""
    expected, found = _describe(first), _describe(table)
    if expected != found:
        hint = "export all files alike, and name only those that belong together"
        raise file_error("E046", table.path, found, f"{expected}, as in {first.path}", hint)


def _describe(table: Table) -> str:
    labels = "no labels"
    if table.label_index is not None:
        labels = f"labels that are {'numbers' if is_whole(table.label_values[0]) else 'names'}"
    return ", ".join(filter(None, (table.form, table.layout, labels)))


def _join_tables(path: Path, tables: Sequence[Table]) -> Table:
    """Return the tables of the files that a pattern means as one, without a copy of the pixels.

    Labels, classes and digests are those of one file with these rows.

    Raises:
        DataError: E028, more than 1,000 classes in all.
    """
    first, pixels = tables[0], JoinedRows([table.pixels for table in tables])
    values = tuple(sort_labels({text for table in tables for text in table.label_values}))
    if len(values) > MAX_CLASSES:
        found, hint = f"{len(values):,} classes", "is this the label column? see --label-column"
        raise file_error("E028", str(path), found, f"at most {MAX_CLASSES:,}", hint)
    index, place = None, {text: k for k, text in enumerate(values)}
    if first.label_index is not None:
        of_file = ([place[text] for text in table.label_values] for table in tables)
        pairs = zip(of_file, tables, strict=True)
        index = np.concatenate([np.array(of, "<i4")[table.label_index] for of, table in pairs])
    digest = hashlib.sha256()
    for block in read_blocks(pixels):
        digest.update(block.data)
    begin, *_, end = (Path(table.path).name for table in tables)
    return replace(
        first,
        pixels=pixels,
        label_index=index,
        label_values=values,
        path=str(path),
        sha256=_digest_all(table.sha256 for table in tables),
        digest=digest.hexdigest(),
        label_digest="" if index is None else hashlib.sha256(index.data).hexdigest(),
        decisions=(
            f"{len(tables)} files, {begin} to {end}, {len(pixels):,} images",
            *dict.fromkeys(note for table in tables for note in table.decisions),
        ),
        labels_path="",
        labels_sha256=_digest_all(filter(None, (table.labels_sha256 for table in tables))),
        # A mapped file stays open: the labels are copied, and their mappings are closed.
        parts=tuple(replace(table, label_index=None) for table in tables),
    )


def _digest_all(digests: Iterable[str]) -> str:
    """Return the SHA-256 of several; "" of none."""
    joined = "\n".join(digests)
    return hashlib.sha256(joined.encode()).hexdigest() if joined else ""
