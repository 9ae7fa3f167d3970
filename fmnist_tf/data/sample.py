"""The built-in sample: real handwritten digits that are installed with scikit-learn.

1,797 grey images of 8x8 pixels, levels 0..16, ten classes, the test part of UCI's "Optical
Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
https://archive.ics.uci.edu/dataset/80). The same 13 people wrote train and test images, so accuracy
is higher than with new writers.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

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


def read_sample() -> tuple[Table, Table]:
    """Return the sample, enlarged to 28x28 (bilinear), divided by a fixed, stratified draw.

    1527 train and 270 test images, 0 = background.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    levels = np.rint(digits * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    side, bilinear = (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR
    images = [np.asarray(Image.fromarray(level).resize(side, bilinear)) for level in levels]
    pixels, index = np.stack(images).reshape(-1, N_PIXELS), labels.astype("<i4")
    rows = plan_holdout(index, fraction=TEST_FRACTION, seed=TEST_SEED, part="test", hint="")
    train, test = (_to_table(pixels[part], index[part]) for part in rows)
    return replace(train, path=f"{PATH}, train"), replace(test, path=f"{PATH}, test")


def _to_table(pixels: NDArray[np.uint8], index: NDArray[np.int32]) -> Table:
    digest, label_digest = (hashlib.sha256(array.data).hexdigest() for array in (pixels, index))
    return Table(
        pixels=pixels,
        label_index=index,
        label_values=tuple("0123456789"),
        path=PATH,
        # There is no file; this stands for the bytes of both arrays.
        sha256=hashlib.sha256((digest + label_digest).encode()).hexdigest(),
        digest=digest,
        label_digest=label_digest,
    )
