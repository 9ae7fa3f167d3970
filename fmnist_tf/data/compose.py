"""Put an object into 28x28 pixels by the convention of the training images.

The steps are those that made Fashion-MNIST from product photos (Xiao, Rasul and Vollgraf 2017,
arXiv:1708.07747, section 2): scale the longer side, sharpen, centre. MNIST centres by the centre of
mass instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.convention import TOLERANCE, Convention, find_centre_of_mass

Grey = NDArray[np.floating[Any]]

# ImageMagick's `-sharpen 1x1`: minus a Gaussian of radius and standard deviation 1, with twice its
# sum in the middle; normalized to a sum of 1.
_SHARPEN = -np.exp(-np.add.outer([1, 0, 1], [1, 0, 1]) / 2)
_SHARPEN[1, 1] = -2 * _SHARPEN.sum()
_SHARPEN /= _SHARPEN.sum()


def compose(
    contrast: Grey, convention: Convention, corner: tuple[float, ...] = (np.inf, np.inf)
) -> Grey:
    """Return an object (H, W), cropped, 0..255 above its background, as 28x28 pixels of the same.

    It keeps its own place, given by the crop's top left corner in pixels from the picture's middle,
    if training objects drift as far from the middle.

    Faint pixels that are connected to the border become 0; those inside the object are kept.
    """
    scaled = scale(contrast, convention.content_side)
    sharp = np.clip(ndimage.convolve(scaled, _SHARPEN, mode="nearest"), 0, 255)
    factor = convention.content_side / max(contrast.shape)
    own = IMAGE_SIZE / 2 + np.array(corner) * factor
    image = np.pad(sharp, _margins(sharp, convention.centring, own, convention.drift))
    faint = image <= TOLERANCE
    outside = ndimage.binary_propagation(faint & border(faint.shape), mask=faint)
    return np.where(outside, 0, image)


def scale(grey: Grey, longer_side: int) -> Grey:
    """Return the picture resized to `longer_side`, antialiased."""
    factor = longer_side / max(grey.shape)
    if factor == 1:
        return grey
    height, width = (max(1, round(side * factor)) for side in grey.shape)
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC))


def centre(grey: Grey, fill: float) -> Grey:
    """Return the picture in the middle of 28x28 pixels."""
    return np.pad(grey, _margins(grey, "box"), constant_values=fill)


def border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return (H, W): the outermost pixels."""
    mask = np.ones(shape, bool)
    mask[1:-1, 1:-1] = False
    return mask


def _margins(grey: Grey, centring: str, own: ArrayLike = (), drift: float = 0) -> NDArray[np.int64]:
    """Return how many pixels to add before and after each axis, (2, 2)."""
    room = IMAGE_SIZE - np.array(grey.shape)
    before = (room + 1) // 2  # as in Fashion-MNIST
    if centring == "mass" and grey.any():
        # The mean over MNIST is (14.0, 14.0), half a pixel right of and below the middle.
        before = np.rint(IMAGE_SIZE / 2 - np.ravel(find_centre_of_mass(grey[np.newaxis])))
    if drift >= 1:
        before = np.where(np.abs(own - before) <= drift, np.rint(own), before)
    before = np.clip(before, 0, room).astype(np.int64)
    return np.stack([before, room - before], axis=1)
