"""What the data look like: counts, mean images, examples, duplicates, background.

In: a `Dataset`. Out: a `DataSummary`, small whatever the number of images, that is kept with a run
and shown by its report. This module must not know runs, pages or models.

Shape letters: N images, K classes, E examples of a class, 784 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fmnist_tf.data.checks import SIDE, digest_images
from fmnist_tf.data.sources import Dataset

EXAMPLES = 6
_PREFIX = "data_"
_BLOCK = 4096  # images looked at in one piece; bounds the memory
# How far from the background a pixel must be to be content: 5 % of the range, as Fashion-MNIST's
# own pictures were trimmed (Xiao et al. 2017, section 2).
_TOLERANCE = 0.05 * 255


@dataclass(frozen=True, eq=False)
class DataSummary:
    """Facts on the images of the train and the test file; val is a part of train here.

    Attributes:
        train_counts: (K,) int64, images per class.
        test_counts: (K,) int64.
        mean_images: (K, 784) uint8, of the training images; zero for a class without any.
        examples: (K, E, 784) uint8, the first training images of each class, zero where a class
            has fewer.
        duplicates: (3,) int64: training images that repeat an earlier one, test images that do,
            and test images that are training images too.
        histogram: (256,) int64, grey levels of all training pixels.
    """

    train_counts: np.ndarray
    test_counts: np.ndarray
    mean_images: np.ndarray
    examples: np.ndarray
    duplicates: np.ndarray
    histogram: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the attributes as a run keeps them: `data_train_counts` and so on."""
        return {_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DataSummary:
        """Return what `to_arrays` was made from; other entries are passed over.

        Raises:
            KeyError: an entry is missing.
        """
        return cls(**{field.name: arrays[_PREFIX + field.name] for field in fields(cls)})


def summarize(dataset: Dataset) -> DataSummary:
    """Look once at every image."""
    train, test = dataset.train, dataset.test
    n_classes = len(train.class_names)
    mean_images = np.zeros((n_classes, SIDE * SIDE), np.uint8)
    examples = np.zeros((n_classes, EXAMPLES, SIDE * SIDE), np.uint8)
    train_counts = np.bincount(train.labels, minlength=n_classes)
    by_class = np.split(np.argsort(train.labels, kind="stable"), np.cumsum(train_counts)[:-1])
    for k, rows in enumerate(by_class):
        if len(rows):
            blocks = (train.pixels[rows[i : i + _BLOCK]] for i in range(0, len(rows), _BLOCK))
            total = sum(block.sum(axis=0, dtype=np.int64) for block in blocks)
            mean_images[k] = np.rint(total / len(rows))
            examples[k, : len(rows)] = train.pixels[rows[:EXAMPLES]]
    histogram = np.zeros(256, np.int64)
    for first in range(0, len(train.pixels), _BLOCK):
        histogram += np.bincount(train.pixels[first : first + _BLOCK].ravel(), minlength=256)
    of_train, of_test = digest_images(train.pixels), digest_images(test.pixels)
    return DataSummary(
        train_counts=train_counts,
        test_counts=np.bincount(test.labels, minlength=n_classes),
        mean_images=mean_images,
        examples=examples,
        duplicates=np.array(
            [
                len(of_train) - len(np.unique(of_train)),
                len(of_test) - len(np.unique(of_test)),
                np.isin(of_test, of_train).sum(),
            ]
        ),
        histogram=histogram,
    )


def measure_background(pixels: np.ndarray) -> int:
    """Return the median grey level, 0..255, of the pixels along the edges of all images.

    Args:
        pixels: (N, 784) uint8.
    """
    square = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    edge = np.unique(np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]]))
    counts = np.zeros(256, np.int64)
    for first in range(0, len(pixels), _BLOCK):
        counts += np.bincount(pixels[first : first + _BLOCK, edge].ravel(), minlength=256)
    up_to = np.cumsum(counts)
    middle = np.searchsorted(up_to, [(up_to[-1] - 1) // 2, up_to[-1] // 2], side="right")
    return int(middle.mean())


def measure_content_side(pixels: np.ndarray, background: int) -> int:
    """Return the median over images, 1..28, of the longer side of the box around the content.

    Fashion-MNIST's garments fill their image (28), MNIST's digits do not (20).

    Args:
        pixels: (N, 784) uint8.
        background: grey level, 0..255; what lies within 5 % of the range of it is no content.
    """
    sides = []
    for first in range(0, len(pixels), _BLOCK):
        images = pixels[first : first + _BLOCK].reshape(-1, SIDE, SIDE)
        content = np.abs(images.astype(np.int16) - background) > _TOLERANCE
        across, down = _extent(content.max(axis=1)), _extent(content.max(axis=2))
        sides.append(np.maximum(across, down))
    return max(1, int(np.median(np.concatenate(sides))))


def _extent(occupied: np.ndarray) -> np.ndarray:
    """Return for each row of (N, 28) bool the distance from its first to its last true, plus 1."""
    first, last = occupied.argmax(axis=1), SIDE - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - first, 0)
