"""A picture of one object -> a row of pixels like the training images.

A file is decoded to grey, `objects` finds the object, `compose` puts it into 28x28 pixels, and its
grey levels become those of the training images.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.compose import Grey, border, centre, compose, scale
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.files import find_kind, read_bytes
from fmnist_tf.data.objects import Found, find_object, fit_background
from fmnist_tf.errors import UsageError, printable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""Names of Pillow's decoders that are used; `kinds` knows the files by their first bytes."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; for a JPEG, after its decoder's own reduction."""
DARK, LIGHT = 64, 191
"""A background level up to `DARK` or from `LIGHT` is clear; otherwise nothing is cropped."""

_EXPECTED = "a table of images, or a picture (PNG, JPEG, WebP, GIF, TIFF, BMP)"
_TOO_LARGE = f"at most {MAX_PIXELS:,} pixels are read, make it smaller"
_WORK_SIDE = 512  # longer sides are reduced before anything is measured

# What Pillow's decoders raise on damaged bytes.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
    AttributeError, MemoryError, RuntimeError, struct.error,
)  # fmt: skip


class Picture(NamedTuple):
    """A picture as the network takes it."""

    pixels: NDArray[np.uint8]
    """(784,)"""
    notes: tuple[str, ...]
    """What was done to the picture, a phrase each."""
    warnings: tuple[str, ...]
    """Why the object may not be the one that was meant, a sentence each."""


def read_picture(path: Path, convention: Convention) -> Picture:
    """Read a picture and convert it to what the training images look like.

    Colour is converted to grey by ITU-R 601. Transparent parts take the colour of an opaque border,
    else white, or black behind a bright object. The EXIF orientation is applied. The first of
    several frames is read. A grey 28x28 picture is used unchanged, or negated if its background is
    at the other end of the grey scale.

    Raises:
        UsageError: missing, empty, damaged, larger than `MAX_PIXELS`, another format, or blank.
    """
    if (kind := find_kind(path)).form != "picture":
        raise kind.refuse(path, _EXPECTED)
    grey, is_colour, notes = _read_grey(path)
    doubts: tuple[str, ...] = ()
    whole = "used whole, neither cropped nor negated"
    if grey.shape == (IMAGE_SIZE, IMAGE_SIZE) and not is_colour and np.ptp(grey) > 0:
        image, note = _keep(grey, convention.background)
    elif DARK < convention.background < LIGHT and np.ptp(grey) > 0:
        image = centre(scale(grey, IMAGE_SIZE), convention.background)
        note = f"{whole}: the run's own images have no clear background"
    elif (found := find_object(grey, convention)) is not None:
        image, note = _to_levels(found, convention)
        doubts = found.doubts
    elif fit_background(grey) is None:
        image, note = centre(scale(grey, IMAGE_SIZE), convention.background), whole
        doubts = ("there is no clear background at its border",)
    else:
        found_none = "found one where nothing stands out from the background"
        raise UsageError(f"{path}: expected a picture of an object, {found_none}")
    pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8).ravel()
    warning = f"the object may not be the one that was meant: {'; '.join(doubts)}. "
    warning += "--save-crops DIR of predict writes what the network saw"
    return Picture(pixels, (*notes, note), (warning,) if doubts else ())


def _refused(path: Path, found: str, hint: str = "") -> UsageError:
    hint = f". hint: {hint}" if hint else ""
    return UsageError(f"{path}: expected {_EXPECTED}, found: {found}{hint}")


def _read_grey(path: Path) -> tuple[Grey, bool, list[str]]:
    """Return (H, W) float32 0..255 at most `_WORK_SIDE` long, whether it had colour, notes."""
    content = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on sizes below our limit and on metadata
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                notes = [f"{image.width}x{image.height} pixels"]
                image.draft("RGB", (_WORK_SIDE, _WORK_SIDE))  # a JPEG is decoded no larger
                if image.width * image.height > MAX_PIXELS:
                    raise _refused(path, notes[0], _TOO_LARGE)
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    notes.append(f"the first of {frames} frames")
                ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith("I"):
                    notes.append("16-bit grey")
                    grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
                    return scale(grey, min(_WORK_SIDE, max(grey.shape))), False, notes
                colour = _to_rgb(image, notes)
    except Image.DecompressionBombError:
        raise _refused(path, "a picture of far too many pixels", _TOO_LARGE) from None
    except _DAMAGE as error:
        raise _refused(path, f"a damaged picture ({printable(str(error), 200)})") from error
    is_colour = bool(np.ptp(np.asarray(colour), axis=2).any())
    if is_colour:
        notes.append("colour converted to grey")
    return np.asarray(colour.convert("L"), np.float32), is_colour, notes


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return a picture at most `_WORK_SIDE` long without transparency."""
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((_WORK_SIDE, _WORK_SIDE), reducing_gap=3)
    if image.mode == "RGB":
        return image
    rgba = np.asarray(image)
    at_border, visible = rgba[border(rgba.shape[:2])], rgba[rgba[..., 3] > 127]
    opaque = at_border[at_border[:, 3] == 255]
    if 2 * len(opaque) > len(at_border):
        red, green, blue = np.median(opaque[:, :3], axis=0).astype(int).tolist()
        fill_colour, name = (red, green, blue), "the border's colour"
    else:
        # White as in a shop, unless a white object would vanish on it.
        is_bright = len(visible) > 0 and np.median(visible[:, :3]) >= LIGHT
        fill_colour, name = ((0, 0, 0), "black") if is_bright else ((255, 255, 255), "white")
    if rgba[..., 3].min() < 255:
        notes.append(f"transparent parts filled with {name}")
    fill = Image.new("RGBA", image.size, (*fill_colour, 255))
    return Image.alpha_composite(fill, image).convert("RGB")


def _keep(grey: Grey, background: int) -> tuple[Grey, str]:
    """Return a 28x28 picture, negated if its background is at the other end."""
    level = float(np.median(grey[border(grey.shape)]))
    if (level >= LIGHT and background <= DARK) or (level <= DARK and background >= LIGHT):
        return 255 - grey, f"background {level:.0f} of 255 (the run's: {background}), negated"
    return grey, "used unchanged"


def _to_levels(found: Found, convention: Convention) -> tuple[Grey, str]:
    """Return the object in the grey levels of the training images, (28, 28)."""
    image = compose(found.contrast, convention, found.corner) / 255
    background = convention.background
    is_light = background >= LIGHT
    image = background * (1 - image) if is_light else background + (255 - background) * image
    inside = "in a rectangle (paper, a frame or axes), " if found.in_rectangle else ""
    return image, (
        f"{inside}cropped to {found.width:.0%} of its width and {found.height:.0%} of its height; "
        f"{'bright' if found.is_brighter else 'dark'} object on a background of "
        f"{found.background:.0f} of 255 (the run's: {background}), "
        + ("not negated" if found.is_brighter != is_light else "negated")
    )
