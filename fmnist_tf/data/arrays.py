"""Arrays in files -> pixels and labels: IDX, NPY, and NPZ, whose members are NPY files.

Formats: http://yann.lecun.com/exdb/mnist/, "the IDX file format", and `numpy.lib.format`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.archives import Readable, open_file
from fmnist_tf.data.resize import SHAPES, to_28
from fmnist_tf.errors import DataError, file_error

NPY = b"\x93NUMPY"
MAX_SIDE = 1024
_PART = 4096  # images that are resized at a time
_CODE = "E045"


def read_array(path: Path) -> NDArray[Any]:
    """Return the array of an IDX or NPY file, perhaps gzipped or in a zip archive.

    Raises:
        DataError: E008, damaged; E045, another format, dtype or length.
    """
    with open_file(path) as (stream, max_bytes):
        magic = stream.read(4)
        if magic == NPY[:4]:
            shape, order, dtype = _read_npy_header(path, magic + stream.read(2), stream)
        elif magic[:3] == b"\0\0\x08" and len(magic) == 4:
            dims = stream.read(4 * magic[3])
            shape = tuple(np.frombuffer(dims[: len(dims) // 4 * 4], ">u4").tolist())
            order, dtype = "C", np.dtype(np.uint8)
        else:
            found = f"it begins with {magic.hex(' ')}"
            raise _error(path, found, "an IDX file of bytes (00 00 08 ..) or an NPY file")
        n_bytes = math.prod(shape) * dtype.itemsize
        content = stream.read(n_bytes + 1) if n_bytes <= max_bytes else b""
        if len(content) != n_bytes:
            found = "more" if len(content) > n_bytes else "less"
            expected = f"{n_bytes} bytes of data, as its header says: {shape} {dtype}"
            raise _error(path, f"{found} data", expected, "fetch the file again")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def read_pixels(path: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the images of a file of arrays, (N, 784), and what was done to them.

    Raises:
        DataError: as `read_array`; E005, no image; E034, not whole numbers of 0..255; E045, no
            images.
    """
    array = read_array(path)
    if not len(array.shape) or not array.size:
        raise file_error("E005", str(path), f"an array of shape {array.shape}", "images")
    if array.dtype != np.uint8:
        whole = array.astype(np.uint8) if array.dtype.kind in "biuf" and _is_level(array) else None
        if whole is None or (whole != array).any():
            raise file_error(
                "E034",
                str(path),
                f"{array.dtype} values that are not all whole numbers of 0..255",
                "grey levels",
                "scaled to 0..1? save numpy.rint(x * 255).astype('uint8')",
            )
        array = whole
    return to_rows(path, array)


def to_rows(path: Path, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return images (N, S, S), (N, S, S, C), (N, C, S, S) or (N, S * S) as (N, 784).

    Also returns what was done to them.

    Raises:
        DataError: E045, another shape.
    """
    n, *shape = images.shape
    if len(shape) == 3 and shape[0] in (1, 3):
        images = np.moveaxis(images, 1, -1)
        shape = [*shape[1:], shape[0]]
    if len(shape) == 1:
        side, channels = SHAPES.get(shape[0], (0, 0))
    else:
        side, channels = shape[0] if shape else 0, shape[2] if len(shape) == 3 else 1
        if shape[:2] != [side, side] or len(shape) > 3:
            side = 0
    if not 0 < side <= MAX_SIDE or channels not in (1, 3):
        expected = f"square images, (N, 28, 28), of at most {MAX_SIDE} pixels"
        raise _error(path, f"an array of shape {images.shape}", expected)
    flat = images.reshape(n, side * side * channels)
    if (side, channels) == (IMAGE_SIZE, 1):
        return flat, []
    parts = [to_28(flat[k : k + _PART], side, channels) for k in range(0, n, _PART)]
    colour = " in colour" if channels == 3 else ""
    return np.concatenate(parts), [f"images of {side}x{side}{colour} became grey ones of 28x28"]


def read_label_array(path: Path) -> list[str]:
    """Return the labels of an IDX or NPY file as texts.

    Raises:
        DataError: as `read_array`; E045, neither whole numbers nor texts, or several columns.
    """
    array = read_array(path)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f" and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        found = f"an array {array.shape} of {array.dtype}"
        raise _error(path, found, "labels, (N,) whole numbers or texts")
    return array.astype(str).tolist()


def _read_npy_header(
    path: Path, magic: bytes, stream: Readable
) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    major, minor = (*stream.read(2), 0, 0)[:2]
    try:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[major, minor]
        shape, is_fortran, dtype = read(stream)
    except (KeyError, ValueError, EOFError) as error:
        raise _error(path, f"a damaged header ({error})", "an NPY file") from None
    if dtype.hasobject or magic != NPY:
        raise _error(path, "Python objects, which can run any code", "an array of numbers")
    return shape, "F" if is_fortran else "C", dtype


def _is_level(array: NDArray[Any]) -> bool:
    return bool(array.min() >= 0 and array.max() <= 255)


def _error(path: Path, found: str, expected: str, hint: str = "") -> DataError:
    return file_error(_CODE, str(path), found, expected, hint)
