"""Raw pixels reach the backbone as its weights expect them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fmnist_tf.model.backbones import BACKBONES
from fmnist_tf.model.preprocessing import build_preprocessing

RAMP = np.tile(np.arange(256), 7)[: 2 * 784].reshape(2, 28, 28).astype(np.uint8)
OFFICIAL = {"resnet50": keras.applications.resnet50.preprocess_input}


def preprocess(name: str, images: np.ndarray, side: int) -> np.ndarray:
    card = BACKBONES[name]
    return keras.Sequential(build_preprocessing(card.value_range, side)).predict(images, verbose=0)


def test_every_card_is_compared_with_its_official_preprocessing() -> None:
    assert set(OFFICIAL) == set(BACKBONES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_value_range_is_the_official_one_on_a_ramp(name: str) -> None:
    assert set(RAMP.flat) == set(range(256))
    rgb = np.repeat(RAMP[..., None].astype(np.float32), 3, axis=-1)
    expected = OFFICIAL[name](rgb.copy())
    np.testing.assert_allclose(preprocess(name, RAMP, 28), expected, atol=1e-4)


def test_resize_is_bilinear_and_precedes_the_value_range() -> None:
    rgb = np.repeat(RAMP[..., None].astype(np.float32), 3, axis=-1)
    resized = keras.ops.image.resize(rgb, (56, 56), interpolation="bilinear")
    expected = OFFICIAL["resnet50"](np.array(resized))
    np.testing.assert_allclose(preprocess("resnet50", RAMP, 56), expected, atol=1e-3)


def test_layers_do_the_same_in_a_graph_and_in_tf_data() -> None:
    import tensorflow as tf

    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            *build_preprocessing(BACKBONES["resnet50"].value_range, 32),
        ]
    )
    eager = model(RAMP, training=False).numpy()
    batches = tf.data.Dataset.from_tensor_slices(RAMP).batch(2)
    (mapped,) = batches.map(lambda x: model(x, training=False)).as_numpy_iterator()
    np.testing.assert_allclose(mapped, eager, atol=1e-4)
    assert eager.shape == (2, 32, 32, 3)
    assert eager.dtype == np.float32
