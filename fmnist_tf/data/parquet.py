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
from PIL import Image

from fmnist_tf.data.arrays import MAX_SIDE
from fmnist_tf.data.csv.layout import LABEL_NAMES
from fmnist_tf.data.csv.table import read_csv
from fmnist_tf.data.images import Table
from fmnist_tf.data.kinds import recognise
from fmnist_tf.errors import DataError, file_error

_BATCH_ROWS = 4096


def open_parquet(path: Path) -> Any:
    """Return the `pyarrow.parquet.ParquetFile` of a file.

    Raises:
        DataError: E008, damaged; E009, pyarrow is missing.
    """
    if find_spec("pyarrow") is None:
        raise recognise(b"PAR1").refuse(path, "pyarrow, which is not installed, or a CSV of images")
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise file_error(
            "E008", str(path), str(error), "a Parquet file", "fetch it again"
        ) from None


def find_picture_column(file: Any) -> str | None:
    """Return the column that holds pictures in Hugging Face's form, struct{bytes, path}."""
    import pyarrow as pa

    columns = [
        field.name
        for field in file.schema_arrow
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    return columns[0] if columns else None


def read_pictures(
    path: Path, file: Any, column: str, label_column: str | None
) -> tuple[NDArray[np.uint8], list[str] | None, list[str]]:
    """Return the pictures (N, S, S) or (N, S, S, 3), their labels, and what was decided.

    Raises:
        DataError: E005, no picture; E026, no such label column, or several that could be it; E045,
            a picture that cannot be read, or has another size than the first.
    """
    others = [name for name in file.schema_arrow.names if name != column]
    names = [label_column] if label_column else [n for n in others if n.lower() in LABEL_NAMES]
    names = names or (others if len(others) == 1 else [])
    if len(names) > 1 or set(names) - set(others) or (others and not names):
        found, hint = f"the columns {', '.join(others)}", "name it with --label-column"
        raise file_error("E026", str(path), found, "one label column", hint)
    images: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for batch in file.iter_batches(_BATCH_ROWS, columns=[column, *names]):
        for cell in batch.column(column).to_pylist():
            images.append(_decode(path, len(images) + 1, (cell or {}).get("bytes") or b""))
            if images[-1].shape != images[0].shape:
                sizes = " and ".join(str(image.shape) for image in (images[0], images[-1]))
                raise file_error("E045", str(path), f"pictures of {sizes}", "pictures of one size")
        labels += map(str, batch.column(names[0]).to_pylist()) if names else ()
    if not images:
        raise file_error("E005", str(path), "no row", "a picture in each row")
    decisions = [f"the pictures are in the column {column}"]
    decisions += [f"the label is the column {name}" for name in names]
    return np.stack(images), labels if names else None, decisions


def read_columns(path: Path, file: Any, store_dir: Path, label_column: str | None) -> Table:
    """Read a file with a column for each pixel by the rules for CSVs, which find the label.

    Raises:
        DataError: as `read_csv`.
    """
    from pyarrow.csv import CSVWriter

    with tempfile.NamedTemporaryFile(suffix=".csv") as csv:
        with CSVWriter(csv.name, file.schema_arrow) as writer:
            for batch in file.iter_batches(_BATCH_ROWS):
                writer.write_batch(batch)
        try:
            return read_csv(csv.name, store_dir, label_column=label_column)
        except DataError as error:
            problems = [replace(problem, path=str(path)) for problem in error.problems]
            raise DataError(problems, error.totals) from None


def _decode(path: Path, row: int, content: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_SIDE}")
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        found = f"row {row} holds no readable picture ({error})"
        raise file_error("E045", str(path), found, "a PNG or JPEG in each row") from None
    return pixels if np.ptp(pixels, axis=2).any() else pixels[..., 0]
