"""`clean` removes what nobody needs any more, and nothing else."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakerun import make_run

from fmnist_tf.clean import main
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.files import replacing


def leave_a_temporary_file(path: Path) -> None:
    """Leave what a process that was killed while it wrote `path` leaves."""
    if not (child := os.fork()):
        with replacing(path) as temporary:
            temporary.write_bytes(b"x" * 2_000_000)
            os._exit(1)
    os.waitpid(child, 0)


def paths_in(folder: Path) -> set[str]:
    found = folder.rglob("*")
    return {str(p.relative_to(folder)) for p in found if p.name != ".lock" and not p.is_dir()}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of everything."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    run = make_run(runs / "complete", features=["used"])
    (run.path / "checkpoints/000001").mkdir(parents=True)
    (run.path / "checkpoints/000001/state.json").touch()
    for name in ("unfinished", "elsewhere/linked", "sweep/trial-001"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").touch()
    (runs / "sweep/sweep.json").touch()
    (runs / "sweep/trial-001/provenance.json").write_text('{"features": ["trial"]}')
    (runs / "unfinished/provenance.json").write_text('{"features": ["unfinished"]}')
    (runs / "notes").mkdir()
    (runs / "notes/list.txt").touch()
    shutil.move(runs / "elsewhere", "elsewhere")
    (runs / "linked").symlink_to(Path("elsewhere/linked").resolve())
    for name in ("used", "unused", "unfinished", "trial"):
        (runs / ".cache/features" / name).mkdir(parents=True)
        (runs / ".cache/features" / name / "shard-00000.bin").touch()
    (runs / ".cache/features/other").symlink_to(Path("elsewhere/linked").resolve())
    for place in ("complete/curves.png", ".cache/pixels/a", ".cache/features/used/shard-00001.bin"):
        leave_a_temporary_file(runs / place)
    with replacing(runs / ".cache/pixels/b") as ours:  # of a living process
        ours.touch()
        yield runs


def test_only_what_nobody_needs_is_removed(runs: Path, capsys) -> None:
    before = paths_in(Path())
    assert main(["--yes"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("  2.0 MB  ") == 3
    gone = {path.removeprefix("runs/") for path in before - paths_in(Path())}
    assert {path for path in gone if ".tmp-" not in path} == {
        "unfinished/config.json", "unfinished/provenance.json",
        "complete/checkpoints/000001/state.json",
        ".cache/features/unused/shard-00000.bin", ".cache/features/unfinished/shard-00000.bin",
    }  # fmt: skip
    assert len(gone) == 8
    assert "runs/unfinished\n" in listed
    assert "linked" not in listed
    assert main(["--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_run_in_use_and_all_features_stay(runs: Path) -> None:
    with RunDir(runs / "unfinished").locked():
        assert main(["--yes"]) == 0
    assert (runs / "unfinished/config.json").exists()
    assert (runs / ".cache/features/unused/shard-00000.bin").exists()


def test_nothing_is_removed_without_a_yes(runs: Path, capsys, monkeypatch) -> None:
    before = paths_in(Path())
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert main([]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["--runs-dir", "none"]) == 2
    assert paths_in(Path()) == before


def test_each_kind_is_asked_for(runs: Path) -> None:
    terminal, child = pty.openpty()
    os.write(terminal, b"n\ny\n\n")
    answer = subprocess.run(
        [sys.executable, "-m", "fmnist_tf", "clean"], stdin=child, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("[y/N]") == 3
    assert (runs / "unfinished/config.json").exists()
    assert not (runs / ".cache/features/unused").exists()
    assert list((runs / "complete").glob(".curves*"))
