"""Inference in batches, penultimate features and Grad-CAM."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fmnist_tf.model.explain import build_inspector, run_grad_cam
from fmnist_tf.model.inference import compile_model, run_all


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


def test_one_pass_gives_probabilities_and_features(toy_classifier, images) -> None:
    probabilities, features = run_all(compile_model(build_inspector(toy_classifier)), images)
    expected = toy_classifier(images, training=False).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    output = toy_classifier.layers[-1]
    logits = features @ output.kernel.numpy() + output.bias.numpy()
    np.testing.assert_allclose(keras.ops.softmax(logits), expected, atol=1e-5)
    moving = [w.numpy().copy() for w in toy_classifier.non_trainable_weights]
    run_all(compile_model(build_inspector(toy_classifier)), images)
    for before, weight in zip(moving, toy_classifier.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(before, weight.numpy())


def test_rows_and_squares_are_the_same_images(toy_classifier, images) -> None:
    seen: list[tuple[int, int]] = []
    squares = run_all(compile_model(toy_classifier), images)[0]
    rows = run_all(
        compile_model(toy_classifier), images.reshape(5, 784), lambda *x: seen.append(x)
    )[0]
    np.testing.assert_array_equal(squares, rows)
    assert seen == [(5, 5)]


def build_corner_reader(*, deep: bool = False) -> keras.Sequential:
    """Return a network whose class 0 reads the top left corner and class 1 the bottom right.

    Args:
        deep: read the corners in the backbone, whose map is then of one cell.
    """
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.AveragePooling2D(4, name="conv2_pool")(inputs)  # (B, 7, 7, 1)
    if deep:
        x = keras.layers.Conv2D(1, 1, kernel_initializer="ones", name="conv2_conv")(x)
        x = keras.layers.Conv2D(2, 7, name="conv3_conv")(x)  # (B, 1, 1, 2)
    backbone = keras.Model(inputs, x)
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            backbone,
            keras.layers.Flatten(),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    kernel = np.full((7, 7, 2), 0.1, np.float32)
    kernel[:3, :3, 0] = kernel[4:, 4:, 1] = 5
    if deep:
        backbone.layers[-1].set_weights([kernel.reshape(7, 7, 1, 2), np.zeros(2, np.float32)])
        kernel = np.eye(2, dtype=np.float32)
    model.layers[-1].set_weights([kernel.reshape(-1, 2), np.zeros(2, np.float32)])
    return model


@pytest.mark.parametrize("deep", [False, True])
def test_grad_cam_highlights_the_relevant_corner(deep: bool) -> None:
    image = np.zeros((28, 28), np.uint8)
    image[2:8, 2:8] = 255
    model = build_corner_reader(deep=deep)
    maps, cells = run_grad_cam(model, image[None].repeat(20, 0), np.zeros(20, int))
    assert maps.shape == (20, 28, 28)
    assert cells == (7, 7)  # where the last map has few cells, those of a deeper layer
    assert maps.dtype == np.uint8
    assert maps.max() == 255
    assert maps[0, :12, :12].mean() > 10 * maps[0, 16:, 16:].mean()
    np.testing.assert_array_equal(maps[0], maps[19])  # of the second batch


def test_grad_cam_explains_the_class_asked_for() -> None:
    model = build_corner_reader()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * [1, -1], bias])  # no pixel raises the score of class 1
    image = np.full((1, 28, 28), 200, np.uint8)
    for k, largest in ((0, 255), (1, 0)):
        maps, _ = run_grad_cam(model, image, np.array([k]))
        assert maps.max() == largest


def test_without_a_feature_map_there_is_no_grad_cam() -> None:
    inputs = keras.Input((28, 28))
    backbone = keras.Model(inputs, keras.layers.Flatten()(inputs))
    model = keras.Sequential([keras.Input((28, 28)), backbone, keras.layers.Dense(2, "softmax")])
    assert run_grad_cam(model, np.zeros((1, 28, 28), np.uint8), np.array([0])) is None
