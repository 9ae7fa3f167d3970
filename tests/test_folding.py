"""The folded prefix is the same function."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.model.folding import choose_precision, fold_prefix

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)


def randomise(model: keras.Model) -> None:
    rng = np.random.default_rng(5)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            randomise(layer)
        elif isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])


def norms(model: keras.Model) -> list[str]:
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += norms(layer)
        elif isinstance(layer, layers.BatchNormalization):
            found.append(layer.name)
    return found


def compare(model: keras.Model, images: np.ndarray, tolerance: float) -> keras.Model:
    folded = fold_prefix(model, "float32")
    expected = np.asarray(model(images, training=False))
    found = np.asarray(folded(images, training=False))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    return folded


@pytest.mark.parametrize("lowest", ["head", "deep"])
def test_toy_prefix_in_float32(toy_classifier, toy_card, lowest: str) -> None:
    prefix = split_classifier(toy_classifier, toy_card, lowest).prefix
    folded = compare(prefix, PIXELS, 1e-5)
    assert norms(prefix)
    assert norms(folded) == []
    prefix_variables = {id(v) for v in prefix.variables}
    assert not prefix_variables & {id(v) for v in folded.variables}


def test_resnet50_with_random_statistics() -> None:
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    randomise(model)
    images = np.random.default_rng(0).normal(0, 50, (2, 32, 32, 3)).astype(np.float32)
    assert norms(compare(model, images, 1e-4)) == []


def test_depthwise_and_separable_patterns() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(4, 1)(x)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, x)
    randomise(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    assert norms(compare(model, images, 1e-5)) == []


def test_what_cannot_be_folded_is_left_alone() -> None:
    inputs = keras.Input((8, 8, 3))
    activated = layers.BatchNormalization(name="after_relu")(
        layers.Conv2D(4, 1, activation="relu")(inputs)
    )
    shared = layers.Conv2D(4, 1)(activated)
    normed = layers.BatchNormalization(name="of_shared")(shared)
    first = layers.BatchNormalization(name="before_conv")(layers.Add()([shared, normed]))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(first)))
    randomise(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    folded = compare(model, images, 1e-5)
    assert set(norms(folded)) == {"after_relu", "of_shared", "before_conv"}


def test_bfloat16_points_the_same_way(toy_classifier, toy_card) -> None:
    prefix = split_classifier(toy_classifier, toy_card, "head").prefix
    expected = np.asarray(prefix(PIXELS, training=False)).ravel()
    folded = fold_prefix(prefix, "bfloat16")
    conv = folded.get_layer("toy").get_layer("stem_conv")
    assert conv.kernel.dtype == "bfloat16"
    output = folded(PIXELS, training=False)
    found = np.asarray(keras.ops.cast(output, "float32")).ravel()
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine >= 0.999


def test_the_person_overrules_the_machine() -> None:
    assert choose_precision("bfloat16") == ("bfloat16", "as asked")
    precision, why = choose_precision("auto")
    assert precision in ("float32", "bfloat16")
    assert why
