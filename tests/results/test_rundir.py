"""The run directory: names, files that are read as written, clear errors for damaged ones."""

import csv
import hashlib
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from fakerun import change_json

from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import PREDICTIONS, RunDir, find_newest_complete_run, list_runs

ROWS = [
    HistoryRow(0, "finetune", float("nan"), float("nan"), 0.1 + 0.2, 1 / 3, 1e-4, 1.5),
    HistoryRow(1, "finetune", 1e-17, 0.875, 2.5, 1.0, 1.2345678901234567e-05, 60.0),
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "one", "frozen", "sample")


# Names


@pytest.mark.parametrize("name", ["a", "0", "run_1.2-x", "A" * 64, "com", "nullable", "con1"])
def test_plain_names_are_accepted(tmp_path, name):
    run = RunDir.create(tmp_path, name, "frozen", "sample")
    assert run.path == tmp_path / name
    assert run.path.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "-x", ".hidden", "_x", "a/b", "a\\b", "a b", "a\n", "a..b", "a.", "ä"),
        *("a\0", "A" * 65, "CON", "nul", "com1", "LPT9.txt", "aux.", "\u202egnp"),
    ],
)
def test_other_names_are_refused_before_anything_is_created(tmp_path, name):
    with pytest.raises(UsageError) as caught:
        RunDir.create(tmp_path / "runs", name, "frozen", "sample")
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused_and_unchanged(tmp_path):
    RunDir.create(tmp_path, "one", "frozen", "sample").write_text("note", "mine")
    with pytest.raises(RunExistsError, match=r"one exists already.*--run NAME") as caught:
        RunDir.create(tmp_path, "one", "frozen", "sample")
    assert caught.value.exit_code == 3
    assert (tmp_path / "one" / "note").read_text() == "mine"


def test_generated_names_are_unique(tmp_path):
    names = [RunDir.create(tmp_path, None, "frozen", "Fashion MNIST/../x").path.name for _ in "123"]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"\d{8}-\d{6}-frozen-fashion-mnist-x(-\d)?", name) for name in names)
    assert RunDir.create(tmp_path, None, "frozen", "データ").path.name.endswith("-frozen-data")


@pytest.mark.parametrize("folder", ["runs", "runs/deeper"])
def test_a_file_in_place_of_the_runs_folder_is_refused(tmp_path, folder):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError):
        RunDir.create(tmp_path / folder, "one", "frozen", "sample")


def test_open_finds_a_run_or_lists_the_others(run):
    with pytest.raises(UsageError, match="none"):
        RunDir.open(run.path)
    run.write_json("config.json", {})
    assert RunDir.open(run.path) == run
    with pytest.raises(UsageError, match=r": one$"):
        RunDir.open(run.path.with_name("two"))


@pytest.mark.parametrize("path", [".", "..", "../../one"])
def test_a_run_opened_from_within_has_its_name_and_folder(run, monkeypatch, path):
    run.write_json("config.json", {})
    run.file("deeper").mkdir()
    monkeypatch.chdir(run.path if path == "." else run.file("deeper"))
    found = RunDir.open(Path(path))
    assert (found.path.name, found.full_name, found.group) == ("one", "one", "one")
    assert found.runs_dir.resolve() == run.runs_dir.resolve()
    assert found.name_in(found.runs_dir) == "one"


# Writing


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        run = RunDir.create(tmp_path / "runs", "one", "frozen", "csv")
        run.write_text("text", "x")
        with run.locked():
            pass
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.path.iterdir()}
    assert modes == {"text": 0o666 & ~mask, ".lock": 0o666 & ~mask}
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o777 & ~mask


# Reading


def test_json_is_read_as_written_and_damage_is_one_clear_error(run):
    content = {"name": "Ünïcode", "numbers": [1, 0.1, None], "nested": {"a": True}}
    run.write_json("config.json", content)
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_json("config.json", {"loss": float("nan")})
    assert run.read_json("config.json") == content
    for damaged in ("", "{", "[1]", "null", "\x00", "[" * 100_000):
        run.write_text("config.json", damaged)
        with pytest.raises(UsageError, match=r"config\.json: expected what was written"):
            run.read_json("config.json")


@pytest.mark.parametrize(
    "read",
    [
        lambda run: run.read_json("x.json"),
        RunDir.read_history,
        RunDir.read_steps,
        RunDir.read_predictions,
    ],
)
def test_a_missing_file_is_one_clear_error(run, read):
    with pytest.raises(UsageError, match="no such file"):
        read(run)


def test_steps_are_read_as_written(run):
    for losses in ([2.5, 1 / 3], [0.1]):
        run.write_steps(losses)
        assert run.read_steps().tolist() == losses
    assert run.file("steps.csv").read_text() == "step,loss\n1,0.1\n"


def test_history_keeps_every_digit(run):
    run.write_history(ROWS)
    assert repr(run.read_history()) == repr(ROWS)
    with run.file("history.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert ",".join(header) == (
        "epoch,phase,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds"
    )
    assert lines[1][2] == "1e-17"
    run.write_history([HistoryRow(1, "frozen", *np.float64([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))])
    assert run.read_history()[0].loss == 0.1  # NumPy's repr is no number


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.replace("epoch,", "era,"),
        lambda text: text[:-20],
        lambda text: text.replace("0.875", "much"),
        lambda text: text.replace("\n1,", "\n1.5,"),
        lambda text: text + "2,finetune,1,1,1,1,1,1,1\n",
    ],
)
def test_damaged_history_is_one_clear_error(run, damage):
    run.write_history(ROWS)
    run.write_text("history.csv", damage(run.file("history.csv").read_text()))
    with pytest.raises(UsageError, match=r"expected what was written"):
        run.read_history()


def make_predictions() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 3, 7), random.dirichlet(np.ones(3), 7).astype(np.float32)


def test_predictions_round_trip_and_are_the_same_bytes_each_time(run):
    labels, probabilities = make_predictions()
    run.write_predictions(labels.astype(np.int32), probabilities)
    first = run.file("predictions.npz").read_bytes()
    read_labels, read_probabilities = run.read_predictions()
    assert (read_labels.dtype, read_probabilities.dtype) == (np.int64, np.float32)
    assert (read_labels == labels).all()
    assert (read_probabilities == probabilities).all()
    run.write_predictions(labels, probabilities)
    assert run.file("predictions.npz").read_bytes() == first


def test_predictions_with_a_changed_byte_are_refused_or_equal(run):
    labels, probabilities = make_predictions()
    run.write_predictions(labels, probabilities)
    path = run.file("predictions.npz")
    whole = path.read_bytes()
    refused = 0
    positions = range(0, len(whole), 3)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = run.read_predictions()
        except UsageError:
            refused += 1
        else:  # a byte that is never read, such as a time stamp
            assert (read[0] == labels).all()
            assert (read[1] == probabilities).all()
    assert refused > len(positions) / 2


LABELS, PROBABILITIES = np.zeros(2, np.int64), np.full((2, 2), 0.5, np.float32)


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": LABELS},
        {"labels": LABELS, "probabilities": PROBABILITIES.astype(np.float64)},
        {"labels": LABELS, "probabilities": PROBABILITIES[:1]},
        {"labels": LABELS, "probabilities": PROBABILITIES.ravel()},
        {"labels": LABELS.astype(np.int32), "probabilities": PROBABILITIES},
        {"labels": np.array([{}, {}]), "probabilities": PROBABILITIES},
        {"labels": LABELS, "probabilities": PROBABILITIES, "more": LABELS},
    ],
)
def test_other_arrays_are_refused(run, arrays):
    np.savez(run.file(PREDICTIONS), **arrays)
    with pytest.raises(UsageError, match=r"expected what was written"):
        run.read_predictions()


def test_compressed_arrays_are_refused(run):
    np.savez_compressed(run.file(PREDICTIONS), labels=LABELS, probabilities=PROBABILITIES)
    with pytest.raises(UsageError, match="compressed"):
        run.read_predictions()


# Completeness


def test_done_lists_each_file_but_the_changing_ones(run):
    run.write_json("config.json", {"phase": "frozen"})
    run.write_text("history.csv", "x\n")
    for folder in ("wandb", "checkpoints", "export"):
        (run.path / folder).mkdir()
        (run.path / folder / "f").write_text(folder)
    run.write_text("report.html", "may be made again")
    with run.locked():
        assert not run.is_complete
        run.write_done()
        run.write_done()  # does not list itself
    assert run.is_complete
    files = run.read_json("DONE.json")["files"]
    assert list(files) == ["config.json", "history.csv"]
    assert files["history.csv"] == {"bytes": 2, "sha256": hashlib.sha256(b"x\n").hexdigest()}


def finish(runs_dir: Path, name: str, phase: str | None, finished_at: str) -> RunDir:
    run = RunDir.create(runs_dir, name, "frozen", "sample")
    run.write_json("config.json", {"phase": phase} if phase else {})
    run.write_text("predictions.npz", "")
    run.write_done()
    change_json(run.file("DONE.json"), finished_at=finished_at)
    return run


def test_the_newest_complete_run_is_found_by_its_own_record(tmp_path):
    assert find_newest_complete_run(tmp_path / "none") is None
    newest = finish(tmp_path, "b", "frozen", "2026-03-01T12:00:00+02:00")
    finish(tmp_path, "a", "frozen", "2026-03-01T09:59:59+00:00")
    finish(tmp_path, "z", "finetune", "2027-01-01T00:00:00+00:00")
    finish(tmp_path, "late-file-time", "frozen", "2025-01-01T00:00:00+00:00")
    os.utime(newest.file("DONE.json"), (0, 0))
    os.utime(newest.path, (0, 0))
    assert find_newest_complete_run(tmp_path) == newest
    assert find_newest_complete_run(tmp_path, "finetune").path.name == "z"
    assert find_newest_complete_run(tmp_path, "scratch") is None
    newest.write_done()
    finish(tmp_path, "c", "frozen", "2026-03-01T12:00:00+02:00")
    assert find_newest_complete_run(tmp_path) == newest  # what write_done wrote is understood


def test_finished_trials_of_a_sweep_are_runs(tmp_path):
    early = finish(tmp_path, "early", "frozen", "2020-01-01T00:00:00+00:00")
    sweep = tmp_path / "a-sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    first = finish(sweep, "trial-001", "frozen", "2021-01-01T00:00:00+00:00")
    finish(sweep, "trial-002", "frozen", "2022-01-01T00:00:00+00:00").file("DONE.json").unlink()
    finish(sweep, "trial-3", "frozen", "2023-01-01T00:00:00+00:00").file(PREDICTIONS).unlink()
    assert list_runs(tmp_path) == [first, early]
    assert find_newest_complete_run(tmp_path) == first
    assert (first.runs_dir, early.runs_dir) == (tmp_path, tmp_path)
    assert first.name_in(tmp_path) == "a-sweep/trial-001"
    assert early.name_in(sweep) == str(early.path)
    assert (first.group, early.group) == ("a-sweep", "early")
    assert (first.full_name, early.full_name) == ("a-sweep-trial-001", "early")


def test_a_record_without_its_checksum_is_refused(tmp_path):
    run = finish(tmp_path, "run", "frozen", "2020-01-01T00:00:00+00:00")
    content = run.done
    run.write_json("DONE.json", content)
    with pytest.raises(UsageError, match="sha256"):
        run.done  # noqa: B018


@pytest.mark.parametrize("done", ["", "[]", "{}", '{"finished_at": 7}', '{"finished_at": "soon"}'])
def test_incomplete_damaged_and_foreign_folders_are_skipped(tmp_path, done):
    good = finish(tmp_path, "good", "frozen", "2020-01-01T00:00:00+00:00")
    finish(tmp_path, "damaged", "frozen", "2030-01-01T00:00:00+00:00").write_text("DONE.json", done)
    unfinished = finish(tmp_path, "unfinished", "frozen", "2030-01-01T00:00:00+00:00")
    unfinished.file("DONE.json").unlink()
    finish(tmp_path, "unconfigured", None, "2030-01-01T00:00:00+00:00")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "LOG.md").write_text("")
    assert find_newest_complete_run(tmp_path) == good
