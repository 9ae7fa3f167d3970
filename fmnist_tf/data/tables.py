"""A file or folder of images in any form -> a `Table`; the reader is chosen by the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import arrays, folders, parquet
from fmnist_tf.data.archives import find_kind, open_file, split_member
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.csv.table import read_csv
from fmnist_tf.data.images import Table
from fmnist_tf.data.label_files import encode_labels, read_labels
from fmnist_tf.data.locate import find_labels_beside
from fmnist_tf.data.store import read_store, write_store
from fmnist_tf.errors import file_error
from fmnist_tf.system.files import file_digest

READER_VERSION = 1
"""Part of a store's name: raise it whenever the same bytes would be read in another way."""

_Parsed = tuple[NDArray[np.uint8], list[str] | None, list[str]]
"""Pixels (N, 784), N labels or None, and what was decided."""


def read_table(
    path: Path,
    store_dir: Path,
    *,
    label_column: str | None = None,
    labels: Path | None = None,
    convention: Convention = folders.FASHION,
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
    if form in ("idx", "npy"):
        labels = labels or find_labels_beside(path)
        table = _read_stored(form, path, _digest(path), store_dir, lambda: _read_array(path))
    elif form == "parquet":
        table = _read_parquet(path, store_dir, label_column)
    elif form == "pictures":
        table = _read_folder(path, store_dir, convention)
    elif form in ("text", "gzip", "bzip2", "xz", "zip"):
        file, member = split_member(path)
        if not member:
            table = read_csv(path, store_dir, label_column=label_column)
        else:
            with open_file(path):  # or it says which members there are
                pass
            table = read_csv(file, store_dir, label_column=label_column, member=member)
            table = replace(table, path=str(path), sha256=_digest(path))
    else:
        raise find_kind(path).refuse(path, "images")
    return table if labels is None else _add_labels(table, labels)


def _read_stored(
    form: str,
    path: Path,
    sha256: str,
    store_dir: Path,
    parse: Callable[[], _Parsed],
    option: str | None = None,
) -> Table:
    """Open the store of a file, or parse the file, which depends on the option, into it."""
    key = hashlib.sha256(json.dumps([READER_VERSION, sha256, option]).encode()).hexdigest()
    directory = store_dir / f"{form}-{key}"
    table = read_store(directory, str(path), sha256)
    if table is None:
        pixels, labels, decisions = parse()
        values, codes = encode_labels(path, labels or ["0"] * len(pixels), 1)
        index = None if labels is None else np.arange(len(values), dtype=np.int32)
        values = values if labels else ()
        facts = {"form": form, "label_values": list(values), "decisions": decisions}
        blocks = [(pixels, codes)]
        table = write_store(directory, str(path), sha256, blocks, lambda: (index, facts))
    return table


def _read_array(path: Path) -> _Parsed:
    pixels, decisions = arrays.read_pixels(path)
    return pixels, None, decisions


def _read_folder(path: Path, store_dir: Path, convention: Convention) -> Table:
    pictures = folders.list_pictures(path)

    def parse() -> _Parsed:
        pixels, decisions = folders.read_pictures(path, pictures, convention)
        classes = dict.fromkeys(label for _, label in pictures)
        decisions.insert(0, f"{len(classes)} folders of pictures, one for each class")
        return pixels, [label for _, label in pictures], decisions

    sha256 = folders.hash_pictures(pictures)
    return _read_stored("pictures", path, sha256, store_dir, parse, str(convention))


def _read_parquet(path: Path, store_dir: Path, label_column: str | None) -> Table:
    file, sha256 = parquet.open_parquet(path), _digest(path)
    column = parquet.find_picture_column(file)
    if column is None:
        table = parquet.read_columns(path, file, store_dir, label_column)
        return replace(table, path=str(path), sha256=sha256, form="parquet")

    def parse() -> _Parsed:
        images, labels, decisions = parquet.read_pictures(path, file, column, label_column)
        pixels, more = arrays.to_rows(path, images)
        return pixels, labels, decisions + more

    return _read_stored("parquet", path, sha256, store_dir, parse, label_column)


def _add_labels(table: Table, path: Path) -> Table:
    """Return the table with the labels of a file."""
    if table.label_index is not None:
        found = f"labels of its own ({len(table.label_values)} classes)"
        expected = f"images alone, as their labels are in {path}"
        raise file_error("E025", table.path, found, expected, "leave out --labels")
    labels, first_line = read_labels(path, len(table.pixels), table.path)
    values, index = encode_labels(path, labels, first_line)
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
    """Return the SHA-256 of a file; of a member of an archive, of the archive's and its name."""
    file, member = split_member(path)
    digest = file_digest(file)
    return hashlib.sha256(f"{digest} {member}".encode()).hexdigest() if member else digest
