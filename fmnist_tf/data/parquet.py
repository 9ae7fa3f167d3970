"""Parquet files, if pyarrow is installed: columns of pixels, or Hugging Face's pictures."""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data.arrays import MAX_SIDE, Parsed, to_rows
from fmnist_tf.data.csv.layout import LABEL_NAMES
from fmnist_tf.data.csv.reader import read_csv
from fmnist_tf.data.files import File, read_bytes
from fmnist_tf.data.folders import decode_picture
from fmnist_tf.data.kinds import recognise
from fmnist_tf.errors import DataError, file_error


def read_parquet(path: Path, label_column: str | None) -> Parsed:
    """Return the images of a file with a column for each pixel, or one of struct{bytes, path}.

    Raises:
        DataError: E005, no picture; E008, damaged; E009, pyarrow is missing; E026, no such label
            column, or several that could be it; E045, a picture that cannot be read, or is not
            square; those of `read_table`.
    """
    if find_spec("pyarrow") is None:
        raise recognise(b"PAR1").refuse(path, "pyarrow, which is not installed, or a CSV of images")
    import pyarrow as pa
    from pyarrow.parquet import read_table

    try:
        table = read_table(pa.BufferReader(read_bytes(path)))
    except (pa.ArrowException, OSError) as error:
        expected = "a Parquet file"
        raise file_error("E008", str(path), str(error), expected, "fetch it again") from None
    for field in table.schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return _read_pictures(path, table, field.name, label_column)
    return _read_columns(path, table, label_column)


def _read_pictures(path: Path, table: Any, column: str, label_column: str | None) -> Parsed:
    others = [name for name in table.column_names if name != column]
    names = [label_column] if label_column else [n for n in others if n.lower() in LABEL_NAMES]
    names = names or (others if len(others) == 1 else [])
    if len(names) > 1 or set(names) - set(others) or (others and not names):
        found, hint = f"the columns {', '.join(others)}", "name it with --label-column"
        raise file_error("E026", str(path), found, "one label column", hint)
    rows: list[NDArray[np.uint8]] = []
    notes = {f"the pictures are in the column {column}": None}
    for number, cell in enumerate(table[column], 1):
        try:
            content = io.BytesIO((cell.as_py() or {}).get("bytes") or b"")
            image = decode_picture(content, MAX_SIDE)
        except ValueError as error:
            found = f"row {number} holds no readable picture ({error})"
            raise file_error("E045", str(path), found, "a PNG or JPEG in each row") from None
        pixels, found_notes = to_rows(str(path), image[np.newaxis])
        rows.append(pixels)
        notes |= dict.fromkeys(found_notes)
    if not rows:
        raise file_error("E005", str(path), "no row", "a picture in each row")
    notes |= {f"the label is the column {name}": None for name in names}
    labels = list(map(str, table[names[0]].to_pylist())) if names else None
    return np.concatenate(rows), labels, list(notes)


def _read_columns(path: Path, table: Any, label_column: str | None) -> Parsed:
    """Read a file with a column for each pixel by the rules for CSVs, which find the label."""
    from pyarrow.csv import write_csv

    pixels: list[NDArray[np.uint8]] = []
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder, "table.csv")
        write_csv(table, csv)
        try:
            with File(csv) as file:
                index, facts = read_csv(file, label_column, Path(folder), pixels.append)
        except DataError as error:
            problems = [replace(problem, path=str(path)) for problem in error.problems]
            raise DataError(problems, error.totals) from None
    labels = None if index is None else [facts["label_values"][k] for k in index]
    return np.concatenate(pixels), labels, facts["decisions"]
