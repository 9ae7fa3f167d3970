"""The Python API: train, finetune, use and reload a run; the commands' errors as exceptions."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toyrun import NAMES, copy_toy_run, draw, write_csv

import fmnist_tf
from fmnist_tf.errors import DataError, FmnistError, RunExistsError, UsageError

SETTINGS = {
    "backbone": "toy", "weights": "random", "units": 8, "batch_size": 16, "epochs": 2,
    "precision": "float32", "learning_rate": 0.01, "wandb": "disabled", "quiet": True,
}  # fmt: skip
LABELS = [NAMES[row % 3] for row in range(60)]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ten_lines_of_python(tmp_path: Path) -> None:
    write_csv("my_train.csv", draw(60, 0), LABELS)
    write_csv("new.csv", draw(4, 2), None)
    Image.fromarray(draw(1, 3).reshape(28, 28)).resize((140, 140)).save("shirt.png")

    run = fmnist_tf.train("my_train.csv", phase="frozen", **SETTINGS)
    run = run.finetune(unfreeze="conv2", epochs=1, wandb="disabled")
    assert 0 <= run.accuracy == run.test.correct / run.test.total <= 1
    assert list(run.history.columns)[:3] == ["phase", "loss", "accuracy"]
    assert run.history.index.tolist() == [0, 1]
    assert run.confusion.loc["bag"].sum() == run.test.confusion[1].sum()
    table = run.predict("new.csv")
    assert run.predict("shirt.png").prediction.isin(NAMES).all()
    assert run.evaluate("my_train.csv").total == 60
    assert run.report().is_file()
    assert (run.export("saved_model") / "export.json").is_file()
    loaded = fmnist_tf.load_run(run.path)

    assert run.settings["unfreeze"] == ["conv2"]
    assert run.settings["parent"] in str(next(tmp_path.glob("runs/*frozen*")))
    np.testing.assert_allclose(table[list(NAMES)].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(table.probability, table[list(NAMES)].max(axis=1))
    probabilities = loaded.model.predict(draw(4, 2).reshape(-1, 28, 28), verbose=0)
    np.testing.assert_array_equal(np.take(NAMES, probabilities.argmax(axis=1)), table.prediction)
    assert loaded.accuracy == run.accuracy
    pd.testing.assert_frame_equal(loaded.confusion, run.confusion)


def test_arrays_in_place_of_files() -> None:
    images, test = draw(60, 0).reshape(-1, 28, 28), draw(21, 1)
    run = fmnist_tf.train(
        (images, LABELS), test=(test, np.array(LABELS[:21], object)), run="a", **SETTINGS
    )
    assert run.test.total == 21
    assert run.class_names == NAMES
    assert run.evaluate((test, LABELS[:21])).correct == run.test.correct
    pd.testing.assert_frame_equal(run.predict(images[0]), run.predict(images).iloc[:1])
    # A later process finds them, also by the command that the run records.
    assert fmnist_tf.load_run("a").finetune(epochs=1, wandb="disabled").test.total == 21
    command = json.loads((run.path / "provenance.json").read_text())["command"].split()
    assert command[:3] == ["python", "-m", "fmnist_tf.train"]
    shutil.rmtree(run.path)
    repeated = importlib.import_module("fmnist_tf.train").main([*command[3:], "--quiet"])
    assert repeated == 0
    assert fmnist_tf.load_run("a").test.loss == run.test.loss


def test_an_export_is_checked_with_images_that_were_held_out() -> None:
    run = fmnist_tf.train((draw(60, 0), LABELS), run="a", **SETTINGS)
    report = json.loads((run.export("saved_model") / "export.json").read_text())
    assert report["warnings"] == ["RANDOM backbone weights, never pretrained"]


def test_settings_are_named_as_the_flags() -> None:
    copy_toy_run(Path())
    settings = {**SETTINGS, "lr": 0.02, "augment": "flip", "no_test": True}
    del settings["learning_rate"]
    run = fmnist_tf.train("toy_train.csv", **settings)
    named = ("learning_rate", "augment", "limit_test")
    assert [run.settings[name] for name in named] == [0.02, ["flip"], 0]
    with pytest.raises(UsageError, match="not tested"):
        _ = run.accuracy
    assert run.evaluate().total == 21


def test_errors_are_exceptions_that_name_the_argument(capfd: pytest.CaptureFixture[str]) -> None:
    copy_toy_run(Path())
    data = {"data": "toy_train.csv", **SETTINGS}
    for arguments, kind, word in [
        ({"epoch": 3}, UsageError, "epochs"),
        ({"epochs": -1}, UsageError, "epochs in train()"),
        ({"unfreeze": "conv2"}, UsageError, "unfreeze in train()"),
        ({"augment": ["flop"]}, UsageError, "augment"),
        ({"data": "absent.csv"}, UsageError, "absent.csv"),
        ({"wandb": "disable"}, UsageError, "--wandb disable: expected auto, online, offline"),
        ({"run": "first"}, RunExistsError, "first"),
        ({"data": (draw(3, 0), [1, 2])}, DataError, "E045"),
        ({"data": (draw(3, 0) / 255, [1, 2, 3])}, DataError, "E034"),
    ]:
        with pytest.raises(kind) as caught:
            fmnist_tf.train(**{**data, **arguments})
        assert word in str(caught.value)
    run = fmnist_tf.load_run("first")
    with pytest.raises(DataError, match="E034"):
        run.predict(np.full((1, 28, 28), 0.5))
    with pytest.raises(UsageError, match="litert"):
        run.export("tflite")
    with pytest.raises(FmnistError):
        fmnist_tf.load_run("absent")
    assert "Traceback" not in capfd.readouterr().err


def test_the_name_train_is_a_function_whatever_was_imported() -> None:
    code = "import fmnist_tf; from fmnist_tf.train import main; print(callable(fmnist_tf.train))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_ends_like_an_undisturbed_run(tmp_path: Path) -> None:
    np.save("x.npy", draw(1, 0))
    script = """
import os, signal, threading, time
from pathlib import Path
import fmnist_tf

def interrupt():
    while not Path("runs/a/history.csv").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

settings = dict(backbone="mlp", phase="scratch", epochs=9, wandb="disabled", quiet=True)
threading.Thread(target=interrupt, daemon=True).start()
try:
    fmnist_tf.train("sample", run="a", **settings)
except KeyboardInterrupt:
    stopped = fmnist_tf.load_run("a")
    assert 1 <= len(stopped.history) < 9
    assert len(stopped.predict("x.npy")) == 1
    assert "Stopped" in stopped.report().read_text()
a = fmnist_tf.train(resume="a", quiet=True)
b = fmnist_tf.train("sample", run="b", **settings)
assert a.test.loss == b.test.loss
assert a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)
