"""Presets of KerasHub as backbones; here a small one in a folder, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import fmnist_tf
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import build_backbone, find_backbone_spec
from fmnist_tf.model.blocks import find_blocks, list_stages
from fmnist_tf.model.classifier import find_backbone


@pytest.fixture(scope="module")
def keras_hub() -> Any:
    """The package, whose import takes seconds."""
    return pytest.importorskip("keras_hub")


@pytest.fixture(scope="module")
def preset(keras_hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preset")
    stem = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7]}
    stages = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1]}
    keras_hub.models.ResNetBackbone(
        **stem,
        **stages,
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    ).save_to_preset(folder)
    keras_hub.layers.ResNetImageConverter(
        image_size=(32, 32), scale=[1 / 255, 1 / 128, 1.0], offset=[0.0, -1.0, 2.0]
    ).save_to_preset(folder)
    return folder


def test_a_run_on_a_preset(
    keras_hub: Any, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"hub:{preset}"
    run = fmnist_tf.train(
        "sample", backbone=name, limit=100, epochs=1, units=8, wandb="disabled", quiet=True
    )
    assert run.settings["image_size"] == 32
    weights = json.loads((run.path / "provenance.json").read_text())["weights"]
    assert weights["kind"] == "preset"
    assert str(preset) in weights["trained_on"]
    # The saved file is made of Keras' own layers, and computes what KerasHub does.
    saved = keras.saving.load_model(run.path / "model.keras")
    backbone = find_backbone(saved)
    assert list_stages(find_blocks(backbone)) == ("stem", "stack0", "stack1")
    theirs = keras_hub.models.Backbone.from_preset(str(preset), image_shape=(32, 32, 3))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(
        backbone.predict(x, verbose=0), theirs.predict(x, verbose=0), atol=1e-4
    )


def test_the_range_of_the_input_is_the_presets(preset: Path) -> None:
    spec, side = find_backbone_spec(f"hub:{preset}", None)
    assert side == 32
    np.testing.assert_allclose(spec.value_range.scale, [1 / 255, 1 / 128, 1.0])
    np.testing.assert_allclose(spec.value_range.offset, [0.0, -1.0, 2.0])


def test_what_is_no_preset_of_plain_layers_is_refused(keras_hub: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preset"):
        find_backbone_spec("hub:no such preset", None)
    keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
    ).save_to_preset(tmp_path)
    keras_hub.layers.ViTImageConverter(image_size=(32, 32)).save_to_preset(tmp_path)
    spec, side = find_backbone_spec(f"hub:{tmp_path}", None)
    with pytest.raises(UsageError, match="own layers"):
        build_backbone(spec, side)


@pytest.mark.usefixtures("keras_hub")
def test_a_dead_network_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="resnet_18_imagenet"):
        find_backbone_spec("hub:resnet_18_imagenet", None)
