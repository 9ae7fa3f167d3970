"""The built-in sample: real digits, always divided in the same way."""

from __future__ import annotations

import numpy as np

from fmnist_tf.data import sample
from fmnist_tf.data.sample import read_sample


def test_the_arrays_are_the_recorded_ones_and_the_division_is_stratified() -> None:
    train, test = read_sample()
    assert (train.digest, train.label_digest) == sample.DIGESTS
    assert train.label_values == test.label_values == tuple("0123456789")
    assert train.sha256 != test.sha256
    assert (train.pixels.shape, test.pixels.shape) == ((1527, 784), (270, 784))
    assert train.pixels.max() == test.pixels.max() == 255
    # Each class has a part in test that is within one image of 15 %.
    counts = np.bincount(np.concatenate([train.label_index, test.label_index]))
    assert np.abs(np.bincount(test.label_index) - 0.15 * counts).max() <= 1
    assert len(np.unique(np.concatenate([train.pixels, test.pixels]), axis=0)) == 1797


def test_images_are_enlarged_and_bright_on_black() -> None:
    from sklearn.datasets import load_digits

    train, _ = read_sample()
    images, labels = train.pixels.reshape(-1, 28, 28), train.label_index
    assert np.median(images[:, :, [0, -1]]) == 0
    # Pixels 5, 12, 19 and 26 lie on the middles of the original pixels 1, 3, 5 and 7.
    originals = load_digits()
    for digit in range(10):
        expected = originals.images[originals.target == digit].mean(axis=0)[1::2, 1::2]
        found = images[labels == digit].mean(axis=0)[5::7, 5::7] * (16 / 255)
        np.testing.assert_allclose(found, expected, atol=1.5)
