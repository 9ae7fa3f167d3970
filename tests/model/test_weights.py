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
from fmnist_tf.model.backbones import BACKBONES, PretrainedWeights, find_backbone_spec
from fmnist_tf.model.networks import rebuild
from fmnist_tf.model.weights import read_backbone_weights


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that loads weights into a fresh toy backbone."""

    def load(spec, choice: str):
        backbone, downloads = spec.build(16), tmp_path / "downloads"
        return backbone, read_backbone_weights(
            backbone, spec, choice, download_dir=downloads, say=print
        )

    return load


@pytest.fixture
def weights_file(toy_spec, tmp_path: Path) -> Path:
    keras.utils.set_random_seed(7)
    path = tmp_path / "toy.weights.h5"
    toy_spec.build(16).save_weights(path)
    return path


def kernel(backbone) -> np.ndarray:
    return backbone.get_layer("stem_conv").kernel.numpy()


def test_a_file_is_loaded_and_recorded(read, toy_spec, weights_file: Path) -> None:
    backbone, source = read(toy_spec, str(weights_file))
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(kernel(backbone), kernel(toy_spec.build(16)))
    assert source.kind == "file"
    assert source.sha256 == hashlib.sha256(weights_file.read_bytes()).hexdigest()


def test_random_weights_need_no_warning_if_asked_for(read, toy_spec) -> None:
    assert read(toy_spec, "random")[1].warning is None


def _other_network(path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)).save_weights(path)


def _text(path: Path) -> None:
    path.write_text("<html>not found</html>")


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


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
        (_cut_short, "HDF5"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_wrong_file_is_refused(read, toy_spec, weights_file: Path, damage, found: str) -> None:
    damage(weights_file)
    with pytest.raises(UsageError) as caught:
        read(toy_spec, str(weights_file))
    assert str(caught.value).startswith(f"--weights {weights_file}")
    assert found in str(caught.value)


def test_a_file_of_another_format_is_refused(read, toy_spec, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.h5"):
        read(toy_spec, str(tmp_path / "model.pkl"))


@pytest.fixture
def published(toy_spec, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The toy spec with published weights, which are in Keras' cache only."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    cached = tmp_path / "home/models/toy_notop.weights.h5"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights_file.read_bytes())
    return replace(
        toy_spec,
        pretrained=PretrainedWeights(
            url="http://127.0.0.1:9/toy_notop.weights.h5",
            digest="md5:" + hashlib.md5(weights_file.read_bytes()).hexdigest(),
            trained_on="nothing",
            licence="none",
        ),
    )


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_published_weights_are_found_in_the_cache_of_keras(
    read, published, weights_file: Path, tmp_path: Path, choice: str
) -> None:
    backbone, source = read(published, choice)
    assert (source.kind, source.trained_on) == ("imagenet", "nothing")
    assert source.path == str(tmp_path / "home/models/toy_notop.weights.h5")
    np.testing.assert_array_equal(kernel(backbone), kernel(read(published, str(weights_file))[0]))


def test_without_a_network_auto_falls_back_with_a_warning_and_imagenet_fails(
    read, published
) -> None:
    wrong = replace(published, pretrained=replace(published.pretrained, digest="md5:" + "0" * 32))
    _, source = read(wrong, "auto")
    assert source.kind == "random"
    assert "RANDOM weights" in source.warning
    with pytest.raises(DownloadError):
        read(wrong, "imagenet")


def test_no_published_weights(read, toy_spec) -> None:
    warning = read(toy_spec, "auto")[1].warning
    assert "RANDOM weights" in warning
    with pytest.raises(UsageError):
        read(toy_spec, "imagenet")


def test_a_backbone_without_weights_needs_no_warning(read) -> None:
    assert read(BACKBONES["mlp"], "auto")[1].warning is None


def test_unknown_backbone_and_too_small_a_side(read, toy_spec) -> None:
    with pytest.raises(UsageError, match="--backbone vgg"):
        find_backbone_spec("vgg", None)
    with pytest.raises(UsageError, match="--image-size 7"):
        find_backbone_spec("toy", 7)
    assert find_backbone_spec("toy", None) == (toy_spec, 16)


@pytest.fixture
def rebuilt_spec(toy_spec):
    """A spec whose network is rebuilt from another one with published weights."""

    def build_published(side: int) -> keras.Model:
        inputs = keras.Input((side, side, 3))
        stem = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
        x = stem(inputs)
        y = keras.layers.Conv2D(4, 5, padding="same", groups=4)(x)
        return keras.Model(inputs, keras.layers.Dropout(0.5)(x + y), name="toy")

    def label(names):
        return (("stem", "") for _ in names)

    return replace(
        toy_spec,
        build=lambda side: rebuild(build_published(side), label),
        build_published=build_published,
        stages={"stem": ("stem_",)},
    )


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_a_rebuilt_network_reads_the_published_layout(
    read, rebuilt_spec, tmp_path: Path, name: str
) -> None:
    published = rebuilt_spec.build_published(16)
    rng = np.random.default_rng(0)
    published.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in published.weights])
    save = published.save_weights if name == "new.weights.h5" else published.save
    save(tmp_path / name)
    backbone, source = read(rebuilt_spec, str(tmp_path / name))
    assert source.kind == "file"
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = np.asarray(published(images, training=False))
    np.testing.assert_allclose(backbone(images, training=False), expected, rtol=1e-5, atol=1e-4)


def test_a_rebuilt_network_refuses_another_networks_file(
    read, rebuilt_spec, weights_file: Path
) -> None:
    with pytest.raises(UsageError, match="8 arrays; found 15 arrays"):
        read(rebuilt_spec, str(weights_file))


@pytest.mark.real
def test_real_weights_file_is_accepted(resnet50_weights: Path) -> None:
    spec = BACKBONES["resnet50"]
    backbone = spec.build(32)
    source = read_backbone_weights(
        backbone, spec, str(resnet50_weights), download_dir=Path("unused"), say=print
    )
    assert source.kind == "file"
    assert backbone.get_layer("conv1_bn").moving_mean.numpy().std() > 0
