"""How the objects of a set of training images lie in their 28x28 pixels.

Two conventions are common. Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747, section 2) scales the
longer side of the bounding box to 28 and centres the box. MNIST (LeCun et al. 1998,
http://yann.lecun.com/exdb/mnist/) scales it to 20 and centres the centre of mass. A picture is
brought into the convention of the images that the network was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.images import PixelRows

TOLERANCE = 0.05 * 255
"""A pixel within this many grey levels of the background is background: 5 % of the range, as
Fashion-MNIST's own pictures were trimmed."""

_ENOUGH = 8192  # images that statistics are taken of
_EDGE = np.pad(np.zeros((IMAGE_SIZE - 2, IMAGE_SIZE - 2), bool), 1, constant_values=True).ravel()


@dataclass(frozen=True)
class Convention:
    """What is typical of a set of images.

    Attributes:
        background: median grey level, 0..255, at the border.
        content_side: median longer side, 1..28, of the content's bounding box.
        centring: what lies in the middle: the bounding box, or the centre of mass.
        thickness: 95th percentile of the content's thickness, 1..28 (see `measure_thickness`).
        ink: 1st and 99th percentile of an image's mean distance from the background, 0..1.
        drift: how far this centre is from its usual place, in pixels: 98th percentile.
    """

    background: int
    content_side: int
    centring: Literal["box", "mass"] = "box"
    thickness: int = IMAGE_SIZE
    ink: tuple[float, float] = (0.0, 1.0)
    drift: float = 0.0

    @property
    def has_strokes(self) -> bool:
        """Whether the content is drawn with lines, as digits are, and never a filled area."""
        # 0.25 in MNIST, 0.46 in scikit-learn's digits, which are blurred, 0.68 in Fashion-MNIST.
        return self.thickness < 0.55 * self.content_side

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Convention:
        """Return the convention that a run's JSON has among other entries."""
        values = {field.name: record[field.name] for field in fields(cls)}
        return cls(**values | {"ink": tuple(values["ink"])})


def measure_convention(pixels: PixelRows) -> Convention:
    """Measure the convention of images (N, 784), N >= 1; of many, some evenly spaced ones count."""
    images = pixels[:: 1 + len(pixels) // _ENOUGH]
    background = int(np.median(images[:, _EDGE]))
    contrast = np.abs(images.reshape(-1, IMAGE_SIZE, IMAGE_SIZE).astype(np.int64) - background)
    contrast[contrast <= TOLERANCE] = 0
    contrast = contrast[contrast.any(axis=(1, 2))]
    if not len(contrast):
        return Convention(background, 1)
    is_content = contrast > 0
    top, bottom = _ends(is_content.max(axis=2))
    left, right = _ends(is_content.max(axis=1))
    # The centre that varies less over the images is the one that was put in the middle.
    boxes = np.stack([top + bottom, left + right]) / 2
    masses = np.stack(find_centre_of_mass(contrast))
    is_mass = masses.var(axis=1).sum() < boxes.var(axis=1).sum()
    centres = masses if is_mass else boxes
    drifts = np.abs(centres - np.median(centres, axis=1, keepdims=True))
    sides = np.maximum(bottom - top, right - left) + 1
    ink = np.percentile(contrast.mean(axis=(1, 2)) / 255, [1, 99])
    return Convention(
        background,
        int(np.median(sides)),
        "mass" if is_mass else "box",
        int(np.percentile(measure_thickness(is_content), 95)),
        (round(float(ink[0]), 4), round(float(ink[1]), 4)),
        round(float(np.percentile(drifts, 98, axis=1).max()), 2),
    )


def find_centre_of_mass(contrast: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows and the columns, (N,) each, of the centres of mass of (N, H, W)."""
    total = contrast.sum(axis=(1, 2))
    y, x = (np.arange(side) for side in contrast.shape[1:])
    return contrast.sum(axis=2) @ y / total, contrast.sum(axis=1) @ x / total


def measure_thickness(is_content: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the side of the largest square of odd side that fits into the content (N, H, W)."""
    from scipy import ndimage  # 0.2 s that the report of a run saves

    thickness = np.full(len(is_content), -1)
    while is_content.any():
        thickness += 2 * is_content.any(axis=(1, 2))
        is_content = ndimage.binary_erosion(is_content, np.ones((1, 3, 3), bool))
    return np.maximum(thickness, 0)


def _ends(occupied: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last true of each row of (N, 28)."""
    return occupied.argmax(axis=1), IMAGE_SIZE - 1 - occupied[:, ::-1].argmax(axis=1)
