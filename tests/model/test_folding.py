"""The folded twin is the same function, with the same gradients and statistics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.model.folding import fold_model
from fmnist_tf.training.features import build_feature_function

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
    folded = fold_model(model, "float32", frozen=True)
    expected = np.asarray(model(images, training=False))
    found = np.asarray(folded(images, training=False))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    return folded


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)


def test_a_norm_that_cannot_be_fused_is_a_product_and_an_addition() -> None:
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
    for name in ("after_relu", "of_shared", "before_conv"):
        assert folded.get_layer(name)(np.zeros((1, 4), np.float32)).shape == (1, 4)


def test_padding_is_fused_into_frozen_full_convolutions() -> None:
    inputs = keras.Input((9, 9, 3))
    x = layers.ZeroPadding2D(((0, 1), (2, 3)), name="pad_conv")(inputs)
    x = layers.Conv2D(4, 3, 2, use_bias=False, activation="relu")(x)
    x = layers.ZeroPadding2D(1, name="pad_pool")(x)
    x = layers.MaxPooling2D(3, 2)(x)
    x = layers.ZeroPadding2D(((1, 0), (0, 1)), name="pad_depthwise")(x)
    model = keras.Model(inputs, layers.DepthwiseConv2D(2)(x))
    images = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)

    def kept(folded: keras.Model) -> set[str]:
        return {layer.name for layer in folded.layers if layer.name.startswith("pad_")}

    # oneDNN has no kernels for the others; on the last TensorFlow may even abort.
    assert kept(compare(model, images, 1e-5)) == {"pad_pool", "pad_depthwise"}
    assert kept(fold_model(model, "float32")) == {"pad_conv", "pad_pool", "pad_depthwise"}


def optimized_kinds(function: Any, argument: Any) -> list[tuple[str, list[bytes]]]:
    """Return each operation's kind, and what TensorFlow fused with it."""
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU fuses differently")
    # There is no public API for the optimized graph.
    from tensorflow.python.eager import context

    context.context().enable_graph_collection()
    function(argument)
    graph = context.context().export_run_metadata().function_graphs[-1].post_optimization_graph
    context.context().disable_graph_collection()
    return [(node.op, list(node.attr["fused_ops"].list.s)) for node in graph.node]


def test_tensorflow_fuses_bias_and_activation(toy_classifier, toy_spec) -> None:
    extractor = split_classifier(toy_classifier, "head").feature_extractor
    compute = build_feature_function(extractor, "float32")
    kinds = optimized_kinds(compute, PIXELS.reshape(-1, 784))
    fused = [kind for op, kind in kinds if op.startswith("_Fused") and kind[0] == b"BiasAdd"]
    assert len(fused) == 4  # the toy's three convolutions and the value range
    left = {op for op, _ in kinds}
    assert not {"Conv2D", "BiasAdd", "FusedBatchNormV3"} & left


def test_depthwise_and_grouped_convolutions() -> None:
    inputs = keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, layers.Conv2D(8, 3, groups=2)(x))  # the latter is Keras' own
    randomise(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    assert norms(compare(model, images, 1e-5)) == []


def test_frozen_weights_are_copies_and_trainable_ones_are_not() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="frozen", trainable=False)(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="trained")(x))
    folded = fold_model(model, "float32")
    image = np.ones((1, 8, 8, 3), np.float32)
    before = np.asarray(folded(image, training=False))
    model.get_layer("frozen").kernel.assign(model.get_layer("frozen").kernel * 2)
    np.testing.assert_array_equal(folded(image, training=False), before)
    model.get_layer("trained").kernel.assign(model.get_layer("trained").kernel * 2)
    np.testing.assert_allclose(folded(image, training=False), before * 2, rtol=1e-5)


def build_trained_norms(*, norm_trains: bool) -> keras.Model:
    """Return two trainable convolutions, each before a BatchNorm that trains or is frozen."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, padding="same", name="first")(inputs)
    x = layers.BatchNormalization(scale=False, momentum=0.9, name="first_norm")(x)
    x = layers.Conv2D(5, 3, activation=None, name="second")(layers.ReLU()(x))
    x = layers.BatchNormalization(center=False, momentum=0.8, name="second_norm")(x)
    model = keras.Model(inputs, layers.Dense(3, "tanh", name="dense")(x))
    randomise(model)
    for name in ("first_norm", "second_norm"):
        model.get_layer(name).trainable = norm_trains
    return model


def run_step(
    function: keras.Model, model: keras.Model, images: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return outputs in training mode and the gradients of the model's trained variables."""
    with tf.GradientTape() as tape:
        outputs = tf.cast(function(images, training=True), tf.float32)
        loss = tf.reduce_sum(outputs * tf.reshape(tf.range(3.0), (1, 1, 1, 3)))
    gradients = tape.gradient(loss, model.trainable_variables)
    return outputs.numpy(), [np.asarray(gradient) for gradient in gradients]


@pytest.mark.parametrize("norm_trains", [False, True])
def test_training_gives_the_same_gradients_and_statistics(
    norm_trains: bool, precision: str
) -> None:
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    model = build_trained_norms(norm_trains=norm_trains)
    initial = model.get_weights()
    expected, expected_gradients = run_step(model, model, images)
    after = model.get_weights()
    assert any((a != b).any() for a, b in zip(initial, after, strict=True)) == norm_trains
    model.set_weights(initial)
    found, gradients = run_step(fold_model(model, precision), model, images)
    loose = precision == "bfloat16"
    np.testing.assert_allclose(found, expected, atol=0.1 if loose else 1e-5)
    assert len(gradients) == len(model.trainable_variables) > 0
    # A bias before a trainable norm has no gradient but rounding: compared on one scale.
    scale = max(np.linalg.norm(gradient) for gradient in expected_gradients)
    for gradient, of_keras in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(gradient - of_keras) < (0.05 if loose else 1e-5) * scale
    for now, of_keras in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(now, of_keras, rtol=0.02 if loose else 1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "strides", "padding"), [(3, 1, "same"), (3, 2, "valid"), (1, 2, "same")]
)
def test_the_gradient_from_a_product_is_the_gradient(size: int, strides: int, padding: str) -> None:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 5, 256))
    x = layers.Conv2D(256, 1)(inputs)
    model = keras.Model(inputs, layers.Conv2D(3, size, strides, padding)(x))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 6, 5, 256)).astype(np.float32)
    weights = rng.normal(size=(2, *model.output_shape[1:])).astype(np.float32)

    def differentiate(function: keras.Model) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * function(images, training=True))
        return [np.asarray(g) for g in tape.gradient(loss, model.trainable_variables)]

    expected_gradients = differentiate(model)
    gradients = differentiate(tf.function(fold_model(model, "float32"), autograph=False))
    for gradient, of_keras in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(gradient - of_keras) < 1e-5 * np.linalg.norm(of_keras)


@pytest.mark.parametrize(
    ("size", "precision", "strides", "n_own"),
    [(5, "bfloat16", 1, 0), (4, "bfloat16", 1, 0), (5, "float32", 1, 1), (3, "bfloat16", 1, 1),
     (5, "bfloat16", 2, 1)],
)  # fmt: skip
def test_a_depthwise_gradient_is_a_forward_convolution_where_it_is_faster(
    request: pytest.FixtureRequest, size: int, precision: str, strides: int, n_own: int
) -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU has other kernels")
    if precision == "bfloat16":
        request.getfixturevalue("bfloat16_kernels")
    inputs = keras.Input((6, 5, 8))
    kernel = layers.DepthwiseConv2D(size, strides, "same")
    model = keras.Model(inputs, kernel(layers.Rescaling(1.0)(inputs)))
    rng = np.random.default_rng(0)
    images, weights = (
        tf.constant(rng.normal(size=shape).astype(np.float32))
        for shape in ((3, 6, 5, 8), (3, *model.output_shape[1:]))
    )

    def differentiate(function: keras.Model) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(weights * tf.cast(function(images, training=True), tf.float32))
        return tape.gradient(loss, [*model.trainable_variables, images])

    folded = fold_model(model, precision)
    graph = tf.function(lambda: differentiate(folded), autograph=False).get_concrete_function()
    operations = [op.type for op in graph.graph.get_operations()]
    assert operations.count("DepthwiseConv2dNativeBackpropFilter") == n_own
    for gradient, of_keras in zip(graph(), differentiate(model), strict=True):
        assert np.linalg.norm(gradient - of_keras) < 0.01 * np.linalg.norm(of_keras)


@pytest.mark.parametrize("constant", [True, False])
def test_frozen_weights_are_constants_or_inputs(toy_classifier, toy_spec, constant: bool) -> None:
    extractor = split_classifier(toy_classifier, "head").feature_extractor
    folded = fold_model(extractor, "float32", frozen=True, constant=constant)
    function = tf.function(folded, autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec((None, 28, 28), tf.uint8)).graph
    kernels = [op.inputs[1] for op in graph.get_operations() if op.type == "Conv2D"]
    # TensorFlow makes small tensors constants in any case.
    large = [kernel for kernel in kernels if kernel.shape.num_elements() > 128]
    assert large
    assert {kernel.op.type == "Const" for kernel in large} == {constant}
    expected = np.asarray(extractor(PIXELS, training=False))
    extractor.set_weights([np.zeros_like(w) for w in extractor.get_weights()])  # the copies stay
    np.testing.assert_allclose(np.asarray(function(PIXELS)), expected, rtol=1e-4, atol=1e-4)


def count_kernel_gradients(function: keras.Model, images: tf.Tensor) -> int:
    """Return how many kernels have their gradient from TensorFlow's own operation."""

    def differentiate(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = function(images, training=True)
        kernels = [v for v in tape.watched_variables() if len(v.shape) == 4]
        return tape.gradient(outputs, kernels)

    graph = tf.function(differentiate, autograph=False).get_concrete_function(images).graph
    return sum(op.type == "Conv2DBackpropFilter" for op in graph.get_operations())


@pytest.mark.parametrize(
    ("side", "channels", "precision", "n_own"),
    [
        (7, 256, "float32", 0),
        (8, 256, "float32", 1),
        (7, 255, "float32", 1),
        (7, 256, "bfloat16", 1),
    ],
)
def test_the_product_replaces_the_gradient_where_it_is_faster(
    side: int, channels: int, precision: str, n_own: int
) -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU has other kernels")
    inputs = keras.Input((side, side, channels))
    model = keras.Model(inputs, layers.Conv2D(2, 3, padding="same")(inputs))
    images = tf.zeros((1, side, side, channels))
    assert count_kernel_gradients(fold_model(model, precision), images) == n_own


def test_bfloat16_points_the_same_way(toy_classifier, toy_spec, bfloat16_kernels: None) -> None:
    extractor = split_classifier(toy_classifier, "head").feature_extractor
    expected = np.asarray(extractor(PIXELS, training=False)).ravel()
    folded = fold_model(extractor, "bfloat16", frozen=True)
    assert folded.get_layer("toy").get_layer("stem_conv").compute_dtype == "bfloat16"
    assert folded.get_layer("resize").compute_dtype == "float32"
    output = folded(PIXELS, training=False)
    assert output.dtype == tf.bfloat16
    found = np.asarray(keras.ops.cast(output, "float32")).ravel()
    assert cosine(found, expected) >= 0.999
    assert (found != expected).any()
