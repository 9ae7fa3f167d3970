"""A finished run found again: its files are checked, its model is rebuilt, its data are its own."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from fakerun import change_json
from test_train import QUICK, copy_frozen, frozen, write_csv

from fmnist_tf import evaluate, predict
from fmnist_tf.data.sources import read_dataset
from fmnist_tf.errors import UsageError
from fmnist_tf.model.inference import compile_model, run_all
from fmnist_tf.pipeline.run_data import read_own_dataset
from fmnist_tf.pipeline.saved_run import (
    SavedRun,
    find_run,
    read_saved_run,
)
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import fit_temperature, scale
from fmnist_tf.train import main


@pytest.fixture
def folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 60, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    copy_frozen()
    return tmp_path


def read(name: str = "first") -> SavedRun:
    return read_saved_run(find_run(name, Path("runs")))


@pytest.mark.parametrize("words", [[], ["--run", "other", "--head", "gap", "--units", "6"]])
def test_the_rebuilt_model_gives_the_recorded_predictions(folder: Path, words: list[str]) -> None:
    run = read()
    if words:
        frozen(*words)
        run = read("other")
    assert run.class_names == ("3", "7", "20")
    dataset = read_own_dataset(run)
    labels, recorded = run.directory.read_predictions()
    (found,) = run_all(compile_model(run.model), dataset.test.pixels)
    np.testing.assert_allclose(found, recorded, atol=1e-6)
    np.testing.assert_array_equal(labels, dataset.test.labels)


@pytest.mark.parametrize("name", ["first", "runs/first", "./runs/first/"])
def test_a_run_is_found_by_name_and_by_path(folder: Path, name: str) -> None:
    assert find_run(name, Path("runs")).read_json("config.json")["backbone"] == "toy"


def test_the_temperature_is_fitted_on_val_and_changes_no_class(folder: Path) -> None:
    run = read()
    with np.load("runs/first/report.npz") as arrays:
        val = arrays["val_labels"], arrays["val_probabilities"]
    assert run.temperature == pytest.approx(fit_temperature(*val))
    change_json(Path("runs/first/evaluation.json"), calibration={"temperature": 2.0})
    run = read()
    pixels = read_images("toy_test.csv")
    plain, scaled = (run_all(of, pixels)[0] for of in (run.run_batches, run.run_scaled))
    np.testing.assert_allclose(scaled, scale(plain, 2.0))
    np.testing.assert_array_equal(scaled.argmax(axis=1), plain.argmax(axis=1))


def test_a_changed_model_is_refused(folder: Path) -> None:
    model = keras.saving.load_model("runs/first/model.keras")
    model.layers[-1].bias.assign([9, 9, 9])
    model.save("runs/first/model.keras")
    with pytest.raises(UsageError, match=r"model.keras: expected .* DONE.json"):
        _ = read().model
    Path("runs/first/model.keras").unlink()
    with pytest.raises(UsageError, match="no such file"):
        _ = read().model


def test_an_incomplete_or_damaged_run_is_refused(folder: Path) -> None:
    provenance = json.loads(Path("runs/first/provenance.json").read_text())
    del provenance["data"]["files"]
    Path("runs/first/provenance.json").write_text(json.dumps(provenance))
    RunDir(Path("runs/first")).write_done()
    with pytest.raises(UsageError, match="found one without 'files'"):
        read()
    Path("runs/first/DONE.json").unlink()
    with pytest.raises(UsageError, match=r"or one with a checkpoint"):
        read()


def test_what_must_not_be_missed(folder: Path) -> None:
    assert read().caveats == ("RANDOM backbone weights, never pretrained",)
    words = [*QUICK, "--data", "sample", "--limit", "100", "--epochs", "1"]
    assert main(["--phase", "scratch", *words, "--run", "digits"]) == 0
    assert read("digits").caveats == ("built-in SAMPLE of handwritten digits",)
    assert read_own_dataset(read("digits")).kind == "sample"


@pytest.mark.real
def test_the_official_files_are_found_again(
    folder: Path, keras_home_with_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(keras_home_with_data))
    dataset = read_dataset("official", store_dir=folder / "store", say=print)
    files = [asdict(file) for file in dataset.files]
    files[0]["path"] = "gone/" + Path(files[0]["path"]).name
    run = replace(read(), provenance={"data": {"files": files}})
    found = read_own_dataset(run)
    assert (found.kind, found.train.digest) == ("official", dataset.train.digest)
    files[1]["sha256"] = "0" * 64
    with pytest.raises(UsageError, match="Name the data with --data"):
        read_own_dataset(run)


def read_images(name: str) -> np.ndarray:
    rows = np.loadtxt(name, delimiter=",", skiprows=1, dtype=int)[:, 1:]
    return rows.reshape(-1, 28, 28).astype(np.uint8)


def average() -> RunDir:
    frozen("--test-time-flip", "--run", "averaged")
    return RunDir(Path("runs/averaged"))


def ask_keras(run: RunDir, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the saved network says of images and of their mirror images."""
    model = keras.saving.load_model(run.file("model.keras"))
    plain, mirrored = (model.predict(x, verbose=0) for x in (images, images[:, :, ::-1]))
    assert np.abs(plain - mirrored).max() > 0.02, "the toy has to tell left from right"
    return plain, mirrored


def test_val_and_test_are_averaged_over_flips_where_asked(folder: Path) -> None:
    run = average()
    plain, mirrored = ask_keras(run, read_images("toy_test.csv"))
    _, found = run.read_predictions()
    np.testing.assert_allclose(found, (plain + mirrored) / 2, atol=1e-5)
    # Without, the same network is asked once.
    _, unasked = RunDir(Path("runs/first")).read_predictions()
    np.testing.assert_allclose(unasked, plain, atol=1e-5)

    arrays, told = run.read_arrays("report.npz"), run.read_json("evaluation.json")
    plain, mirrored = ask_keras(run, read_images("toy_train.csv")[arrays["val_lines"] - 2])
    averaged = arrays["val_probabilities"]
    np.testing.assert_allclose(averaged, (plain + mirrored) / 2, atol=1e-5)
    of_label = np.arange(6), arrays["val_labels"]
    assert told["val"]["loss"] == pytest.approx(-np.log(averaged[of_label]).mean(), rel=1e-4)
    by = "model.keras, mean of each image and its mirror image"
    assert (told["val"]["computed_by"], told["test"]["computed_by"]) == (by, by)
    # The epoch is chosen, and the loop compared, without.
    chosen = run.read_history()[told["chosen_epoch"] - 1]
    assert chosen.val_loss == pytest.approx(-np.log(plain[of_label]).mean(), rel=2e-3)
    assert chosen.val_loss != pytest.approx(told["val"]["loss"], rel=2e-3)
    assert told["val"]["agreement"]["largest_difference"] < 0.01


def test_who_asks_an_averaging_run_gets_averages(folder: Path, capsys) -> None:
    _, expected = average().read_predictions()
    header, *lines = [line.split(",") for line in Path("toy_test.csv").read_text().splitlines()]
    images = read_images("toy_test.csv")[:, :, ::-1].reshape(-1, 784).tolist()
    with open("mirrored.csv", "w", newline="") as file:
        rows = ([line[0], *pixels] for line, pixels in zip(lines, images, strict=True))
        csv.writer(file).writerows([header, *rows])
    run = read("averaged")
    loss = run.directory.read_json("evaluation.json")["test"]["loss"]
    for name in ("toy_test.csv", "mirrored.csv"):
        (found,) = run_all(run.run_batches, read_images(name))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert predict.main(["averaged", name, "--out", "o.csv"]) == 0
        with open("o.csv", newline="") as file:
            said = [float(row["probability"]) for row in csv.DictReader(file)]
        shown = scale(expected, run.temperature).max(axis=1)
        np.testing.assert_allclose(said, shown, atol=2e-6)
        capsys.readouterr()
        assert evaluate.main(["averaged", "--data", name]) == 0
        assert f"; loss {loss:.4f}" in capsys.readouterr().out
