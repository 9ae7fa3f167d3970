"""A file or folder of images in any form -> a `Table`; the reader is chosen by the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.archives import find_kind, split_member
from fmnist_tf.data.arrays import Parsed, read_images
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.csv.table import read_csv
from fmnist_tf.data.folders import hash_pictures, read_pictures
from fmnist_tf.data.images import Table
from fmnist_tf.data.label_files import encode_labels, read_labels
from fmnist_tf.data.locate import find_labels_beside
from fmnist_tf.data.parquet import read_parquet
from fmnist_tf.data.store import read_store, write_store
from fmnist_tf.errors import file_error
from fmnist_tf.system.files import file_digest

READER_VERSION = 2
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""
FASHION = Convention(background=0, content_side=IMAGE_SIZE)
"""Bright objects that fill a black image."""


def read_table(
    path: Path,
    store_dir: Path,
    *,
    label_column: str | None = None,
    labels: Path | None = None,
    convention: Convention = FASHION,
) -> Table:
    """Read and check images, or open the store that an earlier call wrote.

    Args:
        path: a CSV, an IDX, NPY or Parquet file, a member of a zip archive, or a folder that holds
            a folder of pictures for each class. Labels of IDX and NPY files are found beside them.
        store_dir: folder of stores, made if needed.
        label_column: which column of a CSV or Parquet file holds the label; None finds it.
        labels: a file of labels, for images that have none of their own.
        convention: of the images that pictures are converted to if they are not grey and 28x28.

    Raises:
        DataError: the codes of `data.csv.table`; E045, what a file of another form holds does not
            fit.
        OSError: the disk is full or fails.
    """
    form = "pictures" if path.is_dir() else find_kind(path).form
    match form:
        case "text" | "gzip" | "bzip2" | "xz" | "zip":
            file, member = split_member(path)
            table = read_csv(file, store_dir, label_column=label_column, member=member or None)
            if member:
                table = replace(table, path=str(path), sha256=_digest(path))
        case "idx" | "npy":
            labels = labels or find_labels_beside(path)
            table = _read_stored(form, path, store_dir, None, lambda: read_images(path))
        case "parquet":
            table = _read_stored(
                form, path, store_dir, label_column, lambda: read_parquet(path, label_column)
            )
        case "pictures":
            table = _read_stored(
                form, path, store_dir, str(convention), lambda: read_pictures(path, convention)
            )
        case _:
            raise find_kind(path).refuse(path, "images")
    return table if labels is None else _add_labels(table, labels)


def _read_stored(
    form: str, path: Path, store_dir: Path, option: str | None, parse: Callable[[], Parsed]
) -> Table:
    """Open the store of a file, or parse the file, which depends on the option, into it."""
    sha256 = _digest(path)
    key = hashlib.sha256(json.dumps([READER_VERSION, sha256, option]).encode()).hexdigest()
    directory = store_dir / f"{form}-{key}"
    if (table := read_store(directory, str(path), sha256)) is not None:
        return table
    pixels, labels, decisions = parse()
    values, index = encode_labels(path, labels or ["0"] * len(pixels))
    places = None if labels is None else np.arange(len(values), dtype=np.int32)
    facts = {"form": form, "label_values": values if labels else (), "decisions": decisions}
    return write_store(directory, str(path), sha256, [(pixels, index)], lambda: (places, facts))


def _add_labels(table: Table, path: Path) -> Table:
    """Return the table with the labels of a file."""
    if table.label_index is not None:
        found = f"labels of its own ({len(table.label_values)} classes)"
        expected = f"images alone, as their labels are in {path}"
        raise file_error("E025", table.path, found, expected, "leave out --labels")
    values, index = read_labels(path, len(table.pixels), table.path)
    name = path.name if path.parent == Path(table.path).parent else path
    return replace(
        table,
        label_index=index,
        label_values=values,
        label_digest=hashlib.sha256(index.data).hexdigest(),
        labels_path=str(path),
        labels_sha256=_digest(path),
        decisions=(*table.decisions, f"the labels are in {name}"),
    )


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, of the pictures in a folder, or of an archive and a member."""
    if path.is_dir():
        return hash_pictures(path)
    file, member = split_member(path)
    digest = file_digest(file)
    return hashlib.sha256(f"{digest} {member}".encode()).hexdigest() if member else digest
