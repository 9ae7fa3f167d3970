"""Twelve images of three classes in files of every form."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

N = 12
LABELS = np.arange(N) % 3 + 4
PIXELS = np.random.default_rng(3).integers(0, 256, (N, 784), np.uint8)


def idx(array: np.ndarray, dtype: int = 8) -> bytes:
    head = bytes([0, 0, dtype, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def csv_text(pixels: np.ndarray = PIXELS, labels: Sequence[object] | None = LABELS) -> str:
    names = [f"pixel{i}" for i in range(1, 785)]
    rows = [names, *pixels.tolist()]
    if labels is not None:
        rows = [[first, *row] for first, row in zip(["label", *labels], rows, strict=True)]
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, gzipped if its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_pictures(folder: Path, pixels: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> None:
    """Write `folder/LABEL/ROW.png`."""
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        write(folder / str(label) / f"{row:03}.png", png(image.reshape(28, 28)))
