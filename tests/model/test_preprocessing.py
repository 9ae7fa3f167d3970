"""Preprocessing is the official one of each backbone."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from fmnist_tf.model import preprocessing
from fmnist_tf.model.backbones import BACKBONES

RAMP = np.tile(np.arange(256), 7)[: 2 * 784].reshape(2, 28, 28).astype(np.uint8)

applications = keras.applications


def by_mode(mode: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: applications.imagenet_utils.preprocess_input(rgb, mode=mode)


def as_grey(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., :1] / 255


OFFICIAL = {
    "resnet50": applications.resnet50.preprocess_input,
    "vgg16": applications.vgg16.preprocess_input,
    "efficientnetv2-b0": by_mode("torch"),
    "inceptionv3": applications.inception_v3.preprocess_input,
    "mobilenetv3": by_mode("tf"),
    "convnext-tiny": by_mode("torch"),
    "resnet8": as_grey,
    "resnet6": as_grey,
    "resnet18": as_grey,
    "mlp": as_grey,
}
# Networks that can do it themselves; their preprocess_input does nothing.
INSIDE = {
    "efficientnetv2-b0": applications.EfficientNetV2B0,
    "mobilenetv3": applications.MobileNetV3Small,
    "convnext-tiny": applications.ConvNeXtTiny,
}


def preprocess(name: str, images: np.ndarray, side: int) -> np.ndarray:
    return build(name, side).predict(images, verbose=0)


def build(name: str, side: int) -> keras.Model:
    pixels = keras.Input((28, 28))
    value_range = BACKBONES[name].value_range
    return keras.Model(pixels, preprocessing.preprocess(pixels, value_range, side))


def test_every_spec_is_compared() -> None:
    assert list(OFFICIAL) == list(BACKBONES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_value_range_is_the_official_one(name: str) -> None:
    assert set(RAMP.flat) == set(range(256))
    rgb = np.repeat(RAMP[..., None].astype(np.float32), 3, axis=-1)
    expected = OFFICIAL[name](rgb.copy())
    np.testing.assert_allclose(preprocess(name, RAMP, 28), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSIDE)
def test_value_range_is_that_of_the_network_itself(name: str) -> None:
    ramp = np.arange(32 * 32 * 2, dtype=np.float32).reshape(2, 32, 32, 1) % 256
    network = INSIDE[name](
        include_top=False, weights=None, input_shape=(32, 32, 3), include_preprocessing=True
    )
    first = next(layer for layer in network.layers if layer.weights)
    inside = keras.Model(network.input, first.input)
    assert len(inside.layers) > 1
    expected = inside(np.repeat(ramp, 3, axis=-1), training=False)
    value_range = build(name, 32).layers[-1]
    np.testing.assert_allclose(value_range(ramp), expected, rtol=1e-6, atol=1e-5)


def test_images_of_the_right_side_are_not_resized() -> None:
    kinds = [type(layer) for layer in build("mlp", 28).layers]
    assert keras.layers.Resizing not in kinds
    assert keras.layers.Resizing in [type(layer) for layer in build("mlp", 27).layers]


@pytest.mark.parametrize("side", [28, 56])
def test_floats_of_0_to_1_are_the_bytes_they_stand_for(side: int) -> None:
    expected = preprocess("resnet50", RAMP, side)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(preprocess("resnet50", RAMP.astype(dtype), side), expected)
        found = preprocess("resnet50", RAMP.astype(dtype) / 255, side)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    # Each image by itself: dark bytes stay dark.
    dark = np.minimum(RAMP, 2)
    np.testing.assert_array_equal(preprocess("mlp", dark, 28)[..., 0] * 255, dark)
    mixed = np.stack([RAMP[0] / 255, RAMP[1]])
    np.testing.assert_allclose(preprocess("resnet50", mixed, side), expected, atol=1e-4)


def test_black_is_zero_like_padding() -> None:
    black = preprocess("resnet18", np.zeros((1, 28, 28), np.uint8), 28)
    np.testing.assert_array_equal(black, np.zeros((1, 28, 28, 1)))


def test_resize_is_bilinear_and_precedes_the_value_range() -> None:
    rgb = np.repeat(RAMP[..., None].astype(np.float32), 3, axis=-1)
    resized = keras.ops.image.resize(rgb, (56, 56), interpolation="bilinear")
    expected = OFFICIAL["resnet50"](np.array(resized))
    np.testing.assert_allclose(preprocess("resnet50", RAMP, 56), expected, atol=1e-3)
