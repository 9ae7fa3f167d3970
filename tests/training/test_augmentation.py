"""The distributions of each kind of augmentation, with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from fmnist_tf.data import IMAGE_SIZE as SIDE
from fmnist_tf.settings.config import RANDOM_AUGMENTATIONS as KINDS
from fmnist_tf.training.augmentation import MIXUP_ALPHA, SHIFT, augment

B = 4000
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (B, 784), dtype=np.uint8)
TARGETS = np.eye(10, dtype=np.float32)[np.arange(B) % 10]


def run(kinds, pixels=PIXELS, targets=TARGETS, seed=(1, 2), background=0):
    """Return the augmented images, (B, H, W), and targets."""
    seed = tf.constant(seed, tf.int32)
    changed, mixed = augment(tf.constant(pixels), tf.constant(targets), seed, kinds, background)
    assert (changed.dtype, changed.shape) == (tf.uint8, pixels.shape)
    assert (mixed.dtype, mixed.shape) == (tf.float32, targets.shape)
    return changed.numpy().reshape(-1, SIDE, SIDE), mixed.numpy()


def test_shifts_are_uniform_and_keep_the_content() -> None:
    spot = np.zeros((B, SIDE, SIDE), np.uint8)
    spot[:, 14, 14] = 255
    moved, _ = run(("shift-crop",), spot.reshape(B, -1))
    image, row, column = moved.nonzero()
    np.testing.assert_array_equal(image, np.arange(B))
    down, right = row - 14, column - 14
    counts = np.zeros((2 * SHIFT + 1, 2 * SHIFT + 1))
    np.add.at(counts, (down + SHIFT, right + SHIFT), 1)  # out of bounds raises
    assert stats.chisquare(counts.ravel()).pvalue > 0.01

    images, targets = run(("shift-crop",), background=77)
    padded = np.pad(
        PIXELS.reshape(images.shape), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), constant_values=77
    )
    for n in range(B):
        top, left = SHIFT - down[n], SHIFT - right[n]
        np.testing.assert_array_equal(images[n], padded[n, top : top + SIDE, left : left + SIDE])
    np.testing.assert_array_equal(targets, TARGETS)


def test_erased_rectangles_are_those_of_the_paper() -> None:
    black, white = np.zeros((B, 784), np.uint8), np.full((B, 784), 255, np.uint8)
    over_black, targets = run(("erasing",), black)
    over_white, _ = run(("erasing",), white)
    np.testing.assert_array_equal(targets, TARGETS)
    # Both have the same noise, so they agree exactly where they are erased.
    erased = over_black == over_white
    assert ((over_black == 0) | erased).all()
    chosen = erased.any(axis=(1, 2))
    assert stats.binomtest(int(chosen.sum()), B).pvalue > 0.01

    heights, widths, tops, lefts = [], [], [], []
    for mask in erased[chosen]:
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        heights.append(len(rows)), widths.append(len(columns))
        tops.append(rows[0]), lefts.append(columns[0])
        assert mask[rows[0] :, columns[0] :][: len(rows), : len(columns)].all()
        assert mask.sum() == len(rows) * len(columns)
    height, width, top, left = map(np.array, (heights, widths, tops, lefts))
    # Bounds of area and aspect; rounding changes a side by up to half a pixel.
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * 784).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.4 * 784).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all()
    assert ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    # Uniform in their bounds, except for rounding and a few cut sides.
    share = height * width / 784
    assert np.quantile(share, [0.1, 0.5, 0.9]) == pytest.approx([0.058, 0.21, 0.362], abs=0.02)
    aspect = height / width
    assert np.quantile(aspect, [0.1, 0.5, 0.9]) == pytest.approx([0.60, 1.82, 3.03], abs=0.15)
    # Places are uniform inside the image, and rows independent of columns.
    places = []
    free = (height < SIDE) & (width < SIDE)
    for start, length in ((top, height), (left, width)):
        place = (start[free] + 0.5) / (SIDE - length[free] + 1)
        assert place.mean() == pytest.approx(0.5, abs=0.02)
        assert place.var() == pytest.approx(1 / 12, abs=0.006)
        places.append(place)
    assert np.corrcoef(places)[0, 1] == pytest.approx(0, abs=0.06)
    assert erased.any(axis=0).all()
    assert stats.chisquare(np.bincount(over_black[erased], minlength=256)).pvalue > 0.01


def test_mixup_mixes_pixels_and_targets_alike() -> None:
    # Ten classes in turn: an image and the previous one are never of one class.
    images, targets = run(("mixup",))
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    own = targets[np.arange(B), np.arange(B) % 10]
    np.testing.assert_allclose(targets[np.arange(B), np.arange(-1, B - 1) % 10], 1 - own, atol=1e-6)
    assert stats.kstest(own, stats.beta(MIXUP_ALPHA, MIXUP_ALPHA).cdf).pvalue > 0.01

    before = PIXELS.reshape(images.shape).astype(np.float64)
    share = own.astype(np.float64)[:, None, None]
    exact = share * before + (1 - share) * np.roll(before, 1, axis=0)
    assert np.abs(images - exact).max() < 0.5001


def test_mixup_of_one_image_is_the_image() -> None:
    images, targets = run(("mixup",), PIXELS[:1], TARGETS[:1])
    np.testing.assert_array_equal(images.reshape(1, -1), PIXELS[:1])
    np.testing.assert_allclose(targets, TARGETS[:1], rtol=1e-6)


def test_kinds_are_applied_in_order_and_are_independent() -> None:
    together, mixed = run(KINDS[::-1], background=9)
    images, targets = PIXELS, TARGETS
    for kind in ("shift-crop", "erasing", "mixup"):
        images, targets = run((kind,), images, targets, background=9)
        images = images.reshape(B, -1)
    np.testing.assert_array_equal(together.reshape(B, -1), images)
    np.testing.assert_array_equal(mixed, targets)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    seeds = [(1, 2), (1, 3), (2, 2), (1, 2)]
    first, *others, again = (run((kind,), PIXELS[:64], TARGETS[:64], seed) for seed in seeds)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all((other[0] != first[0]).any() for other in others)


def test_the_same_in_a_graph() -> None:
    eager = run(KINDS, PIXELS[:31], TARGETS[:31], seed=(5, 6))
    graph = tf.function(lambda *batch: augment(*batch, [5, 6], KINDS, 0), autograph=False)
    images, targets = graph(PIXELS[:31], TARGETS[:31])
    np.testing.assert_array_equal(images, eager[0].reshape(31, -1))
    np.testing.assert_array_equal(targets, eager[1])
