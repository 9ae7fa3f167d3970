"""The table says what the runs' files say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmnist_tf.report import main

FILES = {
    "config.json": {
        "phase": "finetune", "backbone": "resnet50", "image_size": 224, "head": "flatten",
        "unfreeze": ["conv5"], "limit": 6000,
    },
    "evaluation.json": {
        "dataset": "fashion|mnist",
        "val": {"accuracy": 0.9, "correct": 540, "total": 600},
        "test": {
            "accuracy": 0.8777, "correct": 8777, "total": 10000,
            "interval_95": [0.87112, 0.88398],
        },
    },
    "provenance.json": {
        "weights": {"kind": "file", "path": "/a/b/w.weights.h5", "sha256": "74d0972aac33"},
        "data": {"files": [{"rows": 60000}]},
        "seconds": {"training": 90.0, "test": 30.0},
    },
    "DONE.json": {"finished_at": "2026-11-22T00:00:00+00:00", "files": {}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs/one"
    path.mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("words", [[], ["one"], ["runs/one"]])
def test_a_row_per_run(run: Path, capsys, words: list[str]) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2] == (
        "| finetune resnet50 at 224, flatten | fashion\\|mnist, 600 val, 10,000 test "
        "| w.weights.h5 (74d0972a) | head, conv5; 6,000 rows with val | 0.9000 (540/600) "
        "| 0.8777 (8777/10000) | 0.8711 to 0.8840 | 2.0 min |"
    )
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


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


def test_no_such_run(run: Path, capsys) -> None:
    assert main(["none"]) == 2
    assert "expected a run directory, found no such folder" in capsys.readouterr().err
