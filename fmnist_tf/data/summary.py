"""What the images look like: counts, mean images, duplicates, background; and warnings W040.

Everything is computed once and kept beside the pixel store.

Shape letters: N images, K classes, E examples of a class, 784 pixels.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.images import Pixels
from fmnist_tf.errors import printable
from fmnist_tf.system.files import write_atomically

EXAMPLES = 6
INVERTED_MEAN = 127
"""Mean grey level (0..255) above which the background is probably bright; Fashion-MNIST has 73."""
IMBALANCE_RATIO = 10
"""Ratio of the largest class to the smallest above which a warning is given."""
DRIFT_LEVELS = 16
"""Mean absolute difference of two mean images, in grey levels; Fashion-MNIST's parts have 0.5."""
TRANSPOSED_MARGIN = 0.1
"""By how much the correlation of the mean images must rise when the test images are transposed;
Fashion-MNIST has 1.00 as it is and 0.78 transposed."""
COMPARED_IMAGES = 100
"""Fewer images than this have a mean image too noisy to compare."""

_VERSION = 1  # part of a kept file's name: raise it if the same images would be described otherwise
_PREFIX = "data_"
_BLOCK = 4096  # images read at once; bounds the memory
# How far from the background a pixel must be to be content: 5 % of the range, as Fashion-MNIST's
# own pictures were trimmed (Xiao et al. 2017, section 2).
_TOLERANCE = 0.05 * 255


@dataclass(frozen=True, eq=False)
class DataSummary:
    """Facts on the images of the train and the test set; val is a part of train here.

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
        """Return what `to_arrays` was made from; other entries are ignored.

        Raises:
            KeyError: an entry is missing.
        """
        return cls(**{field.name: arrays[_PREFIX + field.name] for field in fields(cls)})


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that is known of the images of a data set.

    Attributes:
        summary: for the report.
        background: median grey level, 0..255, at the border of the training images.
        content_side: median longer side, 1..28, of what the training images show.
        warnings: sentences that begin with `W040`, on what is valid but probably not meant.
    """

    summary: DataSummary
    background: int
    content_side: int
    warnings: tuple[str, ...]


def inspect(train: Pixels, test: Pixels, store_dir: Path) -> Inspection:
    """Read what an earlier call kept in `store_dir` on these images, or compute and keep it.

    Raises:
        OSError: the disk is full or fails.
    """
    key = hashlib.sha256(repr((_VERSION, train.class_names)).encode())
    for part in (train, test):
        key.update(part.digest.encode())
        key.update(np.asarray(part.labels, "<i8").tobytes())
    path = store_dir / f"summary-{key.hexdigest()}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Inspection(
                DataSummary.from_arrays(arrays),
                int(arrays["background"]),
                int(arrays["content_side"]),
                tuple(map(str, arrays["warnings"])),
            )
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile):
        pass  # missing or corrupt: computed again
    summary = summarize(train, test)
    background = measure_background(train.pixels)
    side = measure_content_side(train.pixels, background)
    warnings = find_warnings(summary, train, test)
    kept: dict[str, Any] = summary.to_arrays()
    kept |= {"background": background, "content_side": side, "warnings": np.array(warnings, str)}
    with write_atomically(path) as file:
        np.savez(file, **kept)
    return Inspection(summary, background, side, warnings)


def summarize(train: Pixels, test: Pixels) -> DataSummary:
    """Count, average and compare the images."""
    n_classes = len(train.class_names)
    mean_images = np.zeros((n_classes, N_PIXELS), np.uint8)
    examples = np.zeros((n_classes, EXAMPLES, N_PIXELS), np.uint8)
    train_counts = np.bincount(train.labels, minlength=n_classes)
    by_class = np.split(np.argsort(train.labels, kind="stable"), np.cumsum(train_counts)[:-1])
    for k, rows in enumerate(by_class):
        if len(rows):
            mean_images[k] = np.rint(_mean_image(train.pixels, rows))
            examples[k, : len(rows)] = train.pixels[rows[:EXAMPLES]]
    histogram = np.zeros(256, np.int64)
    for block in _blocks(train.pixels):
        histogram += np.bincount(block.ravel(), minlength=256)
    of_train, of_test = _hash_images(train.pixels), _hash_images(test.pixels)
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


def find_warnings(summary: DataSummary, train: Pixels, test: Pixels) -> tuple[str, ...]:
    """Return sentences that begin with `W040`; empty if nothing is strange.

    They are on duplicates, constant images, a bright background, classes of very different size,
    and test images that are transposed or drift away from the training images.
    """
    warnings = []
    parts = [("training", train), ("test", test)]
    for (name, part), copies in zip(parts, summary.duplicates, strict=False):
        if copies:
            warnings.append(f"{copies} of {len(part.pixels)} {name} images are copies of another")
        n_constant = sum(int((np.ptp(b, axis=1) == 0).sum()) for b in _blocks(part.pixels))
        if n_constant:
            warnings.append(f"{n_constant} {name} images have one grey level only")
        mean = _mean_image(part.pixels).mean() if len(part.pixels) else 0
        if mean > INVERTED_MEAN:
            warnings.append(
                f"the mean {name} pixel is {mean:.0f} of 255: dark on bright? "
                "0 is meant to be the background"
            )
    if shared := summary.duplicates[2]:
        warnings.append(f"{shared} of {len(test.pixels)} test images are also training images")
    warnings += _class_warnings(summary.train_counts, train.class_names)
    if min(len(train.pixels), len(test.pixels)) >= COMPARED_IMAGES:
        warnings += _drift_warnings(_mean_image(train.pixels), _mean_image(test.pixels))
    return tuple(f"W040 {warning}" for warning in warnings)


def measure_background(pixels: NDArray[np.uint8]) -> int:
    """Return the median grey level, 0..255, of the edge pixels of all images (N, 784)."""
    square = np.arange(N_PIXELS).reshape(IMAGE_SIZE, IMAGE_SIZE)
    edge = np.unique(np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]]))
    counts = np.zeros(256, np.int64)
    for block in _blocks(pixels):
        counts += np.bincount(block[:, edge].ravel(), minlength=256)
    up_to = np.cumsum(counts)
    middle = np.searchsorted(up_to, [(up_to[-1] - 1) // 2, up_to[-1] // 2], side="right")
    return int(middle.mean())


def measure_content_side(pixels: NDArray[np.uint8], background: int) -> int:
    """Return the median over images, 1..28, of the longer side of the content's bounding box.

    Fashion-MNIST's garments fill their image (28), MNIST's digits do not (20).

    Args:
        pixels: (N, 784).
        background: grey level, 0..255; content is more than 5 % of the range away from it.
    """
    sides = []
    for block in _blocks(pixels):
        images = block.reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
        content = np.abs(images.astype(np.int16) - background) > _TOLERANCE
        across, down = _extent(content.max(axis=1)), _extent(content.max(axis=2))
        sides.append(np.maximum(across, down))
    return max(1, int(np.median(np.concatenate(sides))))


def _extent(occupied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each row of (N, 28) the distance from its first to its last true, plus 1."""
    first, last = occupied.argmax(axis=1), IMAGE_SIZE - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - first, 0)


def _blocks(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for first in range(0, len(pixels), _BLOCK):
        yield pixels[first : first + _BLOCK]


def _mean_image(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64] | slice = slice(None)
) -> NDArray[np.float64]:
    numbers = np.arange(len(pixels))[rows]
    parts = (pixels[numbers[i : i + _BLOCK]] for i in range(0, len(numbers), _BLOCK))
    return sum(part.sum(axis=0, dtype=np.int64) for part in parts) / len(numbers)


def _hash_images(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return (N,) hashes of 64 bits: equal for equal images, comparable within one process."""
    return np.fromiter((hash(row.tobytes()) for row in pixels), np.int64, len(pixels))


def _class_warnings(counts: NDArray[np.int64], class_names: Sequence[str]) -> list[str]:
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= IMBALANCE_RATIO * counts[fewest]:
        return []
    name = [printable(name, 30) for name in class_names]
    return [
        f"class {name[most]} has {counts[most]} images and class {name[fewest]} "
        f"{counts[fewest]}: accuracy alone will mislead"
    ]


def _drift_warnings(train: NDArray[np.float64], test: NDArray[np.float64]) -> list[str]:
    transposed = test.reshape(IMAGE_SIZE, IMAGE_SIZE).T.ravel()
    if _correlation(train, transposed) > _correlation(train, test) + TRANSPOSED_MARGIN:
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
