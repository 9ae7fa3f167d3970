"""Turn a PNG or JPEG picture of one object into a row of pixels like the training images.

The steps are those that made Fashion-MNIST from product photos (Xiao, Rasul and Vollgraf 2017,
arXiv:1708.07747, section 2): crop the background, scale the longer side, sharpen, centre, negate,
8-bit grey. Product photos have a white background; to handle others as well:

- The background is a quadratic surface in x and y, fitted to the border pixels without outliers,
  so uneven light counts as background.
- The object is where the slightly blurred picture differs from the background by more than 5 % of
  the full range. If less than half of the border is background, the whole picture is used.
- Grey levels are measured from the background, which becomes the background level of the training
  images. The object is negated if it is on the other side of that level than theirs.
- Pixels within 5 % of the background that are connected to the border of the 28x28 image become
  background. Faint parts inside the object are kept.
"""

from __future__ import annotations

import re
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.convention import TOLERANCE, Convention, measure_background
from fmnist_tf.data.compose import border as _border, centre, compose, scale as _scale, scale
from fmnist_tf.data.objects import find_object, fit_background
from fmnist_tf.errors import UsageError, printable

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; for a JPEG, after its decoder's own reduction."""
DARK, LIGHT = 64, 191
"""A background level up to `DARK` or from `LIGHT` is clear; otherwise nothing is cropped."""

_TOO_LARGE = f"at most {MAX_PIXELS:,} pixels are read, make it smaller"
_WORK_SIDE = 512  # longer sides are reduced before anything is measured
_LOOSE = 0.25 * 255  # grey levels from the border's median: the first estimate of the background
# ImageMagick's `-sharpen 1x1`: minus a Gaussian of radius and standard deviation 1, with twice its
# sum in the middle; normalized to a sum of 1.
_SHARPEN = -np.exp(-np.add.outer([1, 0, 1], [1, 0, 1]) / 2)
_SHARPEN[1, 1] = -2 * _SHARPEN.sum()
_SHARPEN /= _SHARPEN.sum()

# What Pillow's decoders raise on damaged bytes.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
    struct.error,
)  # fmt: skip
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_OTHER_PICTURES = {
    "a GIF image": rb"GIF8",
    "a TIFF image": rb"II\*\0|MM\0\*",
    "a WebP image": rb"RIFF....WEBP",
    "a BMP image": rb"BM....\0{4}",
    "a HEIC or AVIF image, or a video": rb"....ftyp",
}


class Picture(NamedTuple):
    """A picture as the network takes it.

    Attributes:
        pixels: (784,) uint8.
        notes: what was done to the picture, a phrase each.
        warnings: why the object may not be the one that was meant, a sentence each.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def is_picture(path: Path) -> bool:
    """Return whether the file starts as a PNG or a JPEG does, whatever its name.

    Raises:
        UsageError: it is not a readable regular file, is empty, or is a picture in another format.
    """
    try:
        if path.exists() and not path.is_file():
            raise _refused(path, "a directory" if path.is_dir() else "a pipe, socket or device")
        with path.open("rb") as file:
            head = file.read(12)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise _refused(path, getattr(error, "strerror", None) or str(error)) from error
    if not head:
        raise _refused(path, "an empty file (0 bytes)")
    for name, magic in _OTHER_PICTURES.items():
        if re.match(magic, head, re.DOTALL):
            raise _refused(path, name, "convert it to PNG")
    return head.startswith(_PICTURES)


def read_picture(path: Path, convention: Convention) -> Picture:
    """Read a picture and convert it to what the training images look like.

    Colour is converted to grey by ITU-R 601. Transparent parts take the colour of an opaque border,
    else white, or black behind a bright object. The EXIF orientation is applied. The first of
    several frames is read. A grey 28x28 picture is used unchanged, or negated if its background is
    at the other end of the grey scale.

    Args:
        path: a PNG or JPEG file.
        convention: of the training images.

    Raises:
        UsageError: missing, empty, damaged, larger than `MAX_PIXELS`, another format, or blank.
    """
    background, content_side = convention.background, convention.content_side
    if not is_picture(path):
        raise _refused(path, "neither a PNG nor a JPEG")
    grey, is_colour, decisions = _read_grey(path)
    converted: tuple[np.ndarray, str] | None = None
    doubts: tuple[str, ...] = ()
    found = None
    if np.ptp(grey) == 0:
        pass
    elif grey.shape == (IMAGE_SIZE, IMAGE_SIZE) and not is_colour:
        converted = _keep(grey, background)
    elif DARK < background < LIGHT:
        converted = _use_whole(grey, background), "the run's own images have no clear background"
    elif (found := find_object(grey, convention)) is not None:
        converted, doubts = _compose(found, convention), found.doubts
    elif fit_background(grey) is None:
        converted = _use_whole(grey, background), "there is no clear background at its border"
    if converted is None:
        raise UsageError(
            f"{path}: expected a picture of an object, found one where nothing stands out from the "
            "background"
        )
    image, decision = converted
    pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8).ravel()
    return Picture(pixels, (*decisions, decision), doubts)


def find_polarity_warning(pixels: np.ndarray, background: int) -> str | None:
    """Return a warning if images (N, 784) look negated beside the training images, else None.

    They do if their background is clear, and at the other end than the training `background`.
    """
    found = measure_background(pixels)
    if not _is_opposite(found, background):
        return None
    return (
        f"its background is {found} of 255, that of the training images {background}: negated? "
        "The images are used as they are"
    )


def _refused(path: Path, found: str, hint: str = "") -> UsageError:
    hint = f". hint: {hint}" if hint else ""
    return UsageError(f"{path}: expected a CSV, PNG or JPEG file, found: {found}{hint}")


def _read_grey(path: Path) -> tuple[np.ndarray, bool, list[str]]:
    """Return (H, W) float32 0..255 at most `_WORK_SIDE` long, whether it had colour, decisions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on sizes below our limit and on metadata
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                decisions = [f"{image.width}x{image.height} pixels"]
                image.draft("RGB", (_WORK_SIDE, _WORK_SIDE))  # a JPEG is decoded no larger
                if image.width * image.height > MAX_PIXELS:
                    raise _refused(path, decisions[0], _TOO_LARGE)
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    decisions.append(f"the first of {frames} frames")
                ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith("I"):
                    decisions.append("16-bit grey")
                    grey = np.asarray(image, np.float32) / 257
                    return _scale(grey, min(_WORK_SIDE, max(grey.shape))), False, decisions
                colour = _to_rgb(image, decisions)
    except Image.DecompressionBombError:
        raise _refused(path, "a picture of far too many pixels", _TOO_LARGE) from None
    except _DAMAGE as error:
        raise _refused(path, f"a damaged picture ({printable(str(error), 200)})") from error
    is_colour = bool(np.ptp(np.asarray(colour), axis=2).any())
    if is_colour:
        decisions.append("colour converted to grey")
    return np.asarray(colour.convert("L"), np.float32), is_colour, decisions


def _to_rgb(image: Image.Image, decisions: list[str]) -> Image.Image:
    """Return a picture at most `_WORK_SIDE` long without transparency."""
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((_WORK_SIDE, _WORK_SIDE), reducing_gap=3)
    if image.mode == "RGB":
        return image
    rgba = np.asarray(image)
    border, visible = rgba[_border(rgba.shape[:2])], rgba[rgba[..., 3] > 127]
    opaque = border[border[:, 3] == 255]
    if 2 * len(opaque) > len(border):
        red, green, blue = np.median(opaque[:, :3], axis=0).astype(int).tolist()
        fill_colour, name = (red, green, blue), "the border's colour"
    else:
        # White as in a shop, unless a white object would vanish on it.
        is_bright = len(visible) > 0 and np.median(visible[:, :3]) >= LIGHT
        fill_colour, name = ((0, 0, 0), "black") if is_bright else ((255, 255, 255), "white")
    decisions.append(f"transparent parts filled with {name}")
    fill = Image.new("RGBA", image.size, (*fill_colour, 255))
    return Image.alpha_composite(fill, image).convert("RGB")


def _keep(grey: np.ndarray, background: int) -> tuple[np.ndarray, str]:
    """Return a 28x28 picture, negated if its background is at the other end."""
    level = float(np.median(grey[_border(grey.shape)]))
    if _is_opposite(level, background):
        return 255 - grey, f"background {level:.0f} of 255 (the run's: {background}), negated"
    return grey, "used unchanged"


def _is_opposite(level: float, background: int) -> bool:
    return (level >= LIGHT and background <= DARK) or (level <= DARK and background >= LIGHT)



def _use_whole(grey, background):
    return centre(scale(grey, IMAGE_SIZE), background)


def _compose(found, convention):
    image = compose(found.contrast, convention) / 255
    background = convention.background
    is_light = background >= LIGHT
    image = background * (1 - image) if is_light else background + (255 - background) * image
    return image, (
        f"cropped to {found.width:.0%} of its width and {found.height:.0%} of its height; "
        f"{'bright' if found.is_brighter else 'dark'} object on a background of {found.background:.0f} of 255 "
        f"(the run's: {background}), " + ("not negated" if found.is_brighter != is_light else "negated")
    )
