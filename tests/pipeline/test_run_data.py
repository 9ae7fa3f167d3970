"""Data for a saved run: its own again, or other files under its classes."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toyrun import NAMES, copy_toy_run, draw, write_csv

from fmnist_tf.convert import main as convert
from fmnist_tf.data.labels import FASHION_MNIST
from fmnist_tf.errors import UsageError
from fmnist_tf.pipeline.run_data import read_labelled, read_labelled_dataset, read_own_dataset
from fmnist_tf.pipeline.saved_run import SavedRun, find_run, read_saved_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SavedRun:
    """A toy run in the current folder."""
    copy_toy_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return read_saved_run(find_run("first", Path("runs")))


def test_test_images_held_out_of_the_train_file_are_found_again(run: SavedRun) -> None:
    facts = run.provenance["data"]
    run = replace(run, provenance={"data": facts | {"files": facts["files"][:1]}})
    Path("toy_test.csv").unlink()
    first, second = read_own_dataset(run), read_own_dataset(run)
    assert (len(first.train.labels), len(first.test.labels)) == (51, 9)
    assert first.test.digest == second.test.digest
    assert len(read_labelled(run, None)[1].labels) == 9


def test_changed_or_missing_data_must_be_named(run: SavedRun) -> None:
    write_csv("toy_test.csv", draw(6, seed=9), ["bag", "shoe"] * 3)
    with pytest.raises(UsageError, match="--data"):
        read_own_dataset(run)
    Path("toy_test.csv").unlink()
    with pytest.raises(UsageError, match="--data"):
        read_own_dataset(run)


def test_numbers_stand_for_the_names_of_fashion_mnist(run: SavedRun) -> None:
    run = replace(run, class_names=FASHION_MNIST)
    numbers = [3, 9, 0, 3]
    write_csv("numbers.csv", draw(4, seed=0), numbers)
    write_csv("names.csv", draw(4, seed=0), [FASHION_MNIST[k] for k in numbers])
    for name in ("numbers.csv", "names.csv"):
        assert read_labelled(run, name)[1].labels.tolist() == numbers


@pytest.mark.parametrize("column", ["kind", "label"])
def test_labels_are_in_the_runs_own_column_or_found(run: SavedRun, column: str) -> None:
    path = run.directory.file("config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_column": "kind"}))
    run.directory.write_done()
    run = read_saved_run(run.directory)
    write_csv("other_train.csv", draw(60, seed=0), ["shoe", "bag"] * 30, column)
    dataset = read_labelled_dataset(run, "other_train.csv")
    assert dataset.train.class_names == NAMES
    counts = np.bincount(dataset.train.labels) + np.bincount(dataset.test.labels)
    assert counts.tolist() == [0, 30, 30]
    _, images = read_labelled(run, "other_train.csv")
    assert images.labels.tolist() == [2, 1] * 30


def test_other_data_are_compared_with_the_training_images(run: SavedRun, capsys) -> None:
    write_csv("dim_train.csv", draw(60, seed=0) // 16, [NAMES[row % 3] for row in range(60)])
    read_labelled_dataset(run, "dim_train.csv")
    assert capsys.readouterr().err.count("W051 dim_train.csv: ") == 1
    read_labelled_dataset(run, "toy_train.csv")
    assert "W05" not in capsys.readouterr().err
    run.directory.file("report.npz").unlink()
    read_labelled_dataset(run, "dim_train.csv")  # cannot be compared
    captured = capsys.readouterr().err
    assert "W05" not in captured
    assert "not compared" in captured


def test_the_mending_command_names_the_label_column(run: SavedRun, capsys) -> None:
    write_csv("odd.csv", 255 - draw(9, seed=0), ["shoe", "bag", "shoe"] * 3, "a kind")
    read_labelled(run, "odd.csv", "a kind")
    command = capsys.readouterr().err.partition("fmnist_tf.convert ")[2]
    assert convert(shlex.split(command)) == 0
    assert read_labelled(run, "odd-mended.csv")[1].labels.tolist() == [2, 1, 2] * 3
    assert "W05" not in capsys.readouterr().err
