"""What several test files share: optional real data, and a toy backbone in place of ResNet50."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FMNIST_TF_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def keras_home_with_data() -> Path:
    """A Keras cache that holds the four official Fashion-MNIST files."""
    own = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    for home in (own, SHARED / "keras"):
        if (home / "datasets/fashion-mnist/train-images-idx3-ubyte.gz").is_file():
            return home
    pytest.skip("no official Fashion-MNIST files in KERAS_HOME or beside the checkout")


@pytest.fixture(scope="session")
def resnet50_weights() -> Path:
    """Pretrained ResNet50 weights without top, in Keras' layout."""
    for path in sorted((SHARED / "weights").glob("resnet50*notop*.h5")):
        return path
    pytest.skip("no pretrained ResNet50 weights beside the checkout")


@pytest.fixture
def toy_card(monkeypatch: pytest.MonkeyPatch):
    """A backbone that builds and trains in a blink, registered as `--backbone toy`.

    It has what ResNet50 has: convolutions with and without bias, BatchNorm, a residual addition,
    and two stages with a single tensor between them.
    """
    import keras
    from keras import layers

    from fmnist_tf.model import backbones
    from fmnist_tf.model.preprocessing import CAFFE

    def build(side: int) -> keras.Model:
        inputs = keras.Input((side, side, 3), name="toy_input")
        x = layers.Conv2D(4, 3, 2, padding="same", use_bias=False, name="stem_conv")(inputs)
        x = layers.BatchNormalization(name="stem_bn")(x)
        x = layers.ReLU(name="stem_relu")(x)
        y = layers.Conv2D(8, 1, name="deep_conv")(x)
        y = layers.BatchNormalization(name="deep_bn", scale=False)(y)
        z = layers.Conv2D(8, 3, padding="same", name="deep_side_conv")(x)
        z = layers.BatchNormalization(name="deep_side_bn", center=False)(z)
        x = layers.Add(name="deep_add")([y, z])
        x = layers.ReLU(name="deep_relu")(x)
        x = layers.AveragePooling2D(2, name="deep_pool")(x)
        return keras.Model(inputs, x, name="toy")

    card = backbones.BackboneCard(
        name="toy",
        build=build,
        least_side=8,
        usual_side=16,
        value_range=CAFFE,
        stages={"stem": ("stem_",), "deep": ("deep_",)},
        pretrained=None,
    )
    monkeypatch.setitem(backbones.BACKBONES, "toy", card)
    return card


@pytest.fixture
def toy_classifier(toy_card):
    """A toy classifier of three classes whose BatchNorm statistics are not the initial ones."""
    import keras
    import numpy as np

    from fmnist_tf.model.classifier import build_classifier

    keras.utils.set_random_seed(1)
    backbone = toy_card.build(16)
    rng = np.random.default_rng(1)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Variances must be positive; no value is the one a fresh layer has.
            layer.set_weights([rng.uniform(0.5, 3, w.shape) for w in layer.weights])
    return build_classifier(
        backbone, toy_card, head="flatten", units=5, dropout=0.5, n_classes=3, seed=1
    )
