"""Images of other sizes and of three colours -> 28x28 grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS

SIDES = (8, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)
"""Sides of square images that are read; others are more likely a damaged file."""
RGB_SIDES = (28, 32, 48, 64)
SHAPES = {side * side: (side, 1) for side in SIDES} | {
    3 * side * side: (side, 3) for side in RGB_SIDES
}
"""Side and channels of an image by its number of values."""


def to_28(pixels: NDArray[np.uint8], side: int, channels: int = 1) -> NDArray[np.uint8]:
    """Return square images as 28x28 grey ones.

    Colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B); other sides are resized with
    Pillow's antialiased bicubic filter.

    Args:
        pixels: (N, side * side * channels) uint8, row by row, the channels of a pixel together.
        side: of the images.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        (N, 784) uint8.
    """
    if channels == 3:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        colour = pixels.reshape(len(pixels), side * side, 3)
        pixels = np.rint(colour @ weights).astype(np.uint8)
    if side == IMAGE_SIZE:
        return pixels
    from PIL import Image

    size, bicubic = (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    images = [
        Image.fromarray(image).resize(size, bicubic) for image in pixels.reshape(-1, side, side)
    ]
    return np.array(images, np.uint8).reshape(-1, N_PIXELS)
