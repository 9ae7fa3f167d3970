"""Standardized and cut runs: their statistics, and what continues and predicts from them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from toyrun import WORDS, draw, train_in
from yardstick import hash_run

from fmnist_tf import predict
from fmnist_tf.data.splits import plan_splits
from fmnist_tf.model.classifier import find_backbone, find_standardization
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.signals import StoppedError
from fmnist_tf.train import main
from fmnist_tf.training.loop import Trainer

FROZEN = [*WORDS, "--data", "toy_train.csv", "--augment", "flip"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and the run `whole` of four epochs."""
    folder = tmp_path_factory.mktemp("standardized")
    train_in(folder, *FROZEN, "--epochs", "4", "--run", "whole")
    return folder


@pytest.fixture
def runs(trained: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return Path("runs")


def load(run: Path) -> keras.Model:
    return keras.saving.load_model(run / "model.keras", safe_mode=True)


def test_features_are_standardized_over_both_views_of_the_training_rows(runs: Path) -> None:
    model, pixels = load(runs / "whole"), draw(60, 0).reshape(-1, 28, 28)
    train = plan_splits(np.arange(60) % 3, val_fraction=0.1, seed=0).train
    views = np.concatenate([pixels[train], pixels[train][:, :, ::-1]])
    layer = find_standardization(model)
    features = keras.Model(model.input, layer.input)(views, training=False)
    np.testing.assert_allclose(layer.adapt_mean, np.mean(features, axis=0), rtol=5e-3, atol=1e-2)
    found = np.asarray(keras.Model(model.input, layer.output)(views, training=False))
    varies = found.var(axis=0) > 0.5
    assert varies.any()
    np.testing.assert_allclose(found[:, varies].var(axis=0), 1.0, rtol=1e-2)


def test_a_stopped_run_predicts_and_is_resumed_as_if_undisturbed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Trainer, *given: Any, on_step: Callable[[Any], None], **named: Any) -> Any:
        def on_each(position: Any) -> None:
            on_step(position)
            if (position.epoch, position.step) == (3, 2):
                os.kill(os.getpid(), signal.SIGTERM)

        return original(self, *given, on_step=on_each, **named)

    original = Trainer.run_epochs
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epochs", stop)
        assert main([*FROZEN, "--epochs", "4", "--run", "stopped"]) == 143
    assert len(RunDir(runs / "stopped").read_history()) == 2
    assert main([*FROZEN, "--epochs", "2", "--run", "short"]) == 0
    for run in ("stopped", "short"):
        assert predict.main([run, "toy_test.csv", "--out", f"{run}.csv"]) == 0
    assert Path("stopped.csv").read_text() == Path("short.csv").read_text()
    # It keeps its own statistics, even if features that are computed anew differ a little.
    measure = Trainer.measure_features
    monkeypatch.setattr(Trainer, "measure_features", lambda *x: np.multiply(measure(*x), 1.001))
    assert main(["--resume", "stopped"]) == 0
    assert hash_run(runs / "stopped") == hash_run(runs / "whole")


def test_a_run_that_was_stopped_after_its_training_keeps_its_statistics(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("fmnist_tf.pipeline.finish.finish", stop)
        assert main([*FROZEN, "--epochs", "4", "--run", "trained"]) == 143
    measure = Trainer.measure_features
    monkeypatch.setattr(Trainer, "measure_features", lambda *x: np.multiply(measure(*x), 1.5))
    assert main(["--resume", "trained"]) == 0
    val = [RunDir(runs / run).read_json("evaluation.json")["val"] for run in ("trained", "whole")]
    assert val[0] == val[1]


@pytest.mark.slow
def test_a_cut_run_is_finetuned_with_its_own_statistics(runs: Path) -> None:
    assert main([*FROZEN, "--epochs", "3", "--cut", "stem", "--head", "gap", "--run", "cut"]) == 0
    words = ["--phase", "finetune", "--from", "cut", "--run", "fine", "--unfreeze", "stem"]
    assert main([*words, "--epochs", "1", "--batch-size", "16", "--wandb", "disabled"]) == 0
    cut, fine = load(runs / "cut"), load(runs / "fine")
    assert find_backbone(cut).layers[-1].name == "stem_relu"
    found, expected = (find_standardization(model) for model in (fine, cut))
    np.testing.assert_array_equal(found.adapt_mean, expected.adapt_mean)
    np.testing.assert_array_equal(found.adapt_variance, expected.adapt_variance)
    assert json.loads((runs / "fine/config.json").read_text())["cut"] == "stem"
    start, parent = (RunDir(runs / name).read_history() for name in ("fine", "cut"))
    best = max(parent, key=lambda row: (row.val_accuracy, -row.val_loss))
    assert start[0].val_accuracy == best.val_accuracy
    assert start[0].val_loss == pytest.approx(best.val_loss, rel=0.02)
