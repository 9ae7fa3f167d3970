"""Folders of pictures, one for each class -> pixels and labels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.archives import find_kind
from fmnist_tf.data.convention import Convention
from fmnist_tf.errors import UsageError, file_error

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")

FASHION = Convention(background=0, content_side=IMAGE_SIZE)
"""Bright objects that fill a black image."""


def find_class_folders(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the folders that hold a folder for each class of train and of test images, if any.

    They are `folder/train` and the first of `folder/test`, `folder/val` and their like; or the
    folder itself, without test images.
    """
    inside = {path.name.lower(): path for path in _list_folders(folder)}
    trains = [inside[name] for name in TRAIN_NAMES if name in inside]
    if trains and _list_folders(trains[0]):  # and it is no class called "train"
        return trains[0], next((inside[name] for name in TEST_NAMES if name in inside), None)
    return (folder, None) if inside else None


def list_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Return the files in the folders of the classes, and the class of each, in order of names."""
    return [
        (path, group.name)
        for group in _list_folders(folder)
        for path in sorted(group.glob("[!.]*"))
        if path.name != "Thumbs.db"
    ]


def hash_pictures(pictures: list[tuple[Path, str]]) -> str:
    """Return a SHA-256 of the names and the bytes of pictures.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path, label in pictures:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{label}/{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def read_pictures(
    folder: Path, pictures: list[tuple[Path, str]], convention: Convention
) -> tuple[NDArray[np.uint8], list[str]]:
    """Return pictures as pixels (N, 784), and what was done to them.

    Grey pictures of 28x28 pixels are used unchanged; the others are converted.

    Args:
        folder: for messages.
        pictures: as `list_pictures` returns them.
        convention: of the images that pictures are converted to.

    Raises:
        DataError: E005, no picture; E045, files that cannot be read as pictures, the first five of
            them named.
    """
    from fmnist_tf.data.photos import read_picture  # SciPy

    rows, errors, warnings, n_converted = [], [], [], 0
    for path, _ in pictures:
        try:
            pixels = read_grey(path)
            if pixels is None:
                n_converted += 1
                pixels, _, found = read_picture(path, convention)
                warnings += [f"{path}: {warning}" for warning in found[:1]]
            rows.append(pixels)
        except UsageError as error:
            errors.append(error)
    if errors:
        lines = [str(error).partition("\n")[0] for error in errors[:5]]
        bad = f"{len(errors)} of {len(pictures)} files are no readable picture: "
        hint = "delete them or move them out of the folders of the classes"
        bad += "; ".join(lines)
        raise file_error("E045", str(folder), bad, "PNG or JPEG files", hint)
    if not rows:
        hint = "FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png"
        expected = "a folder of pictures for each class"
        raise file_error("E005", str(folder), "no picture", expected, hint)
    same = len(rows) - n_converted
    notes = [f"{same:,} grey pictures of 28x28 pixels are used unchanged"] if same else []
    if n_converted:
        notes.append(f"{n_converted:,} other pictures were converted like those given to predict")
    if warnings:
        notes.append(f"{len(warnings):,} of them may be read wrongly, such as {warnings[0]}")
    return np.stack(rows), notes


def read_grey(path: Path) -> NDArray[np.uint8] | None:
    """Return the pixels (784,) of a grey picture of 28x28; None if it is another file."""
    if find_kind(path).form != "picture":
        return None
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.size != (IMAGE_SIZE, IMAGE_SIZE) or image.has_transparency_data:
                return None
            if image.mode.startswith("I"):  # 16 bits
                return np.rint(np.asarray(image) / 257).astype(np.uint8).ravel()
            colour = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None  # `read_picture` says what is wrong
    return None if np.ptp(colour, axis=2).any() else colour[..., 0].ravel()


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())
