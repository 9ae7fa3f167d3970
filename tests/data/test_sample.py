"""The built-in sample: real digits, always divided in the same way."""

from __future__ import annotations

import numpy as np

from fmnist_tf.data import sample
from fmnist_tf.data.sample import load_sample, read_sample


def test_arrays() -> None:
    pixels, labels, test_pixels, test_labels = load_sample()
    assert pixels.shape == (1527, 784)
    assert test_pixels.shape == (270, 784)
    assert pixels.dtype == test_pixels.dtype == np.uint8
    assert labels.dtype == test_labels.dtype == np.int64
    assert pixels.max() == test_pixels.max() == 255
    # Each class has a part in test that is within one image of 15 %.
    counts = np.bincount(np.concatenate([labels, test_labels]))
    assert np.abs(np.bincount(test_labels) - 0.15 * counts).max() <= 1
    together = np.concatenate([pixels, test_pixels])
    assert len(np.unique(together, axis=0)) == 1797


def test_images_are_enlarged_and_bright_on_black() -> None:
    from sklearn.datasets import load_digits

    pixels, labels, _, _ = load_sample()
    images = pixels.reshape(-1, 28, 28)
    assert np.median(images[:, :, [0, -1]]) == 0
    # Pixels 5, 12, 19 and 26 lie on the middles of the original pixels 1, 3, 5 and 7.
    originals = load_digits()
    for digit in range(10):
        expected = originals.images[originals.target == digit].mean(axis=0)[1::2, 1::2]
        found = images[labels == digit].mean(axis=0)[5::7, 5::7] * (16 / 255)
        np.testing.assert_allclose(found, expected, atol=1.5)


def test_tables_have_the_recorded_digests() -> None:
    train, test = read_sample()
    assert (train.digest, train.label_digest) == sample.DIGESTS
    assert train.label_values == test.label_values == tuple("0123456789")
    assert train.sha256 != test.sha256
