"""The built-in sample: real handwritten digits that are installed with scikit-learn.

1,797 grey images of 8x8 pixels, levels 0..16, ten classes, the test part of UCI's "Optical
Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
https://archive.ics.uci.edu/dataset/80). The same 13 people wrote train and test images, so accuracy
is higher than with new writers.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.images import Table
from fmnist_tf.data.splits import TEST_FRACTION, TEST_SEED, plan_holdout

PATH = "built-in sample"
DIGESTS = (
    "8cf8a95dad026bc04ae548ccc446178fa7644c54ce55c3b7178a93d74a46a4c2",
    "42a1727b1ebdd5e01d32ac253074f346fea3448e8ec957448a4a8c186aa0c793",
)
"""Of the train table: `digest` and `label_digest`. A copy of the images is known by them."""


def load_sample() -> tuple[
    NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]
]:
    """Return the sample, enlarged to 28x28 (bilinear), divided by a fixed, stratified draw.

    Train pixels (1527, 784), 0 = background, train labels (1527,); the same of 270 test images.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    levels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    side, bilinear = (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR
    images = [Image.fromarray(image).resize(side, bilinear) for image in levels]
    pixels, labels = np.stack(images).reshape(-1, N_PIXELS), labels.astype(np.int64)
    train, test = plan_holdout(labels, fraction=TEST_FRACTION, seed=TEST_SEED, part="test", hint="")
    return pixels[train], labels[train], pixels[test], labels[test]


def read_sample() -> tuple[Table, Table]:
    """Return the train and the test images as tables."""
    arrays = load_sample()
    return _to_table("train", *arrays[:2]), _to_table("test", *arrays[2:])


def _to_table(part: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Table:
    index = labels.astype("<i4")
    digest, label_digest = (hashlib.sha256(array.data).hexdigest() for array in (pixels, index))
    return Table(
        pixels=pixels,
        label_index=index,
        label_values=tuple("0123456789"),
        path=f"{PATH}, {part}",
        # There is no file; this stands for the bytes of both arrays.
        sha256=hashlib.sha256((digest + label_digest).encode()).hexdigest(),
        digest=digest,
        label_digest=label_digest,
    )
