"""A saved model's outputs for many images, computed batch by batch by its folded float32 twin.

Shape letters: N images, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.images import PixelRows

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_PIXELS_PER_BATCH = 32 * 224 * 224  # after resizing; bounds the memory of a forward pass
_LARGEST_BATCH = 1024

Progress = Callable[[int, int], None]
"""Called with (images done, N) after each batch."""

RunBatches = Callable[[PixelRows, Progress | None], Iterator[list[np.ndarray]]]
"""(N, 784) or (N, 28, 28) uint8 images, progress -> a list of outputs for each batch."""


def run_all(
    run_batches: RunBatches, images: PixelRows, show: Progress | None = None
) -> list[np.ndarray]:
    """Return each output for all images, the batches joined."""
    parts = list(run_batches(images, show))
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def compile_model(model: keras.Model) -> Callable[..., Iterator[list[np.ndarray]]]:
    """Return a function that yields the model's outputs batch by batch, in inference mode.

    The model takes (B, 28, 28) uint8 and returns one or more tensors (B, ...).

    It is a `RunBatches` that takes `flips`, too: whether its first output, the probabilities, is
    the mean over each image and its mirror image. The others stay those of the image itself.

    The folded twin rounds in another order than the model; else it computes the same.
    """
    import tensorflow as tf

    from fmnist_tf.model.classifier import find_backbone
    from fmnist_tf.model.folding import fold_model

    side = find_backbone(model).input_shape[1]
    size = min(_LARGEST_BATCH, max(1, _PIXELS_PER_BATCH // side**2))
    # As constants ResNet50's weights would cost over a gigabyte and several seconds before the
    # first image, to make a batch at 224 pixels 8 % faster (runs/LOG.md).
    folded = fold_model(model, "float32", frozen=True, constant=False)
    spec = tf.TensorSpec((None, IMAGE_SIZE, IMAGE_SIZE), tf.uint8)

    @tf.function(autograph=False, input_signature=[spec])
    def predict(batch: tf.Tensor) -> list[tf.Tensor]:
        return tf.nest.flatten(folded(batch, training=False))

    def run_batches(
        images: PixelRows, show: Progress | None, flips: bool = False
    ) -> Iterator[list[np.ndarray]]:
        for first in range(0, len(images), size):
            batch = np.reshape(images[first : first + size], (-1, IMAGE_SIZE, IMAGE_SIZE))
            outputs = [output.numpy() for output in predict(tf.constant(batch))]
            if flips:
                of_mirrored = predict(tf.constant(batch[:, :, ::-1]))[0].numpy()
                outputs[0] = (outputs[0] + of_mirrored) / 2
            yield outputs
            if show:
                show(first + len(batch), len(images))

    return run_batches
