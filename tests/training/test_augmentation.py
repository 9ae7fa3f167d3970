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
    fraction = height * width / 784
    assert np.quantile(fraction, [0.1, 0.5, 0.9]) == pytest.approx([0.058, 0.21, 0.362], abs=0.02)
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


def partners(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, of targets mixed from one-hot ones of B classes, the other image and its part."""
    own = targets[np.arange(B), np.arange(B)]
    others = targets.copy()
    others[np.arange(B), np.arange(B)] = 0
    mixed = own < 1 - 1e-6
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(others.max(axis=1)[mixed], 1 - own[mixed], atol=1e-5)
    other = np.where(mixed, others.argmax(axis=1), np.arange(B))
    return other, own.astype(np.float64)


def test_mixup_mixes_pixels_and_targets_alike() -> None:
    images, targets = run(("mixup",), targets=np.eye(B, dtype=np.float32))
    other, own = partners(targets)
    assert stats.kstest(own, stats.beta(MIXUP_ALPHA, MIXUP_ALPHA).cdf).pvalue > 0.01
    before = PIXELS.reshape(images.shape).astype(np.float64)
    fraction = own[:, None, None]
    assert np.abs(images - (fraction * before + (1 - fraction) * before[other])).max() < 0.51


def test_cutmix_pastes_a_rectangle_and_mixes_the_targets_by_its_area() -> None:
    images, targets = run(("cutmix",), targets=np.eye(B, dtype=np.float32))
    other, own = partners(targets)
    assert stats.kstest(own, stats.uniform.cdf).pvalue > 0.01  # Beta(1, 1)
    before = PIXELS.reshape(images.shape)
    inside = np.zeros((SIDE, SIDE))
    for n in np.flatnonzero(other != np.arange(B)):
        pasted = images[n] != before[n]
        rows, columns = pasted.any(axis=1).nonzero()[0], pasted.any(axis=0).nonzero()[0]
        if len(rows):  # a very small one may lie between the pixels
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            np.testing.assert_array_equal(images[n][box], before[other[n]][box])
            side = SIDE * np.sqrt(1 - own[n])
            assert abs(rows[-1] + 1 - rows[0] - side) < 2
            assert abs(columns[-1] + 1 - columns[0] - side) < 2
            inside[box] += 1
    assert (inside[1:, 1:] > 0).all()  # Keras never pastes onto the first row and column


def test_mixup_and_cutmix_take_turns() -> None:
    chosen = []
    for step in range(40):
        seed = (1, step)
        images, _ = run(("cutmix", "mixup"), PIXELS[:8], TARGETS[:8], seed)
        alone = [run((kind,), PIXELS[:8], TARGETS[:8], seed)[0] for kind in ("mixup", "cutmix")]
        same = [(images == one).all() for one in alone]
        assert sum(same) == 1
        chosen.append(same[0])
    assert stats.binomtest(sum(chosen), 40).pvalue > 0.01


def test_randaugment_changes_images_by_different_strengths() -> None:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[8:20, 10:18] = np.linspace(60, 200, 8)
    same = np.tile(image.ravel(), (32, 1))
    outcomes = [run(("randaugment",), same, TARGETS[:32], (3, step)) for step in range(20)]
    for _, targets in outcomes:
        np.testing.assert_array_equal(targets, TARGETS[:32])
    changed = [images for images, _ in outcomes if (images != image).any()]
    assert len(changed) > 10
    assert sum(len(np.unique(images, axis=0)) > 4 for images in changed) > 5
    # As a rule it keeps the object: the image stays like itself.
    kept = [np.corrcoef(np.ravel(images[0]), image.ravel())[0, 1] for images in changed]
    assert np.median(kept) > 0.5


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_one_image_is_mixed_with_itself(kind: str) -> None:
    images, targets = run((kind,), PIXELS[:1], TARGETS[:1])
    np.testing.assert_array_equal(images.reshape(1, -1), PIXELS[:1])
    np.testing.assert_allclose(targets, TARGETS[:1], rtol=1e-5)


def test_kinds_are_applied_in_order_and_are_independent() -> None:
    for mixing in ("mixup", "cutmix"):
        order = ("shift-crop", "randaugment", "erasing", mixing)
        images, targets = PIXELS[:64], TARGETS[:64]
        together, mixed = run(order[::-1], images, targets, background=9)
        for kind in order:
            images, targets = run((kind,), images, targets, background=9)
            images = images.reshape(64, -1)
        np.testing.assert_array_equal(together.reshape(64, -1), images)
        np.testing.assert_array_equal(mixed, targets)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    seeds = [(1, 2), (1, 3), (2, 2), (1, 2)]
    first, *others, again = (run((kind,), PIXELS[:64], TARGETS[:64], seed) for seed in seeds)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all((other[0] != first[0]).any() for other in others)


@pytest.mark.parametrize("kinds", [KINDS[:3], KINDS[3:]])
def test_the_same_in_a_graph(kinds: tuple[str, ...]) -> None:
    eager = run(kinds, PIXELS[:31], TARGETS[:31], seed=(5, 6))
    graph = tf.function(lambda *batch: augment(*batch, [5, 6], kinds, 0), autograph=False)
    images, targets = graph(PIXELS[:31], TARGETS[:31])
    # A graph may round in another order.
    assert (images.numpy() != eager[0].reshape(31, -1)).mean() < 1e-3
    np.testing.assert_allclose(targets, eager[1], atol=1e-6)
