"""A finished run found again: its files are checked, its model is rebuilt, its data are its own."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from test_train import QUICK, copy_frozen, frozen, write_csv

from fmnist_tf.errors import UsageError
from fmnist_tf.finished import (
    FinishedRun,
    build_finished,
    find_run,
    read_finished,
    read_run_dataset,
    run_model,
)
from fmnist_tf.train import main


@pytest.fixture
def folder(tmp_path: Path, toy_card, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 60, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    copy_frozen()
    return tmp_path


def read(name: str = "first") -> FinishedRun:
    return read_finished(find_run(name, Path("runs")))


@pytest.mark.parametrize("words", [[], ["--run", "other", "--head", "gap", "--units", "6"]])
def test_the_rebuilt_model_gives_the_recorded_predictions(folder: Path, words: list[str]) -> None:
    run = read()
    if words:
        frozen(*words)
        run = read("other")
    assert run.class_names == ("3", "7", "20")
    dataset = read_run_dataset(run, print)
    labels, recorded = run.directory.read_predictions()
    (found,) = run_model(build_finished(run), dataset.test.pixels)
    np.testing.assert_allclose(found, recorded, atol=1e-6)
    np.testing.assert_array_equal(labels, dataset.test.labels)


@pytest.mark.parametrize("name", ["first", "runs/first", "./runs/first/"])
def test_a_run_is_found_by_name_and_by_path(folder: Path, name: str) -> None:
    assert find_run(name, Path("runs")).read_json("config.json")["backbone"] == "toy"


def test_a_changed_model_is_refused(folder: Path) -> None:
    model = keras.saving.load_model("runs/first/model.keras")
    model.layers[-1].bias.assign([9, 9, 9])
    model.save("runs/first/model.keras")
    with pytest.raises(UsageError, match=r"expected SHA-256 \w{64} as DONE.json says, found"):
        build_finished(read())
    Path("runs/first/model.keras").unlink()
    with pytest.raises(UsageError, match="found no file"):
        build_finished(read())


def test_an_incomplete_or_damaged_run_is_refused(folder: Path) -> None:
    provenance = json.loads(Path("runs/first/provenance.json").read_text())
    del provenance["data"]["files"]
    Path("runs/first/provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(UsageError, match="found one without 'files'"):
        read()
    Path("runs/first/DONE.json").unlink()
    with pytest.raises(UsageError, match=r"found one without DONE\.json"):
        read()


def test_other_data_must_be_named(folder: Path) -> None:
    write_csv(folder / "toy_test.csv", 30, seed=5)
    with pytest.raises(UsageError, match=r"found \w{64}, \w{64}\. Name the data with --data"):
        read_run_dataset(read(), print)
    (folder / "toy_test.csv").unlink()
    with pytest.raises(UsageError, match=r"expected toy_test\.csv, found no such file"):
        read_run_dataset(read(), print)


def test_what_must_not_be_missed(folder: Path) -> None:
    assert read().caveats == ("RANDOM backbone weights, never pretrained",)
    words = [*QUICK, "--data", "sample", "--limit", "100", "--epochs", "1"]
    assert main(["--phase", "scratch", *words, "--run", "drawn"]) == 0
    assert read("drawn").caveats == ("built-in SAMPLE, not real data",)
