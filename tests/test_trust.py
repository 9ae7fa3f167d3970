"""A run proves itself, and nothing of a run or a cache is read or written through a link."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fakerun import change_json, make_run

from fmnist_tf import evaluate, export, predict, report, train
from fmnist_tf.data.sources import read_dataset
from fmnist_tf.errors import UsageError
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.files import NotAFileError, locked, open_regular
from fmnist_tf.training.checkpoint import CheckpointDir
from fmnist_tf.training.feature_store import FEATURE_DTYPE, FeatureStore

ENDLESS = 1 << 40  # bytes of a sparse file, which takes no room on the disk
COMMANDS: dict[str, Callable[[], int]] = {
    "evaluate": lambda: evaluate.main(["first"]),
    "predict": lambda: predict.main(["first", "toy_test.csv"]),
    "report": lambda: report.main(["first"]),
    "export": lambda: export.main(["first", "--format", "saved_model"]),
    "finetune": lambda: train.main(
        ["--phase", "finetune", "--from", "first", "--epochs", "1", "--batch-size", "16",
         "--wandb", "disabled", "--run", "second"]
    ),
}  # fmt: skip
OF_MODEL = {"DONE.json", "config.json", "labels.json", "provenance.json", "history.csv",
    "evaluation.json"}  # fmt: skip
READ = {
    "evaluate": {*OF_MODEL, "model.keras"},
    "predict": {*OF_MODEL, "model.keras", "report.npz"},
    "report": {*OF_MODEL, "predictions.npz", "report.npz", "steps.csv"},
    "export": {*OF_MODEL, "model.keras"},
    "finetune": {*OF_MODEL, "model.keras"},
}
OBSTACLES = ("link", "pipe", "folder", "endless")


@pytest.fixture
def run(toy_run: Path) -> Path:
    """The finished toy run in the current folder."""
    return Path("runs/first")


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End a test that waits for a pipe, and fail one that reads what does not end."""

    def stop(*_: object) -> None:
        pytest.fail("a file is waited for")  # no OSError, which a command would report

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # kilobytes


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def hinder(path: Path, obstacle: str) -> Path:
    """Put something else in the place of a file or folder; return where it was moved to."""
    moved = Path("moved").absolute() / path.name
    moved.parent.mkdir(exist_ok=True)
    shutil.move(path, moved)
    if obstacle == "link":
        path.symlink_to(moved)
    elif obstacle == "pipe":
        os.mkfifo(path)
    elif obstacle == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(ENDLESS)
    return moved


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ask(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = COMMANDS[command]()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_changed_bit_is_refused_by_the_files_name(run: Path, command: str, capsys) -> None:
    for name in sorted(READ[command]):
        path = run / name
        content = path.read_bytes()
        flip(path, random.Random(name).randrange(1 << 40))
        code, out, err = ask(command, capsys)
        assert (code, out) == (2, ""), name
        assert f"runs/first/{name}: expected" in err
        path.write_bytes(content)
    assert not Path("runs/second").exists()
    assert not (run / "export").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict", "report"])
def test_a_change_of_other_files_changes_no_result(run: Path, command: str, capsys) -> None:
    results = []
    for _ in range(2):
        code, out, _ = ask(command, capsys)
        assert code == 0
        results.append((out, (run / "report.html").read_bytes() if command == "report" else b""))
        for path in run.iterdir():
            if path.name not in READ[command] | {".lock"}:
                flip(path, 1234)
    assert results[0] == results[1]


def test_a_file_that_was_added_is_refused_and_a_missing_one_named(run: Path, capsys) -> None:
    saved = RunDir(run).read_json("DONE.json")
    shutil.move(run / "report.npz", "report.npz")
    RunDir(run).write_done()
    assert ask("predict", capsys)[0] == 0  # an older run may have none
    shutil.move("report.npz", run / "report.npz")
    for command in ("predict", "report"):
        code, _, err = ask(command, capsys)
        assert code == 2
        assert "runs/first/report.npz" in err
    RunDir(run).write_json("DONE.json", saved)
    assert ask("report", capsys)[0] == 0


def test_the_newest_run_is_not_passed_over_for_a_change(run: Path, capsys) -> None:
    newer = RunDir(Path("runs/newer"))
    shutil.copytree(run, newer.path)
    newer.write_done()
    flip(newer.file("config.json"), 99)
    words = ["--phase", "finetune", "--epochs", "1", "--wandb", "disabled", "--run", "second"]
    assert train.main(words) == 2
    assert "runs/newer/config.json" in capsys.readouterr().err


def test_a_reader_sees_a_change_made_meanwhile(run: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"), RunDir(run).reading("config.json"):
        flip(run / "config.json", 5)


# Links, pipes, folders and files without an end


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_file_of_a_run_is_refused(run: Path, obstacle: str, capsys) -> None:
    for command in ("report", "predict"):
        for name in sorted(READ[command]):
            moved = hinder(run / name, obstacle)
            code, out, err = ask(command, capsys)
            assert (code, out) == (2, ""), name
            assert f"runs/first/{name}: expected" in err
            shutil.rmtree(run / name) if obstacle == "folder" else (run / name).unlink()
            shutil.move(moved, run / name)
    assert ask("report", capsys)[0] == 0


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_file_of_an_unfinished_run_is_refused(
    tmp_path: Path, obstacle: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unfinished = make_run(Path("runs/first"), done=False)
    change_json(unfinished.file("config.json"), backbone="none")  # no run would come of it
    for name in ("labels.json", "provenance.json", "config.json"):
        hinder(unfinished.file(name), obstacle)
        with pytest.raises(UsageError, match=name):
            unfinished.read_json(name)
        assert train.main(["--resume", "first"]) == 2


def test_a_strangers_run_does_not_choose_what_is_written(run: Path, capsys) -> None:
    mine = Path("mine").absolute()
    mine.mkdir()
    (mine / "page").write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(mine / "page")
    code, _, err = ask("report", capsys)
    assert (code, "runs/first/report.html" in err) == (2, True)
    for link in ("export", "export/saved_model"):
        (run / link).parent.mkdir(exist_ok=True)
        (run / link).symlink_to(mine, target_is_directory=True)
        code, _, err = ask("export", capsys)
        assert (code, f"runs/first/{link}: " in err) == (2, True)
        (run / link).unlink()
    change_json(run / "config.json", cache=str(mine))
    shutil.rmtree("runs/.cache")
    assert ask("evaluate", capsys)[0] == 0
    for place in ("runs/.cache/pixels", "runs/.cache"):
        shutil.rmtree(place)
        Path(place).symlink_to(mine, target_is_directory=True)
        code, _, err = ask("evaluate", capsys)
        assert (code, f"{place}: " in err) == (2, True)
        Path(place).unlink()
        Path(place).mkdir(parents=True)
    assert snapshot(mine) == {"page": b"mine"}


def test_a_run_may_itself_be_a_link_but_not_continue_with_one_in_it(
    run: Path, monkeypatch, capsys
) -> None:
    elsewhere = Path("elsewhere").absolute()
    shutil.move(run, elsewhere)
    run.symlink_to(elsewhere, target_is_directory=True)
    assert ask("report", capsys)[0] == 0
    (run / "DONE.json").unlink()
    for name in ("wandb", "checkpoints", "export", "curves.png"):
        moved = Path("moved") / name
        moved.mkdir(parents=True)
        (moved / ".x.tmp-1").touch()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(moved.absolute(), target_is_directory=True)
        assert train.main(["--resume", "first"]) == 2
        assert f"runs/first/{name}: " in capsys.readouterr().err
        assert os.listdir(moved) == [".x.tmp-1"]
        (run / name).unlink()


def test_no_larger_file_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_regular(path, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(NotAFileError, match="found 5"):
        open_regular(path, 4)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, obstacle: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path):
        pass
    moved = hinder(Path(".lock"), obstacle)
    before = moved.read_bytes()
    if obstacle == "endless":
        with locked(Path()):
            assert Path(".lock").stat().st_size < 1000
    else:
        with pytest.raises(NotAFileError, match=r"\.lock"), locked(Path()):
            pass
    assert moved.read_bytes() == before


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_checkpoint_that_is_none_leaves_the_one_before(
    tmp_path: Path, obstacle: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints, variable = CheckpointDir(Path("checkpoints")), tf.Variable([1.0, 2.0])
    for number in (1, 2):
        checkpoints.save({"number": number}, {"best": [variable]})
    newest = Path("checkpoints/000002")
    for path in [*newest.iterdir(), newest]:
        moved = hinder(path, obstacle)
        problems = checkpoints.find()
        assert checkpoints.newest.state == {"number": 1}
        assert [str(newest) in problem for problem in problems] == [True]
        shutil.rmtree(path) if obstacle == "folder" else path.unlink()
        shutil.move(moved, path)
    assert checkpoints.find() == []
    hinder(Path("checkpoints"), "link")
    for use in (checkpoints.find, lambda: checkpoints.save({}, {"best": [variable]})):
        with pytest.raises(NotAFileError, match="checkpoints"):
            use()


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_cache_heals_and_leaves_alone_what_a_link_names(run: Path, obstacle: str, capsys) -> None:
    store = Path("runs/.cache/pixels")

    def read() -> np.ndarray:
        return read_dataset("toy_train.csv", store_dir=store, say=print).train.pixels

    expected = read().copy()
    files = [path for path in store.rglob("*") if path.name != ".lock"]
    assert {path.suffix for path in files} == {"", ".bin", ".json", ".npz"}
    for path in files:
        moved = hinder(path, obstacle)
        before = snapshot(moved.parent)
        np.testing.assert_array_equal(read(), expected)
        assert snapshot(moved.parent) == before
        assert (path.is_dir(), path.is_symlink()) == (moved.is_dir(), False)
        shutil.rmtree("moved")


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_shard_that_is_no_file_is_computed_again(
    tmp_path: Path, obstacle: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(Path("entry"), n_rows=5, row_shape=(3,), rows_per_shard=4)
    rows = np.arange(15, dtype=np.float32).reshape(5, 3).astype(FEATURE_DTYPE)

    def write_shard(number: int) -> None:
        span = store.shards[number]
        with store.writing_shard(number) as write:
            write(rows[span.start : span.stop])

    for number in range(2):
        write_shard(number)
    assert store.find_invalid_shards() == []
    moved = hinder(store.shard_path(1), obstacle)
    before = moved.read_bytes()
    assert store.find_invalid_shards() == [1]
    write_shard(1)
    assert store.find_invalid_shards() == []
    assert moved.read_bytes() == before
    hinder(store.path, "link")
    with pytest.raises(NotAFileError, match="entry"):
        FeatureStore(store.path, 5, (3,))
