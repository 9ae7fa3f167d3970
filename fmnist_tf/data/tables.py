"""Files or a folder of images in any form -> a `Table`; the reader is chosen by the content."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.arrays import Parsed, read_images
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.csv.reader import read_csv
from fmnist_tf.data.files import MAX_BYTES, File
from fmnist_tf.data.folders import hash_pictures, read_pictures
from fmnist_tf.data.images import Table
from fmnist_tf.data.labels import encode_labels, read_labels
from fmnist_tf.data.locate import find_labels_beside, list_parts
from fmnist_tf.data.parquet import read_parquet
from fmnist_tf.data.shards import join_tables, require_alike
from fmnist_tf.data.store import Block, Finish, read_store, write_store
from fmnist_tf.errors import file_error

READER_VERSION = 4
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""
FASHION = Convention(background=0, content_side=IMAGE_SIZE)
"""Bright objects that fill a black image."""

_Read = Callable[[], tuple[Iterable[Block], Finish]]


def read_table(
    path: str | os.PathLike[str],
    store_dir: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    labels: Path | None = None,
    convention: Convention = FASHION,
    max_bytes: int = MAX_BYTES,
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
        max_bytes: greatest size of the file, and of its content after decompression.

    DataError: E001..E046, see docs/data.md; all faults of a CSV at once.
    """
    paths, store_dir = list_parts(path), Path(store_dir)
    if len(paths) == 1:
        return _read_file(paths[0], store_dir, label_column, labels, convention, max_bytes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a mapped file stays open
    if 0 < soft < (wanted := len(paths) + 512):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard % 2**63), hard))
    tables: list[Table] = []
    for part in paths:
        tables.append(_read_file(part, store_dir, label_column, None, convention, max_bytes))
        require_alike(tables[0], tables[-1])
        if tables[0].first_line == 1 and tables[0].label_field:
            # Without a header, what the first file holds decides for the others.
            label_column = str(tables[0].label_field)
    table = join_tables(Path(path), tables)
    return table if labels is None else _add_labels(table, labels)


def _read_file(
    path: Path,
    store_dir: Path,
    label_column: str | None,
    labels: Path | None,
    convention: Convention,
    max_bytes: int,
) -> Table:
    read: _Read
    if os.path.isdir(path):
        read = partial(_encode, path, "pictures", partial(read_pictures, path, convention))
        table = _open(path, hash_pictures(path), store_dir, str(convention), read)
    else:
        with File(path, max_bytes) as file:
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
            checked = partial(_check_after, file, read)
            table = _open(path, file.read_sha256(), store_dir, label_column, checked)
    return table if labels is None else _add_labels(table, labels)


def _open(path: Path, sha256: str, store_dir: Path, option: str | None, read: _Read) -> Table:
    """Open the store of a file, which depends on the option, or read the file into it."""
    options = json.dumps([READER_VERSION, option]).encode()
    directory = store_dir / f"{sha256}-{hashlib.sha256(options).hexdigest()[:16]}"
    table = read_store(directory, str(path), sha256)
    return table or write_store(directory, str(path), sha256, *read())


def _check_after(file: File, read: _Read) -> tuple[Iterable[Block], Finish]:
    """Let no store appear if the file changed while it was read."""
    blocks, finish = read()

    def finish_checked() -> tuple[NDArray[np.int32] | None, dict[str, Any]]:
        file.check_unchanged()
        return finish()

    return blocks, finish_checked


def _encode(path: Path, form: str, parse: Callable[[], Parsed]) -> tuple[list[Block], Finish]:
    pixels, labels, decisions = parse()
    values, index = encode_labels(path, labels or ["0"] * len(pixels))
    places = None if labels is None else np.arange(len(values), dtype=np.int32)
    facts = {
        "form": form,
        "label_values": values if labels else (),
        "decisions": decisions,
        "layout": "; ".join(decisions),
    }
    return [(pixels, index)], lambda: (places, facts)


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
