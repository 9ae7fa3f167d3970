"""What is no fault of a file but probably not meant: W040.

In: validated pixels and labels. Out: sentences. This module must not know files.

Shape letters: N images, K classes, 784 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.errors import printable

SIDE = 28
INVERTED_MEAN = 127
"""Mean grey level (0..255) above which the background must be bright; Fashion-MNIST has 73."""
IMBALANCE_RATIO = 10
"""Images of the largest class for each of the smallest."""
DRIFT_LEVELS = 16
"""Mean absolute difference of two mean images, in grey levels; Fashion-MNIST's halves have 0.5."""
TRANSPOSED_MARGIN = 0.1
"""How much better the test images fit the training images when rows and columns are exchanged,
as a correlation of mean images; Fashion-MNIST has 1.00 as it is and 0.78 exchanged."""
COMPARED_IMAGES = 100
"""Fewer images than this have a mean image too noisy to compare."""

_IMAGES_PER_READ = 4096


def find_warnings(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.integer] | None = None,
    class_names: Sequence[str] = (),
    test_pixels: NDArray[np.uint8] | None = None,
) -> tuple[str, ...]:
    """Look once at every image; memory grows by 8 bytes an image.

    Told: images that occur twice, test images that are training images, constant images, a bright
    background, exchanged rows and columns and drift (of the test images against the training
    images), classes of very different size. Exchanged rows and columns cannot be seen in one set
    alone: the mean images of Fashion-MNIST and of digits are nearly symmetric.

    Args:
        pixels: (N, 784).
        labels: (N,) in 0..K-1, or None.
        class_names: K names.
        test_pixels: (M, 784), or None.

    Returns:
        Sentences that begin with `W040`; empty if nothing is strange.
    """
    train = _Summary(pixels)
    warnings = _own_warnings(train, "training" if test_pixels is not None else "data")
    if labels is not None:
        warnings += _class_warnings(labels, class_names)
    if test_pixels is not None:
        test = _Summary(test_pixels)
        warnings += _own_warnings(test, "test")
        shared = int(np.isin(test.digests, train.digests).sum())
        if shared:
            warnings.append(f"{shared} of {test.images} test images are also training images")
        if min(train.images, test.images) >= COMPARED_IMAGES:
            warnings += _drift_warnings(train.mean_image, test.mean_image)
    return tuple(f"W040 {warning}" for warning in warnings)


class _Summary:
    """Counts over all images of one set.

    Attributes:
        images: N.
        digests: (N,) int64, a 64-bit hash of each image.
        constant: images of one grey level.
        mean_image: (784,) float64, grey levels.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.images = len(pixels)
        self.digests = digest_images(pixels)
        self.constant = 0
        total = np.zeros(SIDE * SIDE, np.int64)
        for start in range(0, self.images, _IMAGES_PER_READ):
            part = pixels[start : start + _IMAGES_PER_READ]
            total += part.sum(axis=0, dtype=np.int64)
            self.constant += int((part == part[:, :1]).all(axis=1).sum())
        self.mean_image = total / max(self.images, 1)


def digest_images(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return (N,) hashes of 64 bits: equal for equal images, comparable within one process."""
    return np.fromiter((hash(row.tobytes()) for row in pixels), np.int64, len(pixels))


def _own_warnings(images: _Summary, name: str) -> list[str]:
    warnings = []
    copies = images.images - len(np.unique(images.digests))
    if copies:
        warnings.append(f"{copies} of {images.images} {name} images are copies of another one")
    if images.constant:
        warnings.append(f"{images.constant} {name} images have one grey level only")
    mean = images.mean_image.mean()
    if mean > INVERTED_MEAN:
        warnings.append(
            f"the mean {name} pixel is {mean:.0f} of 255: dark on bright? "
            "0 is meant to be the background"
        )
    return warnings


def _class_warnings(labels: NDArray[np.integer], class_names: Sequence[str]) -> list[str]:
    counts = np.bincount(labels, minlength=len(class_names))
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= IMBALANCE_RATIO * counts[fewest]:
        return []
    name = [printable(str(name), 30) for name in class_names] or [
        str(i) for i in range(len(counts))
    ]
    return [
        f"class {name[most]} has {counts[most]} images and class {name[fewest]} "
        f"{counts[fewest]}: accuracy alone will mislead"
    ]


def _drift_warnings(train: NDArray[np.float64], test: NDArray[np.float64]) -> list[str]:
    exchanged = test.reshape(SIDE, SIDE).T.ravel()
    if _correlation(train, exchanged) > _correlation(train, test) + TRANSPOSED_MARGIN:
        return ["the test images fit the training images better with rows and columns exchanged"]
    levels = float(np.abs(train - test).mean())
    if levels > DRIFT_LEVELS:
        return [
            f"the mean test image differs from the mean training image by {levels:.0f} grey levels"
        ]
    return []


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's correlation, 0 where an image is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0
