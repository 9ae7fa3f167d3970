"""Preprocessing is the official one of each backbone."""

from __future__ import annotations

from inspect import ismodule

import keras
import numpy as np
import pytest

from fmnist_tf.model.applications import find_value_range, list_applications
from fmnist_tf.model.backbones import find_backbone_spec
from fmnist_tf.model.preprocessing import ValueRange, take_bytes_only
from fmnist_tf.model.preprocessing import preprocess as add_layers

RAMP = np.tile(np.arange(256), 7)[: 2 * 784].reshape(2, 28, 28).astype(np.uint8)
RGB = np.repeat(RAMP[..., None].astype(np.float32), 3, axis=-1)


def preprocess(name: str, images: np.ndarray, side: int) -> np.ndarray:
    return build(find_backbone_spec(name, None)[0].value_range, side).predict(images, verbose=0)


def build(value_range: ValueRange, side: int) -> keras.Model:
    pixels = keras.Input((28, 28))
    return keras.Model(pixels, add_layers(pixels, value_range, side))


def test_value_ranges_are_the_official_ones() -> None:
    modules = [module for module in vars(keras.applications).values() if ismodule(module)]
    inside = set()
    for name in list_applications().values():
        found = find_value_range(name)
        module = next((m for m in modules if hasattr(m, name)), keras.applications.mobilenet_v3)
        expected = module.preprocess_input(RGB.copy())
        if np.array_equal(expected, RGB):  # test_backbones.py compares with the network itself
            inside.add(name.split("Net")[0].split("NeXt")[0])
            continue
        values = RGB * np.float32(found.scale) + np.float32(found.offset)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-4, err_msg=name)
    assert inside == {"Efficient", "Mobile", "Conv"}


@pytest.mark.parametrize("name", ["resnet8", "resnet6", "resnet18", "mlp"])
def test_our_own_networks_take_grey_of_0_to_1(name: str) -> None:
    np.testing.assert_allclose(preprocess(name, RAMP, 28), RAMP[..., None] / 255, atol=1e-6)


def test_images_of_the_right_side_are_not_resized() -> None:
    for side in (27, 28):
        kinds = [type(layer) for layer in build(ValueRange((1.0,), (0.0,)), side).layers]
        assert (keras.layers.Resizing in kinds) == (side != 28)


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


def test_resize_is_bilinear_and_precedes_the_value_range() -> None:
    resized = keras.ops.image.resize(RGB, (56, 56), interpolation="bilinear")
    expected = keras.applications.resnet50.preprocess_input(np.array(resized))
    np.testing.assert_allclose(preprocess("resnet50", RAMP, 56), expected, atol=1e-3)


@pytest.mark.parametrize(("images", "is_binary"), [(RAMP, False), (RAMP % 2, True)])
def test_without_the_step_for_floats_bytes_mean_the_same(images, is_binary: bool) -> None:
    model = build(ValueRange((0.5,), (3.0,)), 28)
    found = take_bytes_only(model, is_binary)(images)
    np.testing.assert_array_equal(found, model(images))
