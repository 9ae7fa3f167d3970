"""Penultimate features and Grad-CAM of a classifier.

Shape letters: B batch, H W C feature map, D features, K classes.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.model.blocks import block_output, find_blocks
from fmnist_tf.model.classifier import find_backbone

_CAM_BATCH = 16  # gradients keep every activation above the feature map
_MIN_CELLS = 7  # of a map's side; fewer show no more than a blob


def build_inspector(classifier: keras.Model) -> keras.Model:
    """Return (B, 28, 28) uint8 -> [probabilities (B, K), penultimate features (B, D)].

    The features are the input of the last layer.
    """
    return keras.Model(classifier.inputs[0], [classifier.outputs[0], classifier.layers[-1].input])


def run_grad_cam(
    classifier: keras.Model, images: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Return one Grad-CAM map for each image (Selvaraju et al. 2017, equations 1 and 2).

    The maps are of the deepest block whose output has at least 7x7 cells, else the most.

    Args:
        classifier: its last layer is dense with softmax.
        images: (N, 28, 28) uint8.
        classes: (N,) integers 0..K-1, the class that each map explains.

    Returns:
        (N, 28, 28) uint8, each map scaled so that its largest value is 255; all zero where no
        pixel raises the score of the class; and the cells of a map, (H, W). None for a backbone
        without a feature map.
    """
    backbone = find_backbone(classifier)
    if len(backbone.output_shape) != 4:
        return None
    position = classifier.layers.index(backbone)
    preprocess = keras.Model(classifier.inputs[0], classifier.layers[position - 1].output)
    cut = _find_map(backbone)
    to_map = keras.Model(backbone.input, cut)
    above = [*classifier.layers[position + 1 : -1]]
    if cut is not backbone.output:
        above.insert(0, keras.Model(cut, backbone.output))

    @tf.function(autograph=False, reduce_retracing=True)
    def explain(batch: Any, wanted: Any) -> Any:
        tensor = feature_map = to_map(preprocess(batch), training=False)
        with tf.GradientTape() as tape:
            tape.watch(feature_map)
            for layer in above:
                tensor = layer(tensor, training=False)
            # The score before the softmax, as in the paper: at a probability of 1 the softmax has
            # no gradient.
            output = classifier.layers[-1]
            logits = tf.matmul(tensor, output.kernel) + output.bias
            score = tf.gather(logits, wanted, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(score, feature_map), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * feature_map, axis=3, keepdims=True))
        heat = tf.image.resize(heat, (IMAGE_SIZE, IMAGE_SIZE))[..., 0]
        return 255 * tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))

    maps = np.zeros((len(images), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for first in range(0, len(images), _CAM_BATCH):
        part = slice(first, first + _CAM_BATCH)
        heat = explain(tf.constant(images[part]), tf.constant(classes[part], tf.int32))
        maps[part] = np.rint(heat.numpy())
    return maps, tuple(cut.shape[1:3])


def _find_map(backbone: keras.Model) -> keras.KerasTensor:
    """Return the feature map whose cells a Grad-CAM map has."""
    outputs = [block_output(backbone, block) for block in find_blocks(backbone)]
    maps = [output for output in (*outputs, backbone.output) if len(output.shape) == 4]
    return max(reversed(maps), key=lambda output: min(*output.shape[1:3], _MIN_CELLS))
