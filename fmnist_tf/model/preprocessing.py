"""Raw grey pixels -> a backbone's input, as ordinary Keras layers that are saved with the model.

Training and serving cannot disagree, and the saved model loads with Keras alone.

Shape letters: B batch, S side of the resized image, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_tf.data import IMAGE_SIZE


@dataclass(frozen=True)
class ValueRange:
    """The affine map from grey 0..255 to each of a backbone's input channels.

    Attributes:
        scale: factor per channel, in the backbone's channel order; C of them, 1 or 3.
        offset: added after scaling, per channel.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]


# keras.applications.imagenet_utils.preprocess_input, modes "tf" (-1..1) and "torch" (0..1, then
# ImageNet means and deviations).
UNIT_SIGNED = ValueRange(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCH = ValueRange(
    scale=tuple(1 / (255 * deviation) for deviation in _DEVIATIONS),
    offset=tuple(-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)),
)
# One grey channel, 0..1, for networks without pretrained weights. Black is zero, so zero padding
# continues the black around a garment.
UNIT = ValueRange(scale=(1 / 255,), offset=(0.0,))


_TAKES_UNIT = "grey_level"  # the layer that multiplies floats of 0..1


def preprocess(pixels: keras.KerasTensor, value_range: ValueRange, side: int) -> keras.KerasTensor:
    """Apply the layers from (B, 28, 28) grey 0..255 to (B, S, S, C) float32.

    An image without a pixel above 1.5 is taken for floats of 0..1, which resizing may have raised
    a little, and multiplied by 255. Others pass exactly as they are.

    One fixed 1x1 convolution makes the channels, each `scale * grey + offset`. It follows the
    bilinear resize, so that one channel is resized and not three. At S = 28 nothing is resized.
    """
    layers = keras.layers
    x = layers.Reshape((IMAGE_SIZE, IMAGE_SIZE, 1), name="channel")(pixels)
    # Casts to float32; Keras layers leave integers as they are.
    x = layers.Rescaling(1.0, name="to_float")(x)
    peak = layers.GlobalMaxPooling2D(keepdims=True, name="peak")(x)  # (B, 1, 1, 1)
    # 0 up to 1.5, and 2 from 2 on: the factors 255 and 1.
    step = layers.ReLU(max_value=2.0, threshold=1.5, name="is_grey_level")(peak)
    factor = layers.Rescaling(-127.0, 255.0, name="unit_factor")(step)
    x = layers.Multiply(name=_TAKES_UNIT)([x, factor])
    if side != IMAGE_SIZE:
        resize = layers.Resizing(side, side, interpolation="bilinear", name="resize")
        # Its own default is training=True (Keras 3.15), which all layers after it would inherit:
        # `model(images)` would normalize by the batch and change BatchNorm's statistics.
        x = resize(x, training=False)
    n_channels = len(value_range.scale)
    value_range_layer = layers.Conv2D(n_channels, 1, name="value_range", trainable=False)
    value_range_layer.build((None, side, side, 1))
    value_range_layer.set_weights(
        [
            np.asarray(value_range.scale, np.float32).reshape(1, 1, 1, n_channels),
            np.asarray(value_range.offset, np.float32),
        ]
    )
    return value_range_layer(x)


def take_bytes_only(model: keras.Model, is_binary: bool = False) -> keras.Model:
    """Return the model without the step for floats of 0..1, on the same variables.

    In int8 that step has no precision: it would compute its factor 1 as 255 - 254. The factor of
    binary images, whose pixels are 0 and 1, is always 255.
    """

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        if layer.name != _TAKES_UNIT:
            return layer(*inputs, **options)
        return keras.layers.Rescaling(255.0)(inputs[0][0]) if is_binary else inputs[0][0]

    return keras.models.clone_model(
        model,
        input_tensors=keras.Input((IMAGE_SIZE, IMAGE_SIZE), dtype="uint8"),
        clone_function=lambda layer: layer,
        call_function=call,
    )
