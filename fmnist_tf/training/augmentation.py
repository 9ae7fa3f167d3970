"""Random augmentation of training images: raw pixels in, raw pixels out.

Graph operations on a whole batch; the random numbers are a pure function of the batch's seed.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import keras
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.settings.config import RANDOM_AUGMENTATIONS

# The largest shift in pixels. Zhong et al. 2020 pad Fashion-MNIST by 4 for 300 epochs; in 24 and 50
# epochs 1 was better on validation images than 2 and 4 (runs/LOG.md).
SHIFT = 1
# The settings of Zhong et al. 2020: probability, bounds of the erased fraction of the area and of
# height / width.
ERASING_PROBABILITY = 0.5
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)
# Zhang et al. 2018 find 0.1 to 0.4 best on ImageNet, with underfitting above; they train CIFAR-10
# with 1 for 200 epochs.
MIXUP_ALPHA = 0.2
# Turns by up to 36 degrees, and moves by up to 3 pixels. Keras' own 0.5 turns by up to 180 degrees.
RANDAUGMENT_FACTOR = 0.1


def augment(
    pixels: tf.Tensor,
    targets: tf.Tensor,
    seed: tf.Tensor,
    kinds: Collection[str],
    background: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the augmented batch: pixels (B, 784) uint8 and targets (B, K) float32.

    The kinds are applied in the order below, and the random numbers of each do not depend on the
    others. A flip is a view of the rows instead; see `batches.StackedRows`.

    - shift-crop: pads with the background and crops, so that the image moves by a uniform
      -SHIFT..SHIFT pixels in each direction.
    - randaugment: `keras.layers.RandAugment` (Cubuk et al. 2020): two of 11 operations, which Keras
      draws once for the batch; their strengths differ from image to image.
    - erasing: with probability 1/2 fills a rectangle with uniform noise (algorithm 1 of Zhong et
      al. 2020). Area, aspect ratio and place are uniform. A side longer than the image is cut to
      it; the paper draws again (1 in 30). `keras.layers.RandomErasing` has other areas and noise.
    - mixup: `keras.layers.MixUp`: x <- L x + (1 - L) x', and the same for the targets, with x' of
      the same batch and L of Beta(MIXUP_ALPHA, MIXUP_ALPHA) for each image (Zhang et al. 2018).
    - cutmix: `keras.layers.CutMix`: replaces a rectangle by that of x', and mixes the targets by
      its area, which is uniform (Yun et al. 2019). With mixup too, each batch gets one of the two.

    Args:
        pixels: (B, 784) uint8.
        targets: (B, K) float32, rows that sum to 1.
        seed: (2,) int32, of this batch.
        kinds: some of `RANDOM_AUGMENTATIONS`.
        background: 0..255, the grey level beyond an image's border.
    """
    images = tf.reshape(pixels, (-1, IMAGE_SIZE, IMAGE_SIZE))
    seeds = {
        kind: tf.random.fold_in(seed, number) for number, kind in enumerate(RANDOM_AUGMENTATIONS)
    }
    if "shift-crop" in kinds:
        images = _shift(images, seeds["shift-crop"], background)
    if "randaugment" in kinds:
        images, targets = _apply("randaugment", images, targets, seeds)
    if "erasing" in kinds:
        images = _erase(images, seeds["erasing"])
    if mixing := [kind for kind in ("mixup", "cutmix") if kind in kinds]:
        choice = tf.random.stateless_uniform((), seed, 0, len(mixing), tf.int32)
        branches = [functools.partial(_apply, kind, images, targets, seeds) for kind in mixing]
        images, targets = tf.switch_case(choice, branches)
    return tf.reshape(images, (-1, N_PIXELS)), targets


@functools.cache
def _build(kind: str) -> keras.layers.Layer:
    with tf.init_scope():  # a layer has variables, which no graph may own
        layer = {
            "randaugment": lambda: keras.layers.RandAugment(factor=RANDAUGMENT_FACTOR),
            "mixup": lambda: keras.layers.MixUp(MIXUP_ALPHA),
            "cutmix": lambda: keras.layers.CutMix(factor=(1.0, 1.0)),  # alpha, of Beta(1, 1)
        }[kind]()
        layer.build((None, IMAGE_SIZE, IMAGE_SIZE, 1))
    return layer


def _apply(
    kind: str, images: tf.Tensor, targets: tf.Tensor, seeds: Mapping[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Call a Keras layer with seeds in place of the variables that its generators count in."""
    layer = _build(kind)
    states = [
        tf.cast(tf.random.fold_in(seeds[kind], number), variable.dtype)
        for number, variable in enumerate(layer.non_trainable_variables)
    ]
    inputs = {"images": tf.cast(images, tf.float32)[..., tf.newaxis], "labels": targets}
    outputs, _ = layer.stateless_call([], states, inputs, training=True)
    levels = tf.clip_by_value(tf.round(outputs["images"][..., 0]), 0, 255)
    return tf.cast(levels, tf.uint8), tf.cast(outputs["labels"], tf.float32)


def _shift(images: tf.Tensor, seed: tf.Tensor, background: int) -> tf.Tensor:
    n = tf.shape(images)[0]
    first = tf.random.stateless_uniform((2, n, 1), seed, 0, 2 * SHIFT + 1, tf.int32)
    border = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT))
    images = tf.pad(images, border, constant_values=tf.cast(background, tf.uint8))
    for axis in (0, 1):
        # Gathering rows is fast; the second transposition undoes the first.
        rows = tf.gather(images, first[axis] + tf.range(IMAGE_SIZE), batch_dims=1)
        images = tf.transpose(rows, (0, 2, 1))
    return images


def _erase(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    shape_seed, noise_seed = tf.unstack(tf.random.split(seed))
    n = tf.shape(images)[0]
    chosen, area, aspect, top, left = tf.unstack(tf.random.stateless_uniform((5, n, 1), shape_seed))
    area = IMAGE_SIZE**2 * _within(ERASED_AREA, area)
    aspect = _within(ERASED_ASPECT, aspect)
    height, width = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    # Uniform among the places inside the image; a side longer than the image starts at its edge.
    top = tf.floor(top * (IMAGE_SIZE - height + 1))
    left = tf.floor(left * (IMAGE_SIZE - width + 1))
    at = tf.range(IMAGE_SIZE, dtype=tf.float32)
    rows = (at >= top) & (at < top + height) & (chosen < ERASING_PROBABILITY)
    columns = (at >= left) & (at < left + width)
    # Each random number gives four bytes.
    words = tf.random.stateless_uniform(
        (n, IMAGE_SIZE, IMAGE_SIZE // 4), noise_seed, None, None, tf.uint32
    )
    noise = tf.reshape(tf.bitcast(words, tf.uint8), (-1, IMAGE_SIZE, IMAGE_SIZE))
    return tf.where(rows[:, :, None] & columns[:, None, :], noise, images)


def _within(bounds: tuple[float, float], fraction: tf.Tensor) -> tf.Tensor:
    low, high = bounds
    return low + (high - low) * fraction
