"""The command from end to end: the run's own test data, and other labelled CSVs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data.labels import FASHION_MNIST as GARMENTS
from fmnist_tf.evaluate import format_classes, main
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.train import main as train

QUICK = [
    "--backbone", "toy", "--weights", "random", "--units", "8", "--epochs", "1", "--batch-size",
    "16", "--wandb", "disabled",
]  # fmt: skip


def write_csv(path: Path, values: list[object], seed: int, column: str = "label") -> None:
    """Write a row of noise for each label value; its brightness tells the value."""
    rng = np.random.default_rng(seed)
    level = {value: 20 * index for index, value in enumerate(sorted(set(values), key=str))}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column, *(f"pixel{i}" for i in range(1, 785))])
        writer.writerows([v, *(level[v] + rng.integers(0, 60, 784)).tolist()] for v in values)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs: of numbers named as garments, and of names."""
    from toy import build_toy_spec

    from fmnist_tf.model.backbones import BACKBONES

    folder = tmp_path_factory.mktemp("evaluate")
    write_csv(folder / "fashion_train.csv", list(range(10)) * 12, seed=0)
    write_csv(folder / "fashion_test.csv", list(range(10)) * 2, seed=1)
    write_csv(folder / "named.csv", ["bag", "hat", "shoe"] * 20, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(BACKBONES, "toy", build_toy_spec())
        for name in ("fashion_train", "named"):
            assert train([*QUICK, "--data", f"{name}.csv", "--run", name[:7]]) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "80")
    return copy


def recorded(run: str) -> dict:
    return json.loads(Path(f"runs/{run}/evaluation.json").read_text())["test"]


def last_line(run: str, name: str) -> str:
    test = recorded(run)
    accuracy = f"accuracy {test['accuracy']:.4f} ({test['correct']}/{test['total']})"
    return f"runs/{run} on {name}  {accuracy}"


def test_own_test_data_give_the_recorded_figures(folder: Path, capsys) -> None:
    assert main(["fashion"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "F1", "images"]
    assert [line[:11].strip() for line in lines[1:11]] == list(GARMENTS)
    test = recorded("fashion")
    recall = [row[k] / sum(row) for k, row in enumerate(test["confusion"])]
    assert [line.split()[-3] for line in lines[1:11]] == [f"{share:.4f}" for share in recall]
    low, high = test["interval_95"]
    assert f"95 % interval of the accuracy {low:.4f} to {high:.4f}" in captured.out
    assert f"loss {test['loss']:.4f}" in captured.out
    assert lines[-1] == last_line("fashion", "fashion")
    assert "RANDOM backbone weights" in captured.err


def test_numbers_mean_the_garments_they_were_named(folder: Path, capsys) -> None:
    assert main(["runs/fashion", "--data", "fashion_test.csv"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == last_line("fashion", "fashion_test.csv")
    assert "TRAINED ON THIS FILE" not in captured.err


def test_a_held_out_test_set_is_found_again(folder: Path, capsys) -> None:
    assert main(["named"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last_line("named", "named")


def test_the_training_file_is_no_test(folder: Path, capsys) -> None:
    assert main(["named", "--data", "named.csv", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "WARNING: THE RUN WAS TRAINED ON THIS FILE." in captured.err
    assert captured.out.splitlines()[-1].endswith("/60)")


def test_changed_data_are_refused_unless_named(folder: Path, capsys) -> None:
    write_csv(folder / "fashion_test.csv", list(range(10)), seed=9)
    assert main(["fashion"]) == 2
    assert "Name the data with --data" in capsys.readouterr().err
    assert main(["fashion", "--data", "fashion_test.csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/10)")


def test_some_classes_may_be_missing(folder: Path, capsys) -> None:
    write_csv(folder / "some.csv", ["shoe", "bag", "shoe"], seed=3, column="target")
    assert main(["named", "--data", "some.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["1", "0", "2"]
    assert lines[2].split() == ["hat", "-", "-", "-", "0"]


def test_unknown_labels_are_each_named_at_their_first_line(folder: Path, capsys) -> None:
    write_csv(folder / "odd.csv", ["bag", "cap", "tie", "cap"], seed=4)
    assert main(["named", "--data", "odd.csv"]) == 2
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith("error[E028] odd.csv:3:1: the label cap; expected a class of the run")
    assert "bag, hat, shoe" in first
    assert second.startswith("error[E028] odd.csv:4:1: the label tie")


def test_an_unlabelled_file_is_sent_to_predict(folder: Path, capsys) -> None:
    lines = [line.split(",", 1)[1] for line in Path("named.csv").read_text().splitlines()]
    Path("bare.csv").write_text("\n".join(lines) + "\n")
    assert main(["named", "--data", "bare.csv"]) == 2
    assert "error[E026] bare.csv: no label column" in capsys.readouterr().err


def test_a_label_column_needs_data(folder: Path, capsys) -> None:
    assert main(["named", "--label-column", "x"]) == 2
    assert "--label-column NAME: expected with --data PATH alone" in capsys.readouterr().err


def test_the_label_column_is_the_runs_own_else_found(folder: Path, capsys) -> None:
    write_csv(folder / "kinds.csv", ["bag", "hat", "shoe"], seed=5, column="kind")
    path = Path("runs/named/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "label_column": "other"}))
    # A file without the run's column is read as one of a run that names none.
    assert main(["named", "--data", "kinds.csv"]) == 0
    assert "kinds.csv: the label is column 1, kind" in capsys.readouterr().err
    assert main(["named", "--data", "kinds.csv", "--label-column", "other"]) == 2
    assert "no column named other" in capsys.readouterr().err
    write_csv(folder / "two.csv", ["bag", "hat", "shoe"], seed=5, column="other")
    assert main(["named", "--data", "two.csv"]) == 0
    assert "two.csv: the label is column 1, other" in capsys.readouterr().err


def test_negated_images_are_noticed(folder: Path, capsys) -> None:
    lines = Path("fashion_test.csv").read_text().splitlines()
    rows = [[int(cell) for cell in line.split(",")] for line in lines[1:]]
    flipped = [",".join(map(str, [row[0], *(255 - v // 4 for v in row[1:])])) for row in rows]
    Path("negated.csv").write_text("\n".join([lines[0], *flipped]) + "\n")
    path = Path("runs/fashion/provenance.json")
    provenance = json.loads(path.read_text())
    provenance["data"]["background"] = 0
    path.write_text(json.dumps(provenance))
    assert main(["fashion", "--data", "negated.csv"]) == 0
    assert "negated?" in capsys.readouterr().err


def test_long_names_are_cut_to_the_terminal() -> None:
    evaluation = Evaluation.from_probabilities(np.array([0, 1]), np.eye(2))
    text = format_classes(evaluation, ("n" * 200, "\x1b[31m"), 60)
    assert max(map(len, text.splitlines())) == 60
    assert "\x1b" not in text
