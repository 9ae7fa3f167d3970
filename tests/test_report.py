"""The command: a table of runs, the page of one, the comparison of several, a page on data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakerun import change_json, make_run

from fmnist_tf.report import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs/one").path


def write_csv(path: Path, n: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 784))
    rows = [[k % 3, *image] for k, image in enumerate(pixels.tolist())]
    header = ",".join(["kind", *(f"pixel{k}" for k in range(1, 785))])
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_no_run_named_is_a_row_of_each_and_no_page(run: Path, capsys) -> None:
    test = {"accuracy": 0.8777, "correct": 8777, "total": 10000, "interval_95": [0.87112, 0.88398]}
    change_json(run / "evaluation.json", test=test)
    change_json(run / "config.json", phase="finetune", limit=6000, unfreeze=["conv5"])
    make_run(run.parent / "unfinished", done=False)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(
        "| finetune toy at 16, gap | my\\|data, 60 val, 10,000 test | w.h5 (eeeeeeee) "
        "| head, conv5; 540 images | "
    )
    assert lines[2].endswith("| 0.8777 (8777/10000) | 0.8711 to 0.8840 | 2.0 min |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert not list(run.parent.rglob("*.html"))


@pytest.mark.parametrize("words", [["one"], ["runs/one"], ["one", "--runs-dir", "runs"]])
def test_one_run_is_its_row_and_its_page(run: Path, capsys, words: list[str]) -> None:
    (run / "report.html").write_text("old")
    assert main(words) == 0
    *table, empty, path = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert (empty, path) == ("", "runs/one/report.html")
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_out_names_the_page_and_leaves_the_runs_alone(run: Path, capsys) -> None:
    assert main(["one", "--out", "new/page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "new/page.html"
    assert Path("new/page.html").is_file()
    assert not (run / "report.html").exists()


def test_several_runs_are_compared(run: Path, capsys) -> None:
    make_run(run.parent / "two", seed=1)
    assert main(["one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[5].startswith("- A one and B two: of 60 test images ")
    assert lines[7] == "runs/comparison.html"
    assert "2 runs side by side" in Path("runs/comparison.html").read_text()


def test_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "my.csv", 30, 1)
    write_csv(tmp_path / "check.csv", 9, 2)
    assert main(["--data", "my.csv", "--test-data", "check.csv", "--label-column", "kind"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "| class | training images | test images |", "| --- | --- | --- |",
        "| 0 | 10 | 3 |", "| 1 | 10 | 3 |", "| 2 | 10 | 3 |", "",
        "repeated: 0 training and 0 test images; 0 test images are training images too", "",
        "data-report.html",
    ]  # fmt: skip
    assert "the label is column 1, kind" in said.err
    page = Path("data-report.html").read_text()
    assert "the label is column 1, kind" in page
    assert '<body class="invert">' not in page  # the border of noise is as bright as its middle


@pytest.mark.parametrize(
    ("labels", "row"), [("", "unlabelled"), ("hat", "hat"), ("hat,bag,sock,shoe,cap,belt", "bag")]
)
def test_any_csv_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, labels: str, row: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = labels.split(",") * (6 // len(labels.split(",")))
    lines = [",".join([*([name] if name else []), *["7"] * 784]) for name in names]
    header = [*(["label"] if labels else []), *(f"pixel{k}" for k in range(784))]
    Path("few.csv").write_text("\n".join([",".join(header), *lines]) + "\n")
    assert main(["--data", "few.csv"]) == 0
    assert f"| {row} | {names.count(row) or 6} | 0 |" in capsys.readouterr().out
    page = Path("data-report.html").read_text()
    assert f"6 images in {len(set(names))} class" in page
    assert "training and" not in page


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["one", "--data", "sample"], "expected no RUN beside it"),
        (["one", "--test-data", "x.csv"], "expected with --data alone"),
        (["--out", "x.html"], "name a RUN"),
        (["one", "--out", "x.pdf"], "ends in .html"),
        (["one", "--out", "one.csv/x.html"], "--out one.csv/x.html: expected a folder, found one."),
        (["--data", "one.csv", "--runs-dir", "one.csv"], "--runs-dir one.csv: expected a folder"),
        (["one", "--wandb", "offline"], "expected with two runs or more"),
        (["none"], "expected a run directory, found no such folder"),
        (["--data", "none.csv"], "none.csv"),
    ],
)
def test_wrong_usage_is_said(run: Path, capsys, words: list[str], complaint: str) -> None:
    Path("one.csv").touch()
    assert main(words) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""


def test_incomplete_runs_are_left_out_or_refused(run: Path, capsys) -> None:
    (run / "DONE.json").unlink()
    assert main([]) == 2
    assert "holds no complete run" in capsys.readouterr().err
    assert main(["one"]) == 2
    assert "incomplete (no DONE.json)" in capsys.readouterr().err


def test_a_damaged_run_is_bad_input(run: Path, capsys) -> None:
    (run / "evaluation.json").write_text("{}")
    assert main(["one"]) == 2
    assert "found one without 'val'" in capsys.readouterr().err


def test_help_is_light_and_reports_need_no_tensorflow(run: Path) -> None:
    script = (
        "import sys\nfrom fmnist_tf.report import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
    )
    script += "    print([m for m in ('tensorflow', 'keras', 'numpy') if m in sys.modules])"
    for words, loaded in ((["--help"], "[]"), (["one"], "['numpy']")):
        answer = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        )
        assert answer.stdout.splitlines()[-1] == loaded


def test_wandb_mirrors_a_comparison(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # what is set in this process ends with the test
    make_run(run.parent / "two", seed=1)
    assert main(["one", "two", "--wandb", "offline"]) == 0
    offline = capsys.readouterr().err.split("wandb leet ")[1].split()[0]
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--summary", "--json", offline]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    facts = json.loads(text)
    assert (facts["name"], facts["config"]) == ("one and two", {"runs": ["one", "two"]})
    assert facts["summary"]["runs"]["nrows"] == 2
    assert facts["summary"]["comparison"]["_type"] == "html-file"
