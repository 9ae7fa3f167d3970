"""A picture of one thing, PNG or JPEG -> the (784,) uint8 of a row of the training data.

In: a path, and how the training images look (background level, side of the content). Out: a
`Picture`, with a sentence for each thing decided, or `UsageError`. This module must not know
models, classes, or who shows the sentences.

The steps are those that made Fashion-MNIST of shop pictures (H. Xiao, K. Rasul, R. Vollgraf, 2017,
arXiv:1708.07747, section 2): trim what is as the ground, scale the longest edge, sharpen, centre,
negate, 8-bit grey. Shop pictures are white around the thing; so that others do as well,

- the ground is a surface of degree 2 in x and y, fitted to the border without what stands out
  there: light that falls off to one side or to the corners is ground;
- the thing is where the slightly smoothed picture is further than 5 % of the full range from the
  ground; where less than half of the border is ground, the picture is fitted whole;
- grey levels are measured from the ground, which lands on the training images' background whatever
  its own level; the thing is negated where it lies on the other side of the ground than there;
- what is left within 5 % of the background and reaches the border of the 28x28 image is
  background. Faint parts inside the thing stay.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.data.summary import measure_background
from fmnist_tf.errors import UsageError, printable

if TYPE_CHECKING:
    from PIL import Image

SIDE = 28
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; of a JPEG, what is left after its decoder's own reduction."""
DARK, LIGHT = 64, 191
"""A background up to the one or from the other is clear; between, nothing is trimmed or negated."""
TOLERANCE = 0.05 * 255
"""Grey levels within which a pixel is as the ground; the paper's 5 %."""

_TOO_LARGE = f"at most {MAX_PIXELS:,} pixels are read, make it smaller"
_WORK_SIDE = 512  # longer sides are reduced before anything is measured
_ENOUGH_IMAGES = 10_000  # for the polarity of a file
_LOOSE = 0.25 * 255  # grey levels from the border's median; a first guess at what is ground there
# ImageMagick's `-sharpen 1x1`: minus a Gaussian of radius and standard deviation 1, plus twice its
# sum in the middle; sums to 1.
_GAUSSIAN = np.exp(-np.add.outer([1, 0, 1], [1, 0, 1]) / 2)
_MIDDLE = np.zeros((3, 3))
_MIDDLE[1, 1] = 2 * _GAUSSIAN.sum() + 1
_SHARPEN = (_MIDDLE - _GAUSSIAN) / (_MIDDLE - _GAUSSIAN).sum()

# What Pillow's decoders raise on damaged bytes.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
)
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_OTHER_PICTURES = {
    "a GIF image": rb"GIF8",
    "a TIFF image": rb"II\*\0|MM\0\*",
    "a WebP image": rb"RIFF....WEBP",
    "a BMP image": rb"BM....\0{4}",
    "a HEIC or AVIF image, or a video": rb"....ftyp",
}


@dataclass(frozen=True)
class Picture:
    """One picture, as the training images are.

    Attributes:
        pixels: (784,) uint8, row by row.
        decisions: what was done to it, a sentence each.
    """

    pixels: np.ndarray
    decisions: tuple[str, ...]


def is_picture(path: Path) -> bool:
    """Return whether the file's first bytes are a PNG's or a JPEG's, whatever its name.

    Raises:
        UsageError: it is no readable regular file, empty, or a picture in another format.
    """
    try:
        kind = os.stat(path)
        if not stat.S_ISREG(kind.st_mode):
            raise _refused(path, "a directory" if path.is_dir() else "a pipe, socket or device")
        with open(path, "rb") as file:
            head = file.read(12)
    except (OSError, ValueError) as error:
        raise _refused(path, getattr(error, "strerror", None) or str(error)) from error
    if not head:
        raise _refused(path, "an empty file (0 bytes)")
    for name, magic in _OTHER_PICTURES.items():
        if re.match(magic, head, re.DOTALL):
            raise _refused(path, name, "convert it to PNG")
    return head.startswith(_PICTURES)


def read_picture(path: Path, *, background: int, content_side: int) -> Picture:
    """Read a picture and make it like the training images.

    Colour becomes grey by ITU-R 601; what is transparent takes the colour of an opaque border,
    else white, behind a bright thing black; the EXIF orientation is applied; of several frames the
    first is read. A picture that is grey and 28x28 already is taken as it is, negated where its
    background is at the other end.

    Args:
        path: a PNG or JPEG file.
        background: usual grey level, 0..255, at the border of the training images.
        content_side: usual longer side, 1..28, of what they show.

    Raises:
        UsageError: missing, empty, damaged, larger than `MAX_PIXELS`, another format, or blank.
    """
    if not is_picture(path):
        raise _refused(path, "neither a PNG nor a JPEG")
    grey, is_colour, decisions = _read_grey(path)
    if grey.shape == (SIDE, SIDE) and not is_colour:
        fitted: tuple[np.ndarray, list[str]] | None = _keep(grey, background)
    elif DARK < background < LIGHT:
        fitted = _fit_whole(grey, background, "the run's own images have no clear background")
    elif (ground := _fit_ground(grey)) is None:
        fitted = _fit_whole(grey, background, "there is no clear background at its border")
    else:
        fitted = _fit_thing(grey, *ground, background, content_side)
    if fitted is None or np.ptp(grey) == 0:
        raise UsageError(
            f"{printable(str(path), 200)}: expected a picture of something, found one where "
            "nothing stands out from the background"
        )
    image, done = fitted
    pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    return Picture(pixels.ravel(), (*decisions, *done))


def find_polarity(pixels: np.ndarray, background: int) -> str | None:
    """Return a sentence if images (N, 784) look negated beside the training images.

    They do if their background is clear, and at the other end than `background` of the training.
    """
    found = measure_background(pixels[:: max(1, len(pixels) // _ENOUGH_IMAGES)])
    if not _is_opposite(found, background):
        return None
    return (
        f"its background is {found} of 255, that of the training images {background}: negated? "
        "The images are used as they are"
    )


def _refused(path: Path, found: str, hint: str = "") -> UsageError:
    hint = f". hint: {hint}" if hint else ""
    return UsageError(
        f"{printable(str(path), 200)}: expected a CSV, PNG or JPEG file, found: "
        f"{printable(found, 200)}{hint}"
    )


def _read_grey(path: Path) -> tuple[np.ndarray, bool, list[str]]:
    """Return (H, W) grey levels 0..255 at most `_WORK_SIDE` long, if it had colour, decisions."""
    from PIL import Image, ImageOps

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
                grey, is_colour = _to_grey(image, decisions)
    except Image.DecompressionBombError:
        raise _refused(path, "a picture of far too many pixels", _TOO_LARGE) from None
    except _DAMAGE as error:
        raise _refused(path, f"a damaged picture ({error})") from error
    return grey, is_colour, decisions


def _to_grey(image: Image.Image, decisions: list[str]) -> tuple[np.ndarray, bool]:
    """Return (H, W) grey levels 0..255, at most `_WORK_SIDE` long, and whether there was colour."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits
        decisions.append("16-bit grey")
        grey = np.asarray(image, np.float32) / 257
        return _scale(grey, min(_WORK_SIDE, max(grey.shape))), False
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((_WORK_SIDE, _WORK_SIDE), reducing_gap=3)
    if image.mode == "RGBA":
        colour, name = _choose_ground(np.asarray(image))
        image = Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
        image = image.convert("RGB")
        decisions.append(f"transparent parts made {name}")
    channels = np.asarray(image)
    is_colour = not (channels == channels[..., :1]).all()
    if is_colour:
        decisions.append("colour made grey")
    return np.asarray(image.convert("L"), np.float32), is_colour


def _choose_ground(rgba: np.ndarray) -> tuple[tuple[int, int, int, int], str]:
    """Return the colour to put behind a picture (H, W, 4) with transparent parts, and its name."""
    border, inner = _border(rgba[None])[0], rgba[rgba[..., 3] > 127]
    opaque = border[border[:, 3] == 255]
    if 2 * len(opaque) > len(border):
        red, green, blue = (int(level) for level in np.median(opaque[:, :3], axis=0))
        return (red, green, blue, 255), "as the border"
    # White as in a shop, unless a white thing would vanish on it.
    if len(inner) and np.median(inner[:, :3]) >= LIGHT:
        return (0, 0, 0, 255), "black"
    return (255, 255, 255, 255), "white"


def _keep(grey: np.ndarray, background: int) -> tuple[np.ndarray, list[str]]:
    """Return a 28x28 picture, negated where its background is at the other end."""
    border = float(np.median(_border(grey[None])))
    if _is_opposite(border, background):
        return 255 - grey, [f"on {border:.0f} of 255 (the run: on {background}), negated"]
    return grey, ["taken as it is"]


def _fit_whole(grey: np.ndarray, background: int, why: str) -> tuple[np.ndarray, list[str]]:
    """Return the whole picture, 28x28."""
    image = _centre(_scale(grey, SIDE), background)
    return image, [f"fitted whole, neither trimmed nor negated: {why}"]


def _is_opposite(border: float, background: int) -> bool:
    return (border >= LIGHT and background <= DARK) or (border <= DARK and background >= LIGHT)


def _border(images: np.ndarray) -> np.ndarray:
    """Return the border pixels (N, B, ...) of images (N, H, W, ...)."""
    edges = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return np.concatenate(edges, axis=1)


def _fit_ground(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the smoothed picture and the ground's level everywhere, (H, W) each.

    None where less than half of the border is ground.
    """
    height, width = grey.shape
    smooth = _smooth(grey)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    border, at_border = _border(smooth[None])[0], _border(terms[None])[0]
    is_ground = np.abs(border - np.median(border)) <= _LOOSE
    for _ in range(3):  # what the first guess took for ground goes, what it cut off comes back
        surface = np.linalg.lstsq(at_border[is_ground], border[is_ground])[0]
        is_ground = np.abs(border - at_border @ surface) <= TOLERANCE
    if 2 * is_ground.sum() <= len(border):
        return None
    return smooth, np.clip(terms @ surface, 0, 255)


def _fit_thing(
    grey: np.ndarray,
    smooth: np.ndarray,
    ground: np.ndarray,
    background: int,
    content_side: int,
) -> tuple[np.ndarray, list[str]] | None:
    """Return the thing alone, 28x28 on the run's background; None where nothing stands out."""
    # The smoothed picture has little noise and the picture itself sharp edges.
    stands_out = np.minimum(np.abs(smooth - ground), np.abs(grey - ground)) > TOLERANCE
    if not stands_out.any():
        return None
    rows, columns = (np.flatnonzero(stands_out.any(axis=axis)) for axis in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    box = np.s_[rows[0] : rows[0] + height, columns[0] : columns[0] + width]
    is_brighter = float((smooth - ground)[stands_out].sum()) > 0
    # Contrast: 0 on the ground, 255 at the end of the grey scale that the thing tends to. Next to
    # that end there is little room, and what there is would be mostly noise.
    room = np.maximum(255 - ground if is_brighter else ground, 128)
    contrast = (grey - ground if is_brighter else ground - grey) * 255 / room
    thing = _sharpen(_scale(np.clip(contrast[box], 0, 255), content_side))
    image = _clear(_centre(thing, 0)) / 255
    is_light = background >= LIGHT
    image = background * (1 - image) if is_light else background + (255 - background) * image
    level = float(np.median(_border(ground[None])))
    return image, [
        f"trimmed to {width / grey.shape[1]:.0%} of its width, {height / grey.shape[0]:.0%} of its "
        "height",
        f"{'bright' if is_brighter else 'dark'} on {level:.0f} of 255 (the run: on {background}), "
        + ("not negated" if is_brighter != is_light else "negated"),
    ]


def _smooth(grey: np.ndarray) -> np.ndarray:
    """Return the picture blurred by a Gaussian of 1/200 of its longer side."""
    from PIL import Image, ImageFilter

    radius = max(grey.shape) / 200
    image = Image.fromarray(np.rint(grey).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _scale(grey: np.ndarray, longest: int) -> np.ndarray:
    """Return the picture with its longer side made `longest`; the filter widens as it shrinks."""
    from PIL import Image

    height, width = grey.shape
    factor = longest / max(height, width)
    if factor == 1:
        return grey
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))


def _sharpen(grey: np.ndarray) -> np.ndarray:
    """Return the picture sharpened; beyond its edges it goes on as at them."""
    height, width = grey.shape
    padded = np.pad(grey, 1, mode="edge")
    total = np.zeros_like(grey)
    for row, column in np.ndindex(3, 3):
        total += _SHARPEN[row, column] * padded[row : row + height, column : column + width]
    return np.clip(total, 0, 255)


def _centre(grey: np.ndarray, fill: float) -> np.ndarray:
    """Return the picture in the middle of 28x28 pixels."""
    height, width = grey.shape
    image = np.full((SIDE, SIDE), fill, np.float32)
    top, left = (SIDE - height + 1) // 2, (SIDE - width + 1) // 2  # as in Fashion-MNIST
    image[top : top + height, left : left + width] = grey
    return image


def _clear(contrast: np.ndarray) -> np.ndarray:
    """Return the image with what is faint, and joined to the border by faint pixels, made 0."""
    faint = np.pad(contrast <= TOLERANCE, 1, constant_values=True)
    outside = ~np.pad(np.ones_like(contrast, bool), 1)
    while True:
        grown = outside.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(outside, step, axis)
        grown &= faint
        if (grown == outside).all():
            return np.where(outside[1:-1, 1:-1], 0, contrast)
        outside = grown
