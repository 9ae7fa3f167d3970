"""Folders of pictures, one for each class -> pixels and labels."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.arrays import Parsed
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.files import read_bytes
from fmnist_tf.errors import UsageError, file_error


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones left out."""
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


def hash_pictures(folder: Path) -> str:
    """Return a SHA-256 of the classes, names and bytes of the pictures in a folder."""
    digest = hashlib.sha256()
    for path in _list_pictures(folder):
        content = path.read_bytes() if path.is_file() else b""
        name = os.fsencode(f"{path.parent.name}/{path.name}\0{len(content)}\0")
        digest.update(name + content)
    return digest.hexdigest()


def read_pictures(folder: Path, convention: Convention) -> Parsed:
    """Return the pictures in a folder of a folder for each class; E005, none; E045, no picture.

    Grey pictures of 28x28 pixels are used unchanged; the others are converted to the convention.
    """
    from fmnist_tf.data.photos import read_picture  # SciPy

    paths = _list_pictures(folder)
    rows, errors, warnings, n_converted = [], [], [], 0
    for path in paths:
        try:
            content = io.BytesIO(read_bytes(path))
            try:
                pixels = decode_picture(content, IMAGE_SIZE).reshape(IMAGE_SIZE**2)
            except ValueError:  # a picture of another kind, or `read_picture` says what is wrong
                pixels, _, doubts = read_picture(path, convention)
                n_converted += 1
                warnings += [f"{path}: {doubt}" for doubt in doubts[:1]]
            rows.append(pixels)
        except UsageError as error:
            errors.append(str(error).partition("\n")[0])
    if errors:
        bad = f"{len(errors)} of {len(paths)} files are no picture: {'; '.join(errors[:5])}"
        hint = "delete them or move them out of the folders of the classes"
        raise file_error("E045", str(folder), bad, "pictures", hint)
    if not rows:
        hint = "FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png"
        expected = "a folder of pictures for each class"
        raise file_error("E005", str(folder), "no picture", expected, hint)
    labels = [path.parent.name for path in paths]
    notes = [f"{len(set(labels))} folders of pictures, one for each class"]
    if n_same := len(rows) - n_converted:
        notes.append(f"{n_same:,} grey pictures of 28x28 pixels are used unchanged")
    if n_converted:
        notes.append(f"{n_converted:,} other pictures were converted like those given to predict")
    if warnings:
        notes.append(f"{len(warnings):,} of them may be read wrongly, such as {warnings[0]}")
    return np.stack(rows), labels, notes


def decode_picture(file: io.BytesIO, max_side: int) -> NDArray[np.uint8]:
    """Return a PNG or JPEG picture, (H, W), or (H, W, 3) if it has colour.

    ValueError: it is not one, is damaged or larger, or has transparent parts.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if max(image.size) > max_side:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {max_side}")
            if image.mode.startswith("I"):  # 16 bits
                return np.rint(np.asarray(image) / 257).astype(np.uint8)
            rgba = np.asarray(image.convert("RGBA"))
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise ValueError(str(error)) from error
    if (rgba[..., 3] < 255).any():
        raise ValueError("it has transparent parts")
    return rgba[..., :3] if np.ptp(rgba[..., :3], axis=2).any() else rgba[..., 0]


def _list_pictures(folder: Path) -> list[Path]:
    """Return the files in the folders of the classes, in order of names."""
    return [
        path
        for group in list_folders(folder)
        for path in sorted(group.glob("[!.]*"))
        if path.name != "Thumbs.db"
    ]
