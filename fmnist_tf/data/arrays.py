"""Arrays -> images of 28x28 grey pixels; arrays in IDX and NPY files (members of NPZ files too).

Formats: http://yann.lecun.com/exdb/mnist/, "the IDX file format", and `numpy.lib.format`.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.files import read_bytes
from fmnist_tf.data.images import read_blocks
from fmnist_tf.errors import file_error
from fmnist_tf.system.files import replacing

MAX_SIDE = 1024
_SIDES = (8, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)
SHAPES = {side**2: (side, 1) for side in _SIDES} | {3 * s * s: (s, 3) for s in (28, 32, 48, 64)}
"""Side and channels of an image by its number of values; others are more likely a damaged file."""

Parsed = tuple[NDArray[np.uint8], list[str] | None, list[str]]
"""Pixels (N, 784), N labels or None, and what was decided."""


def to_28(pixels: NDArray[np.uint8], side: int, channels: int = 1) -> NDArray[np.uint8]:
    """Return square images (N, side * side * channels) as grey ones, (N, 784) uint8.

    Colour, the channels of a pixel together, becomes grey by ITU-R 601; other sides are resized
    with Pillow's antialiased bicubic filter.
    """
    if channels == 3:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        colour = pixels.reshape(len(pixels), side * side, 3)
        pixels = np.rint(colour @ weights).astype(np.uint8)
    if side == IMAGE_SIZE:
        return pixels
    from PIL import Image

    size, bicubic = (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    images = map(Image.fromarray, pixels.reshape(-1, side, side))
    resized = [image.resize(size, bicubic) for image in images]
    return np.array(resized, np.uint8).reshape(-1, N_PIXELS)


def describe_resize(side: int, channels: int) -> str:
    """Return a sentence on what `to_28` does."""
    return f"the images are {side}x{side} {'RGB' if channels == 3 else 'grey'}: made 28x28 grey"


def read_array(path: Path) -> NDArray[Any]:
    """Return the array of an IDX or NPY file; E045, another format, dtype or length."""
    content = read_bytes(path)
    stream = io.BytesIO(content)
    try:
        if content[:3] == b"\0\0\x08":
            n_dims = content[3] if len(content) > 3 else 0
            shape = np.frombuffer(content, ">u4", n_dims, 4).tolist()
            return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape)
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ValueError("more data than its header says")
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError) as error:
        expected = "a complete IDX file of bytes (00 00 08 ..), or an NPY file of numbers or texts"
        raise file_error("E045", str(path), str(error), expected) from None
    return array


def read_images(path: Path) -> Parsed:
    """Return the images of an IDX or NPY file, without labels; raises as `as_pixels`."""
    pixels, notes = as_pixels(str(path), read_array(path))
    return pixels, None, notes


def as_pixels(name: str, array: NDArray[Any]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return an array of images as (N, 784) uint8, and notes; `name` is for messages.

    Raises:
        DataError: E005, no image; E034, not whole numbers of 0..255; E045, no square images.
    """
    if array.ndim == 0 or array.size == 0:
        raise file_error("E005", name, f"an array of shape {array.shape}", "images")
    is_number = array.dtype.kind in "biuf"
    if not is_number or not (array.min() >= 0 and array.max() <= 255 and (array % 1 == 0).all()):
        found = f"{array.dtype} values that are not all whole numbers of 0..255"
        hint = "scaled to 0..1? save numpy.rint(x * 255).astype('uint8')"
        raise file_error("E034", name, found, "grey levels", hint)
    return to_rows(name, array.astype(np.uint8, copy=False))


def save_labelled(
    folder: Path, part: str, images: ArrayLike, labels: ArrayLike
) -> tuple[Path, Path]:
    """Write images and labels as NPY files in FOLDER/DIGEST, and return their paths.

    Files of these arrays that are there already are kept.

    Raises:
        DataError: E045, not a label for each image.
    """
    arrays = np.asarray(images), np.asarray(labels)
    if arrays[1].dtype == object:
        arrays = arrays[0], arrays[1].astype(str)
    if arrays[1].shape != arrays[0].shape[:1]:
        found = f"images {arrays[0].shape} and labels {arrays[1].shape}"
        raise file_error("E045", f"{part} arrays", found, "(N, 28, 28) and (N,)")
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    place = folder / digest.hexdigest()[:16]
    paths = place / f"arrays-{part}-images.npy", place / f"arrays-{part}-labels.npy"
    if not place.is_dir():
        with replacing(place) as made:
            made.mkdir(parents=True)
            for path, array in zip(paths, arrays, strict=True):
                np.save(made / path.name, array, allow_pickle=False)
    return paths


def to_rows(name: str, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return images (N, S, S), (N, S, S, C), (N, C, S, S) or (N, S * S * C) as (N, 784), and notes.

    E045, another shape.
    """
    side = width = 0
    channels = 1
    match images.shape[1:]:
        case (1 | 3, side, width):
            images, channels = np.moveaxis(images, 1, -1), images.shape[1]
        case (side, width, channels):
            pass
        case (side, width):
            pass
        case (n_values,):
            side, channels = SHAPES.get(n_values, (0, 0))
            width = side
    if not 0 < side == width <= MAX_SIDE or channels not in (1, 3):
        expected = f"square images, (N, 28, 28), of at most {MAX_SIDE} pixels"
        raise file_error("E045", name, f"an array of shape {images.shape}", expected)
    rows = images.reshape(len(images), -1)
    if (side, channels) == (IMAGE_SIZE, 1):
        return rows, []
    blocks = [to_28(block, side, channels) for block in read_blocks(rows)]
    return np.concatenate(blocks), [describe_resize(side, channels)]
