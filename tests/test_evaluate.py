"""The command from end to end: the run's own test data, and other labelled CSVs."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from toyrun import NAMES, draw, write_csv

from fmnist_tf.evaluate import format_classes, main
from fmnist_tf.results.evaluation import Evaluation


def recorded(run: str) -> dict:
    return json.loads(Path(f"runs/{run}/evaluation.json").read_text())["test"]


def last_line(run: str, name: str) -> str:
    test = recorded(run)
    accuracy = f"accuracy {test['accuracy']:.4f} ({test['correct']}/{test['total']})"
    return f"runs/{run} on {name}  {accuracy}"


def evaluate(capsys, *words: str) -> list[str]:
    """Return the lines on stdout."""
    assert main([*words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_runs_own_test_data_give_the_recorded_figures(toy_run: Path, capsys) -> None:
    lines = evaluate(capsys, "first")
    assert lines[0].split() == ["class", "precision", "recall", "F1", "images"]
    assert [line.split()[0] for line in lines[1:4]] == ["=1+1", "bag", "shoe"]
    test = recorded("first")
    recall = [row[k] / sum(row) for k, row in enumerate(test["confusion"])]
    assert [line.split()[2] for line in lines[1:4]] == [f"{fraction:.4f}" for fraction in recall]
    low, high = test["interval_95"]
    assert f"{low:.4f} to {high:.4f}; loss {test['loss']:.4f}" in lines[-3]
    told = json.loads(Path("runs/first/evaluation.json").read_text())["calibration"]
    shown = [float(number) for number in re.findall(r"\d\.\d+", lines[-2])]
    figures = [told["before"]["ece"], told["temperature"], *told["after"].values()]
    assert shown == pytest.approx(figures, abs=1e-3)
    assert lines[-1] == last_line("first", "toy")
    assert evaluate(capsys, "runs/first", "--data", "toy_test.csv")[-1] == last_line(
        "first", "toy_test.csv"
    )


def test_the_training_file_and_negated_images_are_warned_of(toy_run: Path, capsys) -> None:
    # Other bytes, the same pixels.
    Path("copy.csv.gz").write_bytes(gzip.compress(Path("toy_train.csv").read_bytes()))
    write_csv("negated.csv", 255 - draw(3, seed=1), ["=1+1", "bag", "shoe"])
    for name, is_known, is_odd in (
        ("toy_train.csv", True, False),
        ("copy.csv.gz", True, False),
        ("negated.csv", False, True),
    ):
        assert main(["first", "--data", name, "--quiet"]) == 0
        shown = capsys.readouterr().err
        assert ("TRAINED ON THIS FILE" in shown, f"W050 {name}: " in shown) == (is_known, is_odd)


def test_some_classes_may_be_missing(toy_run: Path, capsys) -> None:
    write_csv("some.csv", draw(3, seed=3), ["shoe", "=1+1", "shoe"], column="target")
    lines = evaluate(capsys, "first", "--data", "some.csv")
    assert [line.split()[-1] for line in lines[1:4]] == ["1", "0", "2"]
    assert lines[2].split() == ["bag", "-", "-", "-", "0"]


@pytest.mark.parametrize(
    ("labels", "starts"),
    [
        (["bag", "cap", "tie", "cap"], ["error[E028] odd.csv:3:1: ", "error[E028] odd.csv:4:1: "]),
        (None, ["error[E026] odd.csv: "]),
    ],
)
def test_labels_must_be_the_runs(toy_run: Path, capsys, labels, starts: list[str]) -> None:
    write_csv("odd.csv", draw(4, seed=4), labels)
    assert main(["first", "--data", "odd.csv"]) == 2
    lines = capsys.readouterr().err.splitlines()[-len(starts) :]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_labels_are_in_the_named_column_or_in_a_second_file(toy_run: Path, capsys) -> None:
    test, labels = recorded("first"), [NAMES[row % 3] for row in range(21)]
    write_csv("kinds.csv", draw(21, seed=1), labels, column="kind")
    write_csv("images.csv", draw(21, seed=1), None)
    Path("labels.txt").write_text("\n".join(labels))
    with zipfile.ZipFile("both.zip", "w") as archive:
        archive.write("toy_train.csv")
        archive.write("toy_test.csv")
    for words in (
        ["both.zip"],
        ["kinds.csv", "--label-column", "kind"],
        ["images.csv", "--labels", "labels.txt"],
    ):
        line = evaluate(capsys, "first", "--data", *words)[-1]
        assert line.endswith(f" ({test['correct']}/{test['total']})")
    for words in (["--labels", "labels.txt"], ["--label-column", "x"]):
        assert main(["first", *words]) == 2
        assert "--data" in capsys.readouterr().err
    assert main(["first", "--data", "kinds.csv", "--label-column", "other"]) == 2
    assert "error[E026] kinds.csv" in capsys.readouterr().err
    assert main(["first", "--data", "images.csv"]) == 2
    assert "--labels" in capsys.readouterr().err


def test_long_names_are_cut_to_the_terminal() -> None:
    evaluation = Evaluation.from_probabilities(np.array([0, 1]), np.eye(2))
    text = format_classes(evaluation, ("n" * 200, "\x1b[31m"), 60)
    assert max(map(len, text.splitlines())) == 60
    assert "\x1b" not in text
