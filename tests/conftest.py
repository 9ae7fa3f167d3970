"""Shared fixtures: optional real data, the toy backbone, compute precisions."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Several tests run at a time: they would fill a GPU, and NumPy's threads would wait for each other
# in busy loops, at ten times the processor time. Without bfloat16 kernels `--precision auto` is
# float32 on every processor, here and in subprocesses; ONEDNN_MAX_CPU_ISA=ALL allows them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
# What a shell starts in the background ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("FMNIST_TF_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_finish() -> None:
    """Exclude what the test modules have imported, TensorFlow too, from garbage collections.

    Training collects garbage by itself; collections in between are a tenth of the time of tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Exclude also what the tests of a module leave, such as TensorFlow's graphs."""
    yield
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def bfloat16_kernels() -> None:
    """Skip where TensorFlow cannot compute in bfloat16."""
    from fmnist_tf.errors import UsageError
    from fmnist_tf.model.precision import choose_precision

    try:
        choose_precision("bfloat16")
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> str:
    """Each compute precision that works here."""
    if request.param == "bfloat16":
        request.getfixturevalue("bfloat16_kernels")
    return request.param


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn."""
    from toy import save_no_figure

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_no_figure)


@pytest.fixture
def toy_spec(monkeypatch: pytest.MonkeyPatch, no_figures: None):
    """The toy backbone's spec, registered for `--backbone toy`."""
    from toy import build_toy_spec

    from fmnist_tf.model import backbones

    spec = build_toy_spec()
    monkeypatch.setitem(backbones.BACKBONES, "toy", spec)
    return spec


@pytest.fixture
def toy_run(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the toy run `first` and its data; the terminal is 80 columns wide."""
    from toyrun import copy_toy_run

    copy_toy_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def toy_classifier(toy_spec):
    """A toy classifier of three classes with random BatchNorm weights and statistics."""
    import keras
    import numpy as np

    from fmnist_tf.model.classifier import build_classifier

    keras.utils.set_random_seed(1)
    backbone = toy_spec.build(16)
    rng = np.random.default_rng(1)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Positive, as variances must be, and unlike the initial values.
            layer.set_weights([rng.uniform(0.5, 3, w.shape) for w in layer.weights])
    return build_classifier(
        backbone, toy_spec.value_range, head="flatten", units=5, dropout=0.5, n_classes=3, seed=1
    )
