"""`--cut auto` measures every stage at every size, and keeps to what it chose."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from toyrun import NAMES, WORDS, draw, write_csv

from fmnist_tf.errors import UsageError
from fmnist_tf.pipeline.cut_search import probe
from fmnist_tf.train import main

AUTO = [*WORDS, "--data", "toy_train.csv", "--epochs", "1", "--cut", "auto", "--run", "r"]


@pytest.fixture
def folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, n_rows, seed in (("train", 60, 0), ("test", 21, 1)):
        write_csv(f"toy_{name}.csv", draw(n_rows, seed), [NAMES[row % 3] for row in range(n_rows)])
    return tmp_path


def test_every_stage_is_measured_and_the_best_is_taken(folder: Path) -> None:
    assert main([*AUTO, "--image-size", "16,24"]) == 0
    with open("runs/r/cuts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [(r["image_size"], r["cut"], r["n_features"]) for r in rows]
    assert measured == [
        ("16", "stem", "256"), ("16", "conv2", "128"),
        ("24", "stem", "576"), ("24", "conv2", "288"),
    ]  # fmt: skip
    assert all(int(r["stored_bytes"]) == 2 * int(r["n_features"]) for r in rows)
    assert all(float(r["seconds_per_1000"]) > 0 for r in rows)
    (chosen,) = (row for row in rows if row["chosen"] == "1")
    assert chosen["probe_accuracy"] == max(row["probe_accuracy"] for row in rows)
    config = json.loads(Path("runs/r/config.json").read_text())
    assert (str(config["image_size"]), config["cut"]) == (chosen["image_size"], chosen["cut"])
    page = Path("runs/r/report.html").read_text()
    assert all(f"<td>{row['n_features']}</td>" in page for row in rows)
    done = json.loads(Path("runs/r/DONE.json").read_text())
    assert {"cuts.csv", "cuts.png"} <= set(done["files"])


def test_an_unfinished_run_keeps_its_cut(folder: Path, capsys) -> None:
    assert main([*AUTO, "--image-size", "16,24"]) == 0
    Path("runs/r/DONE.json").unlink()
    capsys.readouterr()
    assert main([*AUTO, "--image-size", "16,24"]) == 0
    assert "cut search" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--cut", "auto", "--time-budget", "1e-9"],
        ["--cut", "auto", "--phase", "scratch"],
        ["--cut", "conv2", "--image-size", "16,24"],
        ["--cut", "conv2", "--time-budget", "60"],
        ["--cut", "conv9"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused(folder: Path, words: list[str]) -> None:
    assert main([*WORDS, "--data", "toy_train.csv", *words]) == 2
    assert not list(Path("runs").glob("[!.]*"))


def test_a_probe_tells_features_that_separate_the_classes() -> None:
    rng, labels = np.random.default_rng(0), np.arange(120) % 3
    noise = rng.normal(size=(120, 40)).astype(np.float32)
    assert probe(noise, labels) < 0.6
    noise[np.arange(120), labels] += 9
    assert probe(noise, labels) > 0.95
    with pytest.raises(UsageError):
        probe(noise[:3], labels[:3])
