"""What several test files share: optional real data, and the toy backbone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The tests are for the processor, several at a time; a GPU rounds otherwise and is full at once.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

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
def toy_spec(monkeypatch: pytest.MonkeyPatch):
    """The toy backbone's spec, registered as `--backbone toy`."""
    from toy import build_toy_spec

    from fmnist_tf.model import backbones

    spec = build_toy_spec()
    monkeypatch.setitem(backbones.BACKBONES, "toy", spec)
    return spec


@pytest.fixture
def toy_classifier(toy_spec):
    """A toy classifier of three classes whose BatchNorm statistics are not the initial ones."""
    import keras
    import numpy as np

    from fmnist_tf.model.classifier import build_classifier

    keras.utils.set_random_seed(1)
    backbone = toy_spec.build(16)
    rng = np.random.default_rng(1)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Variances must be positive; no value is the one a fresh layer has.
            layer.set_weights([rng.uniform(0.5, 3, w.shape) for w in layer.weights])
    return build_classifier(
        backbone, toy_spec, head="flatten", units=5, dropout=0.5, n_classes=3, seed=1
    )
