"""Raw grey pixels -> what a backbone was trained on, as ordinary Keras layers inside the model.

In: uint8 images as they stand in the CSV. Out: float32 RGB (or BGR) at the backbone's side and
value range. Because these layers are saved with the model, training and serving cannot disagree,
and the saved model loads with Keras alone. This module must not know any particular backbone.

Shape letters: B batch, S side of the resized image.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

SOURCE_SIDE = 28
N_PIXELS = SOURCE_SIDE * SOURCE_SIDE


@dataclass(frozen=True)
class ValueRange:
    """The affine map from grey 0..255 to each of a backbone's three input channels.

    Attributes:
        scale: factor per channel, in the backbone's channel order.
        offset: what is added after scaling, per channel.
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


# keras.applications.imagenet_utils.preprocess_input, mode "caffe": BGR, ImageNet means, unscaled.
CAFFE = ValueRange(scale=(1.0, 1.0, 1.0), offset=(-103.939, -116.779, -123.68))


def build_preprocessing(value_range: ValueRange, side: int) -> list[keras.Layer]:
    """Return the layers from (B, 28, 28) uint8 to (B, S, S, 3) float32.

    Grey to RGB and the value range are one fixed 1x1 convolution: each channel is
    `scale * grey + offset`. It follows the resize, so that one channel is resized and not three.
    """
    value_range_layer = keras.layers.Conv2D(3, 1, name="value_range", trainable=False)
    value_range_layer.build((None, side, side, 1))
    value_range_layer.set_weights(
        [
            np.asarray(value_range.scale, np.float32).reshape(1, 1, 1, 3),
            np.asarray(value_range.offset, np.float32),
        ]
    )
    return [
        keras.layers.Reshape((SOURCE_SIDE, SOURCE_SIDE, 1), name="channel"),
        # Casts to float32; Keras layers leave integers as they are.
        keras.layers.Rescaling(1.0, name="to_float"),
        keras.layers.Resizing(side, side, interpolation="bilinear", name="resize"),
        value_range_layer,
    ]
