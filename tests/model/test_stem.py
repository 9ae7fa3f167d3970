"""One convolution of the grey image stands for resizing, value range and a wide convolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers
from test_folding import compare, cosine, optimized_kinds, randomise

from fmnist_tf.model.backbones import find_backbone_spec
from fmnist_tf.model.classifier import build_classifier, split_classifier
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.phases import apply_plan, plan_phase
from fmnist_tf.model.preprocessing import CAFFE, build_preprocessing
from fmnist_tf.model.stem import axis_weights, channel_masks, compose_kernel

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
Apply = Callable[..., Any]
SHARED = layers.Conv2D(3, 7, 2)


@settings(max_examples=30, deadline=None)
@given(
    n_outputs=st.integers(1, 4),
    stride=st.integers(1, 3),
    size=st.integers(1, 7),
    padding=st.integers(0, 4),
    source=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_the_three_steps_are_one(
    n_outputs: int, stride: int, size: int, padding: int, source: int, seed: int
) -> None:
    factor, rng = n_outputs * stride, np.random.default_rng(seed)
    weights = axis_weights(factor, stride, size, padding)
    assume(weights is not None)
    image = rng.integers(0, 256, (source, source + 1)).astype(float)
    kernel = rng.normal(size=(size, size, 3, 2))
    scale, offset = rng.normal(size=(2, 3))
    composed = compose_kernel(kernel, scale, offset, weights, weights)
    assert composed.shape == (n_outputs, 3, 3, 8, n_outputs * 2)

    resized = tf.image.resize(image[None, ..., None], np.multiply(image.shape, factor))
    colours = np.asarray(resized, np.float64) * scale + offset
    # As many zeros behind as give each pixel its outputs.
    behind = size - stride - padding
    edges = ((0, 0), (padding, max(behind, 0)), (padding, max(behind, 0)), (0, 0))
    expected = tf.nn.conv2d(np.pad(colours, edges), kernel, stride, "VALID").numpy()

    of_grey, of_ones = channel_masks(*image.shape)
    channels = np.pad(image, 1, "symmetric")[..., None] * of_grey + of_ones
    rows = [tf.nn.conv2d(channels[None], part, 1, "VALID") for part in composed]
    height, width = np.multiply(image.shape, n_outputs)
    found = np.reshape(np.stack(rows, axis=2), (1, height, width, 2))
    expected = expected[:, :height, :width]
    np.testing.assert_allclose(found, expected, atol=0.01)  # TensorFlow resizes in float32


def test_weights_beyond_the_neighbours_are_refused() -> None:
    assert axis_weights(8, 2, 7, 3) is not None
    assert axis_weights(4, 2, 7, 3) is None


def apply_twice(layer: keras.Layer) -> Apply:
    """Return what applies one layer, and then the same again."""
    return lambda x: layer(layers.Rescaling(-1.0)(layer(x)))


def build(
    side: int = 224,
    *,
    width: int | None = None,
    resize: Any = None,
    value_range: Any = None,
    first: Any = None,
    after: Apply = lambda x: layers.Activation("relu")(layers.BatchNormalization()(x)),
    pad: Any = ((3, 3), (3, 3)),
) -> keras.Model:
    """Return preprocessing and a backbone that begins as ResNet50 does, of two filters."""
    keras.utils.set_random_seed(1)
    backbone_inputs = keras.Input((side, width or side, 3))
    x = layers.ZeroPadding2D(pad)(backbone_inputs) if pad else backbone_inputs
    first = first or layers.Conv2D(2, 7, 2)
    x = after(first(x))
    backbone = keras.Model(backbone_inputs, layers.MaxPooling2D(2)(x))
    randomise(backbone)
    channel, to_float, own_resize, own_range = build_preprocessing(CAFFE, side)
    inputs = keras.Input((28, 28), dtype="uint8")
    x = (resize or own_resize)(to_float(channel(inputs)))
    return keras.Model(inputs, backbone((value_range or own_range)(x)))


def is_composed(folded: keras.Model) -> bool:
    return "resize" not in [layer.name for layer in folded.layers]


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"side": 168},  # a pixel has three outputs along an axis
        {"width": 168, "resize": layers.Resizing(224, 168, name="resize")},
        {"first": layers.Conv2D(2, 7, 2, use_bias=False)},
        {"first": layers.Conv2D(2, 7, 2), "after": lambda x: x},
        {"first": layers.Conv2D(2, 7, 2, use_bias=False), "after": lambda x: x},
        {"first": layers.Conv2D(2, 7, 2, activation="relu"), "after": lambda x: x},
        {
            "first": layers.Conv2D(2, 7, 2, activation="relu"),
            "after": lambda x: layers.Activation("leaky_relu")(x),
        },
        {"after": lambda x: layers.Activation("softmax")(x)},  # of each output's filters
        {"after": lambda x: layers.Add()([layers.Activation("relu")(x), x])},
        {"after": apply_twice(layers.Activation("relu"))},
        {"first": layers.Conv2D(2, (7, 5), (2, 1)), "pad": ((2, 4), (1, 3))},
        {"first": layers.Conv2D(2, 8, 8), "pad": None},
    ],
    ids=[
        "resnet50",
        "168",
        "224x168",
        "no-bias",
        "no-norm",
        "kernel-alone",
        "own-activation",
        "two-activations",
        "softmax",
        "two-consumers",
        "shared-activation",
        "uneven",
        "patches",
    ],
)
def test_what_is_composed_is_the_same_function(words: dict[str, Any]) -> None:
    assert is_composed(compare(build(**words), PIXELS, 1e-5))


@pytest.mark.parametrize(
    "words",
    [
        {"side": 112},  # reaches further than a pixel's neighbours
        {"side": 230},
        {"side": 196},  # seven pixels of one, which the stride does not divide
        {"resize": layers.Resizing(224, 224, "nearest", name="resize")},
        {
            "width": 168,
            "resize": layers.Resizing(224, 168, crop_to_aspect_ratio=True, name="resize"),
        },
        {"value_range": layers.Conv2D(3, 1, activation="relu")},
        {"value_range": layers.Conv2D(3, 1, use_bias=False)},
        {"value_range": layers.Conv2D(3, 3, padding="same")},
        {
            "resize": layers.Resizing(448, 448, name="resize"),
            "value_range": layers.Conv2D(3, 1, 2),
        },
        {
            "resize": lambda x: layers.Resizing(224, 224, name="resize")(
                layers.Concatenate()([x, x, x])
            ),
            "value_range": layers.Conv2D(3, 1, groups=3),
        },
        {"resize": apply_twice(layers.Resizing(224, 224, name="resize"))},
        {"first": layers.Conv2D(2, 7, 2, activation="softmax")},
        {"first": SHARED, "after": SHARED},
        {"first": layers.Conv2D(2, 3, 2), "pad": ((1, 1), (1, 1))},  # would cost more
        {"first": layers.Conv2D(2, 7, 2), "pad": ((3, 2), (3, 1))},
        {"first": layers.Conv2D(2, 5, 2, padding="same"), "pad": None},
        {"first": layers.Conv2D(2, 5, 1, dilation_rate=2), "pad": ((4, 4), (4, 4))},
        {"first": layers.DepthwiseConv2D(7, 2)},
        {"first": layers.Conv2D(3, 7, 2, groups=3)},
    ],
    ids=[
        "112",
        "no-whole-factor",
        "stride",
        "nearest",
        "cropped",
        "range-activation",
        "range-without-bias",
        "range-3x3",
        "range-strides",
        "range-of-colours",
        "resized-twice",
        "softmax",
        "shared-convolution",
        "narrow",
        "fewer-outputs",
        "same",
        "dilated",
        "depthwise",
        "groups",
    ],
)
def test_what_is_left_alone(words: dict[str, Any]) -> None:
    assert not is_composed(compare(build(**words), PIXELS, 1e-5))


def test_tensorflow_fuses_what_was_composed() -> None:
    function = tf.function(fold_model(build(), "float32", frozen=True), autograph=False)
    kinds = optimized_kinds(function, PIXELS)
    # One convolution for each row of a pixel's outputs.
    assert [kind for op, kind in kinds if "Conv2D" in op] == [[b"BiasAdd", b"Relu"]] * 4
    assert "Relu" not in [op for op, _ in kinds]


def test_images_of_any_side_are_left_alone() -> None:
    resize, value_range, backbone = build().layers[-3:]
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, backbone(value_range(resize(inputs))))
    assert not is_composed(compare(model, PIXELS[..., np.newaxis].astype(np.float32), 1e-5))


def test_a_sequential_backbone_is_left_alone() -> None:
    inputs = keras.Input((28, 28), dtype="uint8")
    x = inputs
    for layer in build_preprocessing(CAFFE, 224):
        x = layer(x)
    backbone = keras.Sequential([keras.Input((224, 224, 3)), layers.Conv2D(2, 8, 8)])
    assert not is_composed(compare(keras.Model(inputs, backbone(x)), PIXELS, 1e-5))


def test_what_may_train_is_left_alone() -> None:
    assert not is_composed(fold_model(build(), "float32"))


def test_whole_classifiers_and_weights_outside_of_the_graph() -> None:
    model = build()
    head = keras.Sequential([keras.Input(model.output_shape[1:]), layers.Conv2D(2, 3)])
    whole = keras.Sequential([keras.Input((28, 28), dtype="uint8"), *model.layers[1:], head])
    folded = fold_model(whole, "float32", frozen=True, constant=False)
    assert is_composed(folded)
    expected = np.asarray(whole(PIXELS, training=False))
    found = np.asarray(tf.function(folded, autograph=False)(PIXELS, training=False))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_parts_of_a_run_are_composed(tmp_path: Path) -> None:
    spec = find_backbone_spec("resnet50", 224)[0]
    head = {"head": "gap", "units": 0, "dropout": 0.0, "n_classes": 2, "seed": 0}
    classifier = build_classifier(spec.build(224), spec, **head)
    plan = plan_phase(classifier, spec, "frozen")
    apply_plan(classifier, spec, plan)
    prefix = split_classifier(classifier, spec, "conv2").prefix
    assert is_composed(compare(prefix, PIXELS, 1e-5))
    classifier.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert is_composed(fold_model(reloaded, "float32", frozen=True, constant=False))


def test_bfloat16_points_the_same_way() -> None:
    model = build()
    expected = np.asarray(model(PIXELS, training=False)).ravel()
    folded = fold_model(model, "bfloat16", frozen=True)
    assert is_composed(folded)
    found = np.asarray(keras.ops.cast(folded(PIXELS, training=False), "float32")).ravel()
    assert cosine(found, expected) >= 0.9999
