"""Pixels as PNGs in data URIs, for a page that loads nothing."""

from __future__ import annotations

import base64
import io

import numpy as np
from markupsafe import Markup


def encode_image(pixels: np.ndarray) -> Markup:
    """Return uint8 pixels, (784,), (H, W) or (H, W, 3), as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    array = pixels.reshape(28, 28) if pixels.ndim == 1 else pixels
    Image.fromarray(array).save(stream, format="png", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())


def encode_heat_map(pixels: np.ndarray, heat: np.ndarray) -> Markup:
    """Return a grey image with a heat map over it as a data URI.

    Args:
        pixels: (784,) uint8.
        heat: (28, 28) uint8; 0 leaves the image grey, 255 is bright yellow.
    """
    import matplotlib

    grey = pixels.reshape(28, 28, 1).astype(np.float64)
    colour = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    weight = 0.75 * (heat / 255)[..., None] ** 0.7
    return encode_image(np.rint(0.85 * grey * (1 - weight) + colour * weight).astype(np.uint8))
