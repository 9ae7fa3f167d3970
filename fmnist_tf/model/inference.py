"""A saved model's outputs for many images, batch by batch, computed as its folded float32 twin.

Shape letters: N images, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_PIXELS_PER_BATCH = 32 * 224 * 224  # after resizing; bounds the memory of a forward pass
_LARGEST_BATCH = 1024

RunBatches = Callable[[np.ndarray, Callable[[int, int], None] | None], Iterator[list[np.ndarray]]]
"""Images and a progress callback -> a list of outputs for each batch."""


def run_model(
    model: keras.Model, images: np.ndarray, show: Callable[[int, int], None] | None = None
) -> list[np.ndarray]:
    """Return each output of the model for all images; see `compile_model`."""
    return run_all(compile_model(model), images, show)


def run_all(
    run_batches: RunBatches, images: np.ndarray, show: Callable[[int, int], None] | None = None
) -> list[np.ndarray]:
    """Return each output for all images, the batches joined."""
    parts = list(run_batches(images, show))
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def compile_model(model: keras.Model) -> RunBatches:
    """Return a function that yields each output of the model, batch after batch, for inference.

    The model computes as its folded twin in float32: what differs is the order of roundings.

    Args:
        model: (B, 28, 28) uint8 -> one or more tensors (B, ...).

    Returns:
        A function of images, (N, 784) or (N, 28, 28) uint8, maybe mapped from disk; and of what
        hears (done, N) after each batch, or None.
    """
    import tensorflow as tf

    from fmnist_tf.model.classifier import find_backbone
    from fmnist_tf.model.folding import fold_model

    side = find_backbone(model).input_shape[1]
    size = min(_LARGEST_BATCH, max(1, _PIXELS_PER_BATCH // side**2))
    # As constants ResNet50's weights would cost over a gigabyte, and several seconds before the
    # first image, and spare a twelfth of a batch's time at 224 pixels after it (runs/LOG.md).
    folded = fold_model(model, "float32", frozen=True, constant=False)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)])
    def predict(batch: tf.Tensor) -> list[tf.Tensor]:
        # Without `training` Keras 3.15 may run nested layers in training mode.
        return tf.nest.flatten(folded(batch, training=False))

    def run_batches(
        images: np.ndarray, show: Callable[[int, int], None] | None
    ) -> Iterator[list[np.ndarray]]:
        for first in range(0, len(images), size):
            batch = np.reshape(images[first : first + size], (-1, 28, 28))
            yield [output.numpy() for output in predict(tf.constant(batch))]
            if show:
                show(first + len(batch), len(images))

    return run_batches


def average_flips(run_batches: RunBatches) -> RunBatches:
    """Return a function whose first output is the mean over each image and its mirror image.

    That output is the probabilities; what else the model gives stays that of the image itself.
    """

    def run_both(
        images: np.ndarray, show: Callable[[int, int], None] | None
    ) -> Iterator[list[np.ndarray]]:
        mirrored = np.reshape(images, (-1, 28, 28))[:, :, ::-1]  # a view: what is mapped stays so
        both = zip(run_batches(images, show), run_batches(mirrored, None), strict=True)
        for (probabilities, *others), (of_mirrored, *_) in both:
            yield [(probabilities + of_mirrored) / 2, *others]

    return run_both
