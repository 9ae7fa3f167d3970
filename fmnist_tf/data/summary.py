"""What the images look like: counts, mean images, duplicates; warnings W040 on them.

Everything is computed once and kept beside the pixel store.

Shape letters: N images, K classes, E examples of a class, 784 pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.convention import Convention, measure_convention
from fmnist_tf.data.images import BLOCK, Pixels, read_blocks
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.checked import CheckedFolder
from fmnist_tf.system.files import remove

EXAMPLES = 6
IMBALANCE_RATIO = 10
"""Ratio of the largest class to the smallest above which a warning is given."""

_VERSION = 4  # part of a kept file's name: raise it if the same images would be described otherwise
_PREFIX = "data_"


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
        """Return what `to_arrays` was made from; KeyError if an entry is missing."""
        return cls(**{field.name: arrays[_PREFIX + field.name] for field in fields(cls)})


class Inspection(NamedTuple):
    """All that is known of the images of a data set.

    Attributes:
        summary: for the report.
        convention: of the training images.
        warnings: sentences that begin with `W040`, on what is valid but probably not meant.
    """

    summary: DataSummary
    convention: Convention
    warnings: tuple[str, ...]


def inspect(train: Pixels, test: Pixels, store_dir: Path) -> Inspection:
    """Read what an earlier call kept in `store_dir` on these images, or compute and keep it."""
    key = hashlib.sha256(repr((_VERSION, train.class_names)).encode())
    for part in (train, test):
        key.update(part.digest.encode() + np.asarray(part.labels, "<i8").tobytes())
    folder, name = CheckedFolder(store_dir), f"summary-{key.hexdigest()}.npz"
    with suppress(UsageError, ValueError, KeyError):  # missing or corrupt
        arrays = folder.read_arrays(name)
        return Inspection(
            DataSummary.from_arrays(arrays),
            Convention.from_record(json.loads(str(arrays["convention"]))),
            tuple(map(str, arrays["warnings"])),
        )
    found = _inspect(train, test)
    arrays = found.summary.to_arrays()
    arrays["convention"] = np.array(json.dumps(asdict(found.convention)))
    arrays["warnings"] = np.array(found.warnings, str)
    remove(folder.file(name))
    folder.write_arrays(name, arrays)
    return found


class _Scan:
    """What one pass over N images finds."""

    def __init__(self, part: Pixels) -> None:
        classes = np.arange(len(part.class_names))
        self.counts = np.bincount(part.labels, minlength=len(classes))
        self.sums = np.zeros((len(classes), N_PIXELS))  # of the pixels of each class
        self.histogram = np.zeros(256, np.int64)
        self.n_constant = 0  # images of one grey level
        self.hashes = np.zeros(len(part.pixels), np.int64)  # equal for equal images
        for number, block in enumerate(read_blocks(part.pixels)):
            rows = slice(number * BLOCK, number * BLOCK + len(block))
            is_class = classes[:, np.newaxis] == part.labels[rows]
            self.sums += is_class.astype(np.float32) @ block.astype(np.float32)  # exact
            self.histogram += np.bincount(block.ravel(), minlength=256)
            self.n_constant += int((np.ptp(block, axis=1) == 0).sum())
            self.hashes[rows] = [hash(image.tobytes()) for image in block]
        self.n_copies = len(self.hashes) - len(np.unique(self.hashes))


def _inspect(train: Pixels, test: Pixels) -> Inspection:
    of_train, of_test = _Scan(train), _Scan(test)
    n_shared = int(np.isin(of_test.hashes, of_train.hashes).sum())
    examples = np.zeros((len(train.class_names), EXAMPLES, N_PIXELS), np.uint8)
    for k, images in enumerate(examples):
        rows = np.flatnonzero(train.labels == k)[:EXAMPLES]
        images[: len(rows)] = train.pixels[rows]
    means = np.rint(of_train.sums / np.maximum(of_train.counts, 1)[:, np.newaxis])
    summary = DataSummary(
        train_counts=of_train.counts,
        test_counts=of_test.counts,
        mean_images=means.astype(np.uint8),
        examples=examples,
        duplicates=np.array([of_train.n_copies, of_test.n_copies, n_shared]),
        histogram=of_train.histogram,
    )
    warnings = []
    for name, part in (("training", of_train), ("test", of_test)):
        if n := part.n_copies:
            warnings.append(f"{n} of {len(part.hashes)} {name} images are copies of another")
        if part.n_constant:
            warnings.append(f"{part.n_constant} {name} images have one grey level only")
    if n_shared:
        warnings.append(f"{n_shared} of {len(of_test.hashes)} test images are also training images")
    most, fewest = int(of_train.counts.argmax()), int(of_train.counts.argmin())
    if of_train.counts[most] > IMBALANCE_RATIO * of_train.counts[fewest]:
        large, small = (printable(train.class_names[k], 30) for k in (most, fewest))
        warnings.append(
            f"class {large} has {of_train.counts[most]} images and class {small} "
            f"{of_train.counts[fewest]}: accuracy alone will mislead"
        )
    coded = tuple(f"W040 {warning}" for warning in warnings)
    return Inspection(summary, measure_convention(train.pixels), coded)
