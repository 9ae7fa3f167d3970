"""The report command: a table of runs, the page of one, a comparison of several, a data page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakerun import change_json, make_run
from toyrun import draw, write_csv

from fmnist_tf.report import format_runs, main
from fmnist_tf.results.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs/one").path


def test_without_run_there_is_a_row_for_each_and_no_page(run: Path, capsys) -> None:
    test = json.loads((run / "evaluation.json").read_text())["test"]
    test |= {"accuracy": 0.8777, "correct": 8777, "total": 10000, "interval_95": [0.87112, 0.88398]}
    change_json(run / "evaluation.json", test=test)
    make_run(run.parent / "20261127-124213-frozen-fashion-mnist", weights__kind="random")
    history = (run / "history.csv").read_text()
    (run / "history.csv").write_text(history.replace("frozen", "finetune"))
    change_json(run / "config.json", phase="finetune", limit=6000, unfreeze=["conv5"])
    make_run(run.parent / "unfinished", done=False)
    (make_run(run.parent / "damaged").path / "evaluation.json").write_text("{}")
    assert main([]) == 0
    said = capsys.readouterr()
    header, first, second, caveat = said.out.splitlines()
    assert header.split() == ["run", "network", "val", "test", "images", "minutes"]
    assert first.split()[0] == "20261127-124213-frozen-fashion-mnist"
    assert second.split()[0] == "one"
    assert second.split()[-3:] == ["0.8777", "10000", "2.0"]
    assert len(header) == len(first) == len(second) <= 80
    assert caveat.endswith(": 20261127-124213-frozen-fashion-mnist")
    assert "runs/damaged" in said.err
    assert not list(run.parent.rglob("*.html"))


@pytest.mark.parametrize(("length", "width"), [(3, 80), (36, 80), (64, 112)])
def test_the_table_fits_unless_a_name_is_too_long(length: int, width: int) -> None:
    row = ["n" * length, "finetune efficientnetv2b0", "0.9312", "0.9312", "10000", "123.4"]
    header, line = format_runs([row], 80).splitlines()
    assert "n" * length in line
    assert len(header) == len(line) <= width


def test_a_run_that_was_not_tested_says_so(run: Path, capsys) -> None:
    change_json(run / "evaluation.json", test=None, tested_at=None)
    (run / "predictions.npz").unlink()
    RunDir(run).write_done()
    make_run(run.parent / "two")
    assert main(["one"]) == 0
    assert main(["one", "two"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[4:6] == ["-", "-"]
    assert "not compared" in out
    assert "not tested" in Path("runs/comparison.html").read_text()
    page = (run / "report.html").read_text()
    assert "Not tested" in page
    assert "python -m fmnist_tf.evaluate one" in page


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["runs/one"], "runs/one/report.html"),
        (["one", "--out", "new/page.html"], "new/page.html"),
    ],
)
def test_one_run_is_its_row_and_its_page(run: Path, capsys, words: list[str], page: str) -> None:
    (run / "report.html").write_text("old")
    assert main(words) == 0
    *table, empty, path = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["run", "one"]
    assert (empty, path) == ("", page)
    assert Path(page).read_text().startswith("<!DOCTYPE html>")
    assert (run / "report.html").read_text() == "old" or page.startswith("runs")


def test_several_runs_are_compared(run: Path, capsys) -> None:
    make_run(run.parent / "two", seed=1)
    assert main(["one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[:3]] == ["run", "one", "two"]
    assert lines[4].startswith("- A one and B two: ")
    assert lines[6] == "runs/comparison.html"
    assert Path("runs/comparison.html").is_file()


def test_data_without_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv("my.csv", draw(30, 0), list("012") * 10, "kind")
    write_csv("check.csv", draw(9, 1), list("012") * 3, "kind")
    assert main(["--data", "my.csv", "--test-data", "check.csv", "--label-column", "kind"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == ["| 0 | 10 | 3 |", "| 1 | 10 | 3 |", "| 2 | 10 | 3 |"]
    assert lines[-1] == "data-report.html"
    assert "kind" in Path("data-report.html").read_text()


@pytest.mark.parametrize(
    ("labels", "row"),
    [(None, "unlabelled"), (["hat", "bag", "sock", "shoe", "cap", "belt"], "bag")],
)
def test_any_csv_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, labels: list[str] | None, row: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv("few.csv", draw(6, 1), labels)
    assert main(["--data", "few.csv"]) == 0
    shown = labels or ["unlabelled"] * 6
    assert f"| {row} | {shown.count(row)} | 0 |" in capsys.readouterr().out
    assert f"6 images in {len(set(shown))} class" in Path("data-report.html").read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["one", "--data", "sample"], "--data"),
        (["one", "--test-data", "x.csv"], "--test-data"),
        (["--out", "x.html"], "--out"),
        (["one", "--out", "x.pdf"], "--out"),
        (["one", "--out", "one.csv/x.html"], "--out one.csv/x.html"),
        (["--data", "one.csv", "--runs-dir", "one.csv"], "--runs-dir one.csv"),
        (["one", "--wandb", "offline"], "--wandb"),
        (["none"], "none"),
        (["--data", "none.csv"], "none.csv"),
        (["--runs-dir", "empty"], "empty"),
        (["unfinished"], "runs/unfinished"),
        (["damaged"], "runs/damaged"),
    ],
)
def test_wrong_usage_is_one_error(run: Path, capsys, words: list[str], complaint: str) -> None:
    Path("one.csv").touch()
    make_run(run.parent / "unfinished", done=False)
    (make_run(run.parent / "damaged").path / "evaluation.json").write_text("{}")
    assert main(words) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_where_no_page_can_be_is_said_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data-report.html").mkdir()
    write_csv("my.csv", draw(30, 0), list("012") * 10)
    assert main(["--data", "my.csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the page data-report.html" in line


def test_reports_need_no_tensorflow(run: Path) -> None:
    script = "import sys; from fmnist_tf.report import main; main(['one'])\n"
    script += "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


@pytest.mark.slow
def test_a_comparison_is_recorded_in_wandb(
    run: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_tracking import inspect

    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # restores after the test what the command sets
    make_run(run.parent / "two", seed=1)
    assert main(["one", "two", "--wandb", "offline"]) == 0
    offline = capsys.readouterr().err.split("wandb leet ")[1].split()[0]
    facts = json.loads(inspect(offline, "--summary"))
    assert (facts["name"], facts["config"]) == ("one and two", {"runs": ["one", "two"]})
    assert facts["summary"]["table/runs"]["nrows"] == 2
    assert facts["summary"]["comparison"]["_type"] == "html-file"
