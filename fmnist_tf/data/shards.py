"""The tables of several files -> one: their rows one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmnist_tf.data.csv.cells import is_whole
from fmnist_tf.data.csv.faults import MAX_CLASSES
from fmnist_tf.data.images import JoinedRows, Table, read_blocks
from fmnist_tf.data.labels import sort_labels
from fmnist_tf.errors import file_error


def require_alike(first: Table, table: Table) -> None:
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


def join_tables(path: Path, tables: Sequence[Table]) -> Table:
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
        sha256=_digest(table.sha256 for table in tables),
        digest=digest.hexdigest(),
        label_digest="" if index is None else hashlib.sha256(index.data).hexdigest(),
        decisions=(
            f"{len(tables)} files, {begin} to {end}, {len(pixels):,} images",
            *dict.fromkeys(note for table in tables for note in table.decisions),
        ),
        labels_path="",
        labels_sha256=_digest(filter(None, (table.labels_sha256 for table in tables))),
        # A mapped file stays open: the labels are copied, and their mappings are closed.
        parts=tuple(replace(table, label_index=None) for table in tables),
    )


def _digest(digests: Iterable[str]) -> str:
    """Return the SHA-256 of several; "" of none."""
    joined = "\n".join(digests)
    return hashlib.sha256(joined.encode()).hexdigest() if joined else ""
