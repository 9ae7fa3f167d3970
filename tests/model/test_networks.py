"""A rebuilt network is the same function of plain layers, named by its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import pytest
from keras import layers

from fmnist_tf.model.networks import build_small_resnet, copy_weights, rebuild

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


def build_awkward(side: int = 8) -> keras.Model:
    """Return a network with everything that `rebuild` replaces."""
    inputs = keras.Input((side, side, 4))
    x = layers.Conv2D(4, 3, padding="same", groups=4, strides=2, name="a_grouped")(inputs)
    x = layers.BatchNormalization()(x)
    y = keras.Sequential([layers.LayerNormalization(), layers.Conv2D(4, 1)], name="b_nested")(x)
    y = LayerScale(0.5, 4)(y)
    y = layers.Dropout(0.5)(y)
    y = layers.ReLU(6.0)(y + 3.0) * 0.25
    y = x + y * x
    return keras.Model(inputs, layers.Concatenate()([x, y]), name="awkward")


def label_awkward(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    block = "stem"
    for name in names:
        if name in ("a_grouped", "b_nested"):
            block = name[0]
        yield block, "grouped" if name == "a_grouped" else ""


def draw_weights(network: keras.Model) -> None:
    rng = np.random.default_rng(1)
    network.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in network.weights])


def test_every_operation_becomes_a_plain_labelled_layer() -> None:
    rebuilt = rebuild(build_awkward(), label_awkward)
    assert rebuilt.operations == rebuilt.layers
    assert {(type(layer).__name__, layer.name) for layer in rebuilt.layers} == {
        ("InputLayer", "stem_input"),
        ("DepthwiseConv2D", "a_grouped"),
        ("BatchNormalization", "a_batchnormalization_1"),
        ("LayerNormalization", "b_layernormalization_1"),
        ("Conv2D", "b_conv2d_1"),
        ("DepthwiseConv2D", "b_depthwiseconv2d_1"),
        ("Rescaling", "b_rescaling_1"),
        ("ReLU", "b_relu_1"),
        ("Rescaling", "b_rescaling_2"),
        ("Multiply", "b_multiply_1"),
        ("Add", "b_add_1"),
        ("Concatenate", "b_concatenate_1"),
    }


def test_names_do_not_depend_on_what_was_built_before() -> None:
    def names() -> tuple[list[str], list[str]]:
        rebuilt = rebuild(build_awkward(), label_awkward)
        return [layer.name for layer in rebuilt.layers], [w.path for w in rebuilt.weights]

    first = names()
    keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 1), layers.ReLU()])
    assert names() == first


def test_it_computes_what_the_original_computes() -> None:
    original = build_awkward()
    draw_weights(original)
    rebuilt = rebuild(original, label_awkward)
    copy_weights(original, rebuilt)
    expected = np.asarray(original(IMAGES, training=False))
    np.testing.assert_allclose(rebuilt(IMAGES, training=False), expected, rtol=1e-5, atol=1e-5)
    assert rebuilt.count_params() == original.count_params()
    assert not {id(w) for w in rebuilt.variables} & {id(w) for w in original.variables}


def test_initial_weights_are_random_as_in_the_original() -> None:
    original = build_awkward()
    draw_weights(original)
    kernels = [
        rebuild(original, label_awkward).get_layer("b_conv2d_1").kernel.numpy() for _ in "ab"
    ]
    assert not np.array_equal(*kernels)
    rebuilt = rebuild(original, label_awkward)
    np.testing.assert_array_equal(rebuilt.get_layer("b_depthwiseconv2d_1").kernel, 0.5)
    np.testing.assert_array_equal(rebuilt.get_layer("a_batchnormalization_1").gamma, 1)


def test_training_draws_no_random_numbers() -> None:
    rebuilt = rebuild(build_awkward(), label_awkward)
    once, again = (np.asarray(rebuilt(IMAGES, training=True)) for _ in "ab")
    np.testing.assert_array_equal(once, again)


def test_groups_of_several_channels_are_refused() -> None:
    inputs = keras.Input((8, 8, 4))
    network = keras.Model(inputs, layers.Conv2D(8, 3, groups=2, name="a_grouped")(inputs))
    with pytest.raises(NotImplementedError, match="a_grouped: groups of more than one channel"):
        rebuild(network, label_awkward)


@pytest.mark.parametrize(
    ("widths", "blocks", "weighted", "trained"),
    [
        # MLPerf Tiny's has 78,666 with three channels, ten classes, moving statistics, biases
        # before BatchNorm, and shortcuts with a bias in place of BatchNorm.
        ((16, 32, 64), 1, 7, 78_666 - 2 * 9 * 16 - 650 - 480 - 240 - 96 + 192),
        # The usual CIFAR version of ResNet-18 has 11,173,962 with three channels and ten classes.
        ((64, 128, 256, 512), 2, 17, 11_173_962 - 2 * 9 * 64 - 512 * 10 - 10),
    ],
)
def test_small_resnets_have_the_published_size(widths, blocks, weighted, trained) -> None:
    network = build_small_resnet("small", 8, widths=widths, blocks=blocks)
    convolutions = [layer for layer in network.layers if isinstance(layer, layers.Conv2D)]
    shortcuts = [layer for layer in convolutions if layer.kernel_size == (1, 1)]
    assert len(convolutions) - len(shortcuts) == weighted
    assert len(shortcuts) == len(widths) - 1
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == trained


def test_small_resnet_halves_the_side_from_stage_to_stage() -> None:
    network = build_small_resnet("small", 28, widths=(4, 8, 16, 32), blocks=2)
    shapes = [network.get_layer(f"conv{n}_block2_out").output.shape[1:] for n in (2, 3, 4, 5)]
    assert shapes == [(28, 28, 4), (14, 14, 8), (7, 7, 16), (4, 4, 32)]
