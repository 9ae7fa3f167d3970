"""What a classifier looks at: penultimate features and Grad-CAM.

In: a trained classifier and images. Out: arrays. This module must not know runs or how the arrays
are shown.

Shape letters: B batch, H W C feature map, D features, K classes.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.model.classifier import find_backbone
from fmnist_tf.model.preprocessing import SOURCE_SIDE

_CAM_BATCH = 16  # gradients keep every activation above the feature map


def build_inspector(classifier: keras.Sequential) -> keras.Model:
    """Return (B, 28, 28) uint8 -> [probabilities (B, K), penultimate features (B, D)].

    The features are what the last layer reads: one pass gives both.
    """
    pixels = keras.Input((SOURCE_SIDE, SOURCE_SIDE), dtype="uint8")
    tensor = pixels
    for layer in classifier.layers[:-1]:
        tensor = layer(tensor)
    return keras.Model(pixels, [classifier.layers[-1](tensor), tensor])


def run_grad_cam(classifier: keras.Sequential, images: np.ndarray, classes: np.ndarray) -> Any:
    """Return where a class was seen: Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

    Args:
        classifier: its last layer is dense with softmax.
        images: (N, 28, 28) uint8.
        classes: (N,) integers 0..K-1, the class that each map explains.

    Returns:
        (N, 28, 28) uint8, each map scaled so that its largest value is 255; zero where nothing
        speaks for the class. None for a network without a convolutional feature map.
    """
    backbone = find_backbone(classifier)
    if len(backbone.output_shape) != 4:
        return None
    above_map = classifier.layers.index(backbone) + 1

    @tf.function(autograph=False, reduce_retracing=True)
    def explain(batch: Any, wanted: Any) -> Any:
        tensor = batch
        for layer in classifier.layers[:above_map]:
            tensor = layer(tensor, training=False)
        feature_map = tensor
        with tf.GradientTape() as tape:
            tape.watch(feature_map)
            for layer in classifier.layers[above_map:-1]:
                tensor = layer(tensor, training=False)
            # The score before the softmax, as the paper has it: a sure guess has no gradient after.
            output = classifier.layers[-1]
            logits = tf.matmul(tensor, output.kernel) + output.bias
            score = tf.gather(logits, wanted, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(score, feature_map), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * feature_map, axis=3, keepdims=True))
        heat = tf.image.resize(heat, (SOURCE_SIDE, SOURCE_SIDE))[..., 0]
        return 255 * tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))

    maps = np.zeros((len(images), SOURCE_SIDE, SOURCE_SIDE), np.uint8)
    for first in range(0, len(images), _CAM_BATCH):
        part = slice(first, first + _CAM_BATCH)
        heat = explain(tf.constant(images[part]), tf.constant(classes[part], tf.int32))
        maps[part] = np.rint(heat.numpy())
    return maps
