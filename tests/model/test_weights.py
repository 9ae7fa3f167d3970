"""Backbone weights are verified when they are loaded, or one clear error says what is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BACKBONES, BackboneSpec, find_backbone_spec
from fmnist_tf.model.weights import WeightsSource, read_backbone


def read(spec: BackboneSpec, choice: str) -> tuple[keras.Model, WeightsSource]:
    return read_backbone(spec, 16, choice)


@pytest.fixture
def weights_file(toy_spec, tmp_path: Path) -> Path:
    keras.utils.set_random_seed(7)
    path = tmp_path / "toy.weights.h5"
    toy_spec.build(16).save_weights(path)
    return path


def kernel(backbone) -> np.ndarray:
    return backbone.get_layer("stem_conv").kernel.numpy()


def test_a_file_is_loaded_and_recorded(toy_spec, weights_file: Path) -> None:
    backbone, source = read(toy_spec, str(weights_file))
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(kernel(backbone), kernel(toy_spec.build(16)))
    assert source.kind == "file"
    assert source.sha256 == hashlib.sha256(weights_file.read_bytes()).hexdigest()


def _other_network(path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)).save_weights(path)


def _text(path: Path) -> None:
    path.write_text("<html>not found</html>")


def _other_shape(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = next(n for n in names if isinstance(file[n], h5py.Dataset))
        del file[name]
        file[name] = np.zeros((1, 2, 3))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_other_network, "2 arrays"),
        (_other_shape, "(1, 2, 3)"),
        (_text, "HDF5"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_wrong_file_is_refused(toy_spec, weights_file: Path, damage, found: str) -> None:
    damage(weights_file)
    with pytest.raises(UsageError) as caught:
        read(toy_spec, str(weights_file))
    assert str(caught.value).startswith(f"--weights {weights_file}")
    assert found in str(caught.value)


def test_a_file_of_another_format_is_refused(toy_spec, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.h5"):
        read(toy_spec, str(tmp_path / "model.pkl"))


def test_published_weights_are_loaded_and_recorded(toy_spec, weights_file: Path) -> None:
    def load(side: int) -> tuple[keras.Model, Path]:
        network = toy_spec.build(side)
        network.load_weights(weights_file)
        return network, weights_file

    published = replace(toy_spec, load_pretrained=load)
    expected = kernel(read(toy_spec, str(weights_file))[0])
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    for choice in ("auto", "imagenet"):
        backbone, source = read(published, choice)
        assert source == WeightsSource("imagenet", str(weights_file), digest, "ImageNet")
        np.testing.assert_array_equal(kernel(backbone), expected)
    # Of weights whose file is unknown, the arrays are the identity.
    nowhere = replace(published, load_pretrained=lambda side: (load(side)[0], None))
    digests = {read(nowhere, "imagenet")[1].sha256 for _ in range(2)}
    assert len(digests) == 1
    assert digests.isdisjoint({digest, None})


def test_where_they_cannot_be_had_auto_warns_and_imagenet_fails(toy_spec) -> None:
    def fail(side: int) -> tuple[keras.Model, None]:
        raise DownloadError("no network")

    published = replace(toy_spec, load_pretrained=fail)
    source = read(published, "auto")[1]
    assert source.kind == "random"
    assert "RANDOM weights" in source.warning
    assert "no network" in source.warning
    with pytest.raises(DownloadError):
        read(published, "imagenet")


def test_no_published_weights(toy_spec) -> None:
    assert "RANDOM weights" in read(toy_spec, "auto")[1].warning
    assert read(toy_spec, "random")[1].warning is None
    assert read(BACKBONES["mlp"], "auto")[1].warning is None  # which has no weights
    with pytest.raises(UsageError):
        read(toy_spec, "imagenet")


def build_published(side: int) -> keras.Model:
    """Return a network that is not of plain layers."""
    inputs = keras.Input((side, side, 3))
    stem = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    x = stem(inputs)
    y = keras.layers.Conv2D(4, 5, padding="same", groups=4)(x)
    return keras.Model(inputs, keras.layers.Dropout(0.5)(x + y), name="toy")


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_files_have_the_published_layout(toy_spec, tmp_path: Path, name: str) -> None:
    spec = replace(toy_spec, build=build_published, is_plain=False)
    published = build_published(16)
    rng = np.random.default_rng(0)
    published.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in published.weights])
    save = published.save_weights if name == "new.weights.h5" else published.save
    save(tmp_path / name)
    backbone, source = read(spec, str(tmp_path / name))
    assert source.kind == "file"
    assert backbone.operations == backbone.layers
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = np.asarray(published(images, training=False))
    np.testing.assert_allclose(backbone(images, training=False), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(UsageError, match="15 arrays; found 8 arrays"):
        read(toy_spec, str(tmp_path / name))


@pytest.mark.real
def test_real_weights_file_is_accepted(resnet50_weights: Path) -> None:
    spec, _ = find_backbone_spec("resnet50", None)
    backbone, source = read_backbone(spec, 32, str(resnet50_weights))
    assert source.kind == "file"
    assert backbone.get_layer("conv1_bn").moving_mean.numpy().std() > 0
