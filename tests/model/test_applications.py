"""`to_plain_layers` gives the same function of plain layers, named by its graph."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from fmnist_tf.model.applications import to_plain_layers

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)


class LayerScale(layers.Layer):
    """As in keras.applications.convnext: a weight without a name."""

    def __init__(self, init_values: float, projection_dim: int, **options) -> None:
        super().__init__(**options)
        self.init_values, self.projection_dim = init_values, projection_dim

    def build(self, shape) -> None:
        initial = keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(shape=(self.projection_dim,), initializer=initial)

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        sizes = {"init_values": self.init_values, "projection_dim": self.projection_dim}
        return {**super().get_config(), **sizes}


class CustomScaleLayer(layers.Layer):
    """As in keras.applications.inception_resnet_v2."""

    scale = 0.25

    def call(self, inputs):
        return inputs[0] + inputs[1] * self.scale


def build_awkward() -> keras.Model:
    """Return a network with everything that `to_plain_layers` replaces."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Rescaling(1 / 255)(inputs)
    x = keras.Sequential([layers.Normalization(mean=[1.0] * 4, variance=[4.0] * 4)])(x)
    x = layers.Conv2D(4, 3, padding="same", groups=4, strides=2, name="awkward_first")(x)
    x = layers.BatchNormalization()(x)
    y = keras.Sequential([layers.LayerNormalization(), layers.Conv2D(4, 1)], name="nested")(x)
    y = LayerScale(0.5, 4, name="factor")(y)
    y = layers.Dropout(0.5)(y)
    y = layers.ReLU(6.0)(y + 3.0) * 0.25
    y = layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(y)
    x = CustomScaleLayer()([x + y * x, y])
    return keras.Model(inputs, layers.Concatenate()([x, y]), name="awkward")


def draw_weights(network: keras.Model) -> None:
    rng = np.random.default_rng(1)
    network.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in network.weights])


def test_every_operation_becomes_a_plain_layer_and_the_value_range_goes() -> None:
    plain = to_plain_layers(build_awkward(), "plain")
    assert plain.name == "plain"
    assert plain.operations == plain.layers
    assert [(type(layer).__name__, layer.name) for layer in plain.layers] == [
        ("InputLayer", "pixels"),
        ("DepthwiseConv2D", "first"),
        ("BatchNormalization", "batch_normalization_1"),
        ("LayerNormalization", "layer_normalization_1"),
        ("Conv2D", "conv2d_1"),
        ("DepthwiseConv2D", "factor"),
        ("Rescaling", "rescaling_1"),
        ("ReLU", "re_lu_1"),
        ("Rescaling", "rescaling_2"),
        ("DepthwiseConv2D", "separable_depthwise"),
        ("Conv2D", "separable"),
        ("Multiply", "multiply_1"),
        ("Add", "add_1"),
        ("Rescaling", "rescaling_3"),
        ("Add", "add_2"),
        ("Concatenate", "concatenate_1"),
    ]


def test_names_do_not_depend_on_what_was_built_before() -> None:
    def names() -> tuple[list[str], list[str]]:
        plain = to_plain_layers(build_awkward(), "plain")
        return [layer.name for layer in plain.layers], [w.path for w in plain.weights]

    first = names()
    keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 1), layers.ReLU()])
    assert names() == first


def test_it_computes_what_the_original_computes_without_its_value_range() -> None:
    original = build_awkward()
    draw_weights(original)
    plain = to_plain_layers(original, "plain")
    expected = np.asarray(original(IMAGES, training=False))
    found = plain((IMAGES / 255 - 1) / 2, training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert plain.count_params() == original.count_params()
    assert not {id(w) for w in plain.variables} & {id(w) for w in original.variables}


def test_training_draws_no_random_numbers() -> None:
    plain = to_plain_layers(build_awkward(), "plain")
    once, again = (np.asarray(plain(IMAGES, training=True)) for _ in "ab")
    np.testing.assert_array_equal(once, again)


def test_groups_of_several_channels_are_refused() -> None:
    inputs = keras.Input((8, 8, 4))
    network = keras.Model(inputs, layers.Conv2D(8, 3, groups=2, name="grouped")(inputs))
    with pytest.raises(NotImplementedError, match="grouped: groups of more than one channel"):
        to_plain_layers(network, "plain")
