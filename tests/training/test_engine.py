"""Backbone features by OpenVINO: TensorFlow's within rounding, or TensorFlow's."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from toyrun import WORDS

from fmnist_tf.errors import UsageError
from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.train import main
from fmnist_tf.training import engine
from fmnist_tf.training.engine import EngineError, build_openvino_function, choose_engine
from fmnist_tf.training.features import average_feature_maps, build_feature_function
from fmnist_tf.training.loop import Trainer

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 784), np.uint8)
FROZEN = [*WORDS, "--data", "toy_train.csv", "--epochs", "2"]
FINETUNE = ["--phase", "finetune", "--from", "second", "--epochs", "1", "--wandb", "disabled"]
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")


@pytest.fixture
def build(toy_classifier):
    """Build the toy's feature function by OpenVINO."""

    def build_function(precision: str = "float32", **options: Any) -> Any:
        extractor = split_classifier(toy_classifier, "head").feature_extractor
        options = {"pools": False, "batch_size": 32, "examples": PIXELS} | options
        return build_openvino_function(extractor, precision, **options)

    return build_function


def install(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    """Make OpenVINO missing, or installed and broken."""

    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(engine, "version", version)
    monkeypatch.setitem(sys.modules, "openvino", None)


def engine_of(run: str) -> str:
    return json.loads(Path("runs", run, "provenance.json").read_text())["engine"]


@needs_openvino
def test_features_are_those_of_tensorflow_within_rounding(
    build, toy_classifier, precision: str
) -> None:
    extractor = split_classifier(toy_classifier, "head").feature_extractor
    expected = build_feature_function(extractor, precision)(PIXELS)
    found = build(precision)(PIXELS)
    assert (found.dtype, found.shape) == (tf.bfloat16, expected.shape)
    # Both round to 8 bits, and bfloat16 in each layer.
    atol = {"float32": 1e-3, "bfloat16": 0.02}[precision] * np.abs(expected.numpy()).max()
    np.testing.assert_allclose(
        *(np.float32(maps.numpy()) for maps in (found, expected)), rtol=2**-6, atol=atol
    )
    assert not sys.modules.get("openvino_telemetry")


@needs_openvino
def test_features_of_an_image_do_not_depend_on_its_batch(build) -> None:
    compute = build()
    inside_a_step = tf.function(lambda x: compute(x), autograph=False)
    whole = compute(PIXELS).numpy()
    for rows in (slice(0, 1), slice(3, 30), slice(7, 50)):
        np.testing.assert_array_equal(compute(PIXELS[rows]), whole[rows])
        np.testing.assert_array_equal(inside_a_step(tf.constant(PIXELS[rows])), whole[rows])
    np.testing.assert_array_equal(build(pools=True)(PIXELS), average_feature_maps(whole))


@needs_openvino
def test_features_unlike_those_of_tensorflow_are_refused(build, monkeypatch) -> None:
    monkeypatch.setattr(engine, "TOLERANCE", -1.0)
    with pytest.raises(EngineError):
        build()


def test_a_broken_openvino_leaves_the_run_to_tensorflow(toy_run: Path, monkeypatch, capsys) -> None:
    def digest_features() -> set[str]:
        return {path.name for path in Path("runs/.cache/features").iterdir()}

    install(monkeypatch, None)
    assert main([*FROZEN, "--run", "second"]) == 0
    expected = digest_features()
    install(monkeypatch, "9.9")
    capsys.readouterr()
    for words in (["--cache", "auto"], ["--cache", "off"]):
        assert main([*FROZEN, "--run", words[1], "--engine", "openvino", *words]) == 0
        assert "TensorFlow" in capsys.readouterr().err
        assert engine_of(words[1]) == "tensorflow"
    assert digest_features() == expected


def test_openvino_that_is_asked_for_and_missing_ends_the_command(
    toy_run: Path, monkeypatch, capsys
) -> None:
    install(monkeypatch, None)
    assert main([*FROZEN, "--run", "second", "--engine", "openvino"]) == 2
    assert "pip install" in capsys.readouterr().err
    assert not Path("runs/second").exists()


def test_auto_is_openvino_unless_a_gpu_or_the_past_speaks_against_it(monkeypatch) -> None:
    gpus: list[str] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    install(monkeypatch, "9.9")
    assert choose_engine("auto") == choose_engine("auto", "openvino 8") == "openvino 9.9"
    assert choose_engine("auto", "tensorflow") == choose_engine("tensorflow") == "tensorflow"
    assert choose_engine("openvino", "tensorflow") == "openvino 9.9"
    gpus.append("one")
    assert choose_engine("auto") == choose_engine("auto", "openvino 9.9") == "tensorflow"
    assert choose_engine("openvino") == "openvino 9.9"
    install(monkeypatch, None)
    assert choose_engine("auto") == "tensorflow"
    with pytest.raises(UsageError):
        choose_engine("openvino")


def test_a_resumed_run_and_its_finetune_run_keep_to_the_engine(toy_run: Path, monkeypatch) -> None:
    def stop(self, *given, **named):
        yield next(original(self, *given, **named))
        raise OSError("stopped")

    original = Trainer.run_epochs
    install(monkeypatch, None)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epochs", stop)
        assert main([*FROZEN, "--run", "second", "--checkpoint-seconds", "0"]) == 74
    install(monkeypatch, "9.9")  # between the two
    assert main([*FROZEN, "--run", "second"]) == 0
    assert main([*FINETUNE, "--run", "third"]) == 0
    assert engine_of("second") == engine_of("third") == "tensorflow"


@needs_openvino
def test_runs_name_the_engine_that_computed_their_features(toy_run: Path) -> None:
    for name in ("auto", "tensorflow", "openvino"):
        assert main([*FROZEN, "--run", name, "--engine", name]) == 0
    assert engine_of("auto") == engine_of("openvino") == choose_engine("openvino")
    assert engine_of("tensorflow") == "tensorflow"
    assert len(list(Path("runs/.cache/features").iterdir())) == 2
