"""Random changes of training images: raw pixel rows in, raw pixel rows out.

In: one batch of uint8 pixels and its targets, and a seed for that batch. Out: the same shapes and
dtypes, changed. Graph operations over the whole batch at once; every draw is a pure function of the
seed, so a run is one of (seed, epoch, step). This module must not know networks, runs or where the
pixels come from.

Shape letters: B batch, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Collection

import tensorflow as tf

from fmnist_tf.model.preprocessing import N_PIXELS, SOURCE_SIDE
from fmnist_tf.settings.config import RANDOM_AUGMENTATIONS

# Pixels an image is moved by at most, each way: Zhong et al. 2020 pad Fashion-MNIST by 4 and crop.
SHIFT = 4
# The settings of Zhong et al. 2020: probability, bounds of the area's share and of height / width.
ERASING_PROBABILITY = 0.5
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)
# Zhang et al. 2018 find 0.1 to 0.4 best on ImageNet and underfitting above; the 1 of their CIFAR-10
# networks is for 200 epochs.
MIXUP_ALPHA = 0.2


def augment(
    pixels: tf.Tensor,
    targets: tf.Tensor,
    seed: tf.Tensor,
    kinds: Collection[str],
    background: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the batch with each kind of change applied, in the order of `RANDOM_AUGMENTATIONS`.

    A flip has two outcomes only and is a view of the source instead; see `batches.StackedRows`.

    - shift-crop: moved by a whole number of pixels, uniform in -SHIFT..SHIFT each way, and the
      uncovered border filled with the background: the padding and cropping of the literature.
    - erasing: with probability 1/2 a rectangle is filled with noise, each pixel uniform in 0..255
      (algorithm 1 of Zhong et al. 2020, the filling that does best there). Share of the area and
      aspect are uniform in their bounds and the place uniform among those inside the image; a side
      that would be longer than the image is cut to it, where the paper draws again (1 in 30).
    - mixup: x <- L x + (1 - L) x' and the same of the targets, with L of Beta(MIXUP_ALPHA,
      MIXUP_ALPHA) for each image by itself, as in the formula of Zhang et al. 2018 (their code
      draws one for a batch). x' is the image before it in the batch: batches are in random order
      already. Pixels are rounded to whole numbers.

    What one kind draws does not depend on which others are applied.

    Args:
        pixels: (B, 784) uint8.
        targets: (B, K) float32, rows that sum to 1; soft after mixup, else as they were.
        seed: (2,) int32, of this batch.
        kinds: some of `RANDOM_AUGMENTATIONS`; none leaves everything as it is.
        background: 0..255, the grey beyond an image's border.
    """
    images = tf.reshape(pixels, (-1, SOURCE_SIDE, SOURCE_SIDE))
    seeds = {
        kind: tf.random.fold_in(seed, number) for number, kind in enumerate(RANDOM_AUGMENTATIONS)
    }
    if "shift-crop" in kinds:
        images = _shift(images, seeds["shift-crop"], background)
    if "erasing" in kinds:
        images = _erase(images, seeds["erasing"])
    if "mixup" in kinds:
        images, targets = _mix(images, targets, seeds["mixup"])
    return tf.reshape(images, (-1, N_PIXELS)), targets


def _shift(images: tf.Tensor, seed: tf.Tensor, background: int) -> tf.Tensor:
    n = tf.shape(images)[0]
    first = tf.random.stateless_uniform((2, n, 1), seed, 0, 2 * SHIFT + 1, tf.int32)
    border = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT))
    images = tf.pad(images, border, constant_values=tf.cast(background, tf.uint8))
    for axis in (0, 1):
        # Whole rows are gathered fast; turned twice, the image stands as it did.
        rows = tf.gather(images, first[axis] + tf.range(SOURCE_SIDE), batch_dims=1)
        images = tf.transpose(rows, (0, 2, 1))
    return images


def _erase(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    shape_seed, noise_seed = tf.unstack(tf.random.split(seed))
    n = tf.shape(images)[0]
    chosen, area, aspect, top, left = tf.unstack(tf.random.stateless_uniform((5, n, 1), shape_seed))
    area = SOURCE_SIDE**2 * _within(ERASED_AREA, area)
    aspect = _within(ERASED_ASPECT, aspect)
    height, width = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    # Of so many places, each as likely as another; a longer side begins at or before the edge.
    top = tf.floor(top * (SOURCE_SIDE - height + 1))
    left = tf.floor(left * (SOURCE_SIDE - width + 1))
    at = tf.range(SOURCE_SIDE, dtype=tf.float32)
    rows = (at >= top) & (at < top + height) & (chosen < ERASING_PROBABILITY)
    columns = (at >= left) & (at < left + width)
    # Four bytes a draw.
    words = tf.random.stateless_uniform(
        (n, SOURCE_SIDE, SOURCE_SIDE // 4), noise_seed, None, None, tf.uint32
    )
    noise = tf.reshape(tf.bitcast(words, tf.uint8), (-1, SOURCE_SIDE, SOURCE_SIDE))
    return tf.where(rows[:, :, None] & columns[:, None, :], noise, images)


def _within(bounds: tuple[float, float], share: tf.Tensor) -> tf.Tensor:
    low, high = bounds
    return low + (high - low) * share


def _mix(images: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # The share of one of two gamma draws in both is a beta draw.
    one, other = tf.unstack(
        tf.random.stateless_gamma((2, tf.shape(images)[0], 1), seed, MIXUP_ALPHA)
    )
    own = one / (one + other)
    mixed = _blend(tf.cast(images, tf.float32), own[:, :, None])
    return tf.cast(tf.round(mixed), tf.uint8), _blend(targets, own)


def _blend(values: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    return own * values + (1 - own) * tf.roll(values, 1, axis=0)
