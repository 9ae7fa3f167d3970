"""Killed, stopped and resumed runs end with the bits of an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from killable import Killer
from toyrun import NAMES, WORDS, draw, write_csv, write_toy_data
from yardstick import hash_run

from fmnist_tf import evaluate, export, predict, report
from fmnist_tf.pipeline.saved_run import read_saved_run
from fmnist_tf.pipeline.train_state import TrainState
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.system.signals import StoppedError
from fmnist_tf.train import main
from fmnist_tf.training.checkpoint import CheckpointDir
from fmnist_tf.training.records import Counts

FROZEN = [*WORDS, "--data", "toy_train.csv", "--epochs", "4"]
FINETUNE = ["--phase", "finetune", "--from", "frozen", "--epochs", "3", "--batch-size", "16",
    "--train-batch-norm", "--ema-decay", "0.9", "--augment", "flip,erasing", "--unfreeze", "all",
    "--optimizer", "sgd", "--schedule", "plateau", "--wandb", "disabled"]  # fmt: skip
SCRATCH = [*FROZEN, "--phase", "scratch", "--lr-finder", "--learning-rate", "none",
    "--augment", "flip,shift-crop,mixup", "--ema-decay", "0.9",
    "--schedule", "cosine"]  # fmt: skip
SLOW, SLOW_SIGNALS = pytest.mark.slow, ("INT", "HUP", "USR1", "USR2", "XCPU")
ALWAYS = ["--checkpoint-seconds", "0"]
KILLS = int(os.environ.get("FMNIST_TF_KILLS", "15"))  # `make test-kills` takes 200


@pytest.fixture(scope="module")
def killer(tmp_path_factory) -> Iterator[Killer]:
    """Processes in a folder with data and the undisturbed runs `frozen` and `scratch`."""
    folder = tmp_path_factory.mktemp("killed")
    write_toy_data(folder)
    killer = Killer(folder)
    killer.begin("frozen", *FROZEN, *ALWAYS)
    killer.begin("scratch", *SCRATCH)
    yield killer
    killer.close()


def hash_all(run: Path) -> dict[str, str]:
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["tested_at"]
    files = {name: (run / name).read_bytes() for name in ("predictions.npz", "steps.csv")}
    return {**hash_run(run), "evaluation": evaluation, **files}


def finish_killed(killer: Killer, name: str, *words: str, kills: list[dict]) -> int:
    """Kill a run as described, then let it end; return how often it was killed."""
    n_killed = 0
    for when in [*kills, {}]:
        code, _, _ = killer.run(*words, "--run", name, **when)
        n_killed += code == -signal.SIGKILL
        if (killer.folder / "runs" / name / "DONE.json").is_file():
            return n_killed
        assert code in (0, -signal.SIGKILL), killer.log
    raise AssertionError(f"{name} did not end: {killer.log}")


def test_a_killed_run_ends_as_if_undisturbed(killer: Killer) -> None:
    words, runs = [*SCRATCH, *ALWAYS], killer.folder / "runs"
    kills = [{"at_call": 200}, {"at_call": 132}, {"at_call": 150}]
    assert finish_killed(killer, "killed", *words, kills=kills) == 3
    assert hash_all(runs / "killed") == hash_all(runs / "scratch")
    assert not (runs / "killed/checkpoints").exists()
    assert not list((runs / "killed").glob(".*.tmp-*"))
    provenance = json.loads((runs / "killed/provenance.json").read_text())
    # The steps in which dropout's state counts.
    places = [resumption["from"] for resumption in provenance["resumptions"]]
    assert sum(place.endswith(("step 1", "step 2", "step 3")) for place in places) >= 2, places
    assert killer.run(*words, "--run", "killed")[0] == 3
    assert killer.run("--resume", "killed")[0] == 3


@pytest.mark.slow
def test_many_kills(killer: Killer) -> None:
    """Frozen, finetune and what follows, killed `KILLS` times, resumed runs too."""
    chance, n_killed, chain = random.Random(KILLS), 0, 0
    runs = killer.folder / "runs"
    if not (runs / "finetune").exists():
        killer.begin("finetune", *FINETUNE)
    while n_killed < KILLS:
        chain += 1
        for phase, words in (("frozen", FROZEN), ("finetune", FINETUNE)):
            seconds, n_calls = killer.seconds[phase], 500
            kills = [
                chance.choice(
                    [{"after": chance.uniform(0, seconds)}, {"at_call": chance.randint(1, n_calls)}]
                )
                for _ in range(3)
            ]
            name = f"{phase}-{chain}"
            n_killed += finish_killed(killer, name, *words, *ALWAYS, kills=kills)
            assert hash_all(runs / name) == hash_all(runs / phase), kills
            assert report.main([str(runs / name), "--quiet"]) == 0
            shutil.rmtree(runs / name)


@pytest.mark.slow
def test_a_kill_at_every_call_of_a_save(killer: Killer) -> None:
    words, runs = [*FROZEN, *ALWAYS], killer.folder / "runs"
    for call in range(50, 74):  # a save has some 22 calls
        finish_killed(killer, f"call-{call}", *words, kills=[{"at_call": call}])
        assert hash_all(runs / f"call-{call}") == hash_all(runs / "frozen"), call
        shutil.rmtree(runs / f"call-{call}")


def check_resumed(killer: Killer, run: Path, code: int, *words: str) -> None:
    """Check what a run that ended with an error says and keeps, and let it end."""
    if code:
        assert code == 74, killer.log
        *_, error, kept = killer.log.splitlines()
        # Keras writes a model by a temporary file.
        assert re.match("input/output error: (/.*/)?(runs/|tmp)", error), killer.log
        n_epochs = len(re.findall("^epoch ", killer.log, re.MULTILINE))
        if (run / "config.json").exists():
            assert f"{run.relative_to(killer.folder)} keeps {n_epochs} epochs; `" in kept, (
                killer.log
            )
        # What fails may be the last flush of DONE.json, which is there then.
        is_complete = (run / "DONE.json").exists()
        assert killer.run(*words)[0] == (3 if is_complete else 0), killer.log
    assert hash_all(run) == hash_all(killer.folder / "runs/frozen")


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [n / 11 for n in range(11)])
def test_a_failing_call_costs_no_finished_epoch(killer: Killer, fraction: float) -> None:
    words = [*FROZEN, *ALWAYS, "--run", f"failed-{fraction:.3f}"]
    call = 1 + int(fraction * killer.calls["frozen"])
    code, _, _ = killer.run(*words, at_call=call, error=errno.EIO)
    check_resumed(killer, killer.folder / f"runs/failed-{fraction:.3f}", code, *words)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Iterator[Killer]:
    """As `killer`; `runs` is a disk of its own of 64 MB."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "runs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder / "runs")]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    write_toy_data(folder)
    killer = Killer(folder)
    killer.begin("frozen", *FROZEN, *ALWAYS)
    yield killer
    killer.close()
    subprocess.run(["umount", folder / "runs"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.6])
@pytest.mark.parametrize("free", [0, 20_000, 200_000])
def test_a_full_disk_costs_no_finished_epoch(
    small_disk: Killer, free: int, fraction: float
) -> None:
    run = small_disk.folder / f"runs/full-{free}-{fraction}"
    words = [*FROZEN, *ALWAYS, "--run", run.name]
    code, _, _ = small_disk.run(
        *words, at_call=int(fraction * small_disk.calls["frozen"]), full=free
    )
    (small_disk.folder / "runs/ballast").unlink()
    check_resumed(small_disk, run, code, *words)


@pytest.fixture
def stopped(killer: Killer, monkeypatch: pytest.MonkeyPatch, toy_spec) -> Path:
    """A copy of a run that was stopped by SIGTERM in its third epoch, in the current folder."""
    original = killer.folder / "runs/stopped"
    if not original.exists():
        words = [*FROZEN, *ALWAYS, "--run", "stopped"]
        assert (
            killer.run(*words, at_call=killer.calls["frozen"] * 6 // 10, number=signal.SIGTERM)[0]
            == 143
        ), killer.log
        assert 1 < len(RunDir(original).read_history()) < 4
    monkeypatch.chdir(killer.folder)
    shutil.rmtree("runs/copy", ignore_errors=True)
    shutil.copytree(original, "runs/copy")
    return Path("runs/copy")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "emptied": ("state.json", lambda p: p.write_bytes(b"")),
    "bit flipped": ("variables.data-00000-of-00001", flip_a_bit),
    "checksums gone": ("DONE.json", lambda p: p.unlink()),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES.keys())
def test_the_checkpoint_before_a_corrupt_one_serves(
    stopped: Path, capsys, name: str, damage
) -> None:
    _, newest = sorted(stopped.glob("checkpoints/*"))
    damage(newest / name)
    assert main(["--resume", "copy"]) == 0
    assert not (stopped / "wandb").exists()  # disabled, as when the run was begun
    assert f"{newest}: " in capsys.readouterr().err
    assert hash_all(stopped) == hash_all(Path("runs/frozen"))


def test_no_valid_checkpoint_is_bad_input(stopped: Path, capsys) -> None:
    for path in stopped.glob("checkpoints/*/state.json"):
        flip_a_bit(path)
    assert main(["--resume", "copy", "--wandb", "disabled"]) == 2
    assert str(stopped / "checkpoints") in capsys.readouterr().err
    assert predict.main(["copy", "toy_test.csv"]) == 2


def test_changes_are_refused_or_accepted_and_recorded(stopped: Path, capsys, monkeypatch) -> None:
    resume = ["--resume", "copy", "--wandb", "disabled"]
    assert main([*resume, "--learning-rate", "0.02"]) == 2
    assert "learning_rate: expected 0.01, found 0.02" in capsys.readouterr().err
    assert main([*FROZEN, "--run", "copy", "--epochs", "5"]) == 2
    assert "epochs: expected 4, found 5" in capsys.readouterr().err
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(99)})
    assert main(resume) == 2
    assert "processors: expected" in capsys.readouterr().err
    assert main([*resume, "--learning-rate", "0.02", "--accept-changes"]) == 0
    provenance = json.loads((stopped / "provenance.json").read_text())
    changes = provenance["resumptions"][-1]["accepted_changes"]
    assert [change.split(":")[0] for change in changes] == [
        "learning_rate",
        "processors",
        "processor",
    ]
    assert json.loads((stopped / "config.json").read_text())["learning_rate"] == 0.02
    assert RunDir(stopped).read_history()[-1].learning_rate == pytest.approx(0.02)


def test_changed_data_is_refused(stopped: Path, capsys) -> None:
    before = Path("toy_test.csv").read_bytes()
    write_csv("toy_test.csv", draw(21, 5), [NAMES[row % 3] for row in range(21)])
    assert main(["--resume", "copy", "--wandb", "disabled"]) == 2
    Path("toy_test.csv").write_bytes(before)
    assert "data, SHA-256: expected" in capsys.readouterr().err


def test_changed_labels_in_a_file_of_their_own_are_refused(
    stopped: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError(signal.SIGTERM)

    labels = [NAMES[row % 3] for row in range(60)]
    np.save("images.npy", draw(60, 0))
    Path("labels.txt").write_text("\n".join(labels))
    words = ["--data", "images.npy", "--labels", "labels.txt", "--run", "labelled"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "add_epoch", stop)
        assert main([*FROZEN, *words]) == 143
    Path("labels.txt").write_text("\n".join([labels[1], labels[0], *labels[2:]]))
    capsys.readouterr()
    assert main(["--resume", "labelled", "--wandb", "disabled"]) == 2
    assert "data, SHA-256: expected" in capsys.readouterr().err


def test_a_run_in_use_is_refused(stopped: Path) -> None:
    with RunDir(stopped).locked():
        assert main(["--resume", "copy", "--wandb", "disabled"]) == 3
        assert main([*FROZEN, "--run", "copy"]) == 3


def test_a_stopped_run_is_used_with_a_warning(stopped: Path, capsys) -> None:
    state = json.loads(max(stopped.glob("checkpoints/*/state.json")).read_text())
    best = state["history"][state["best_epoch"] - 1]
    (stopped / "model.keras").unlink()  # a killed run has none
    assert evaluate.main(["copy", "--data", "toy_train.csv"]) == 0
    said = capsys.readouterr()
    assert "STOPPED after" in said.err
    assert "--resume copy" in said.err
    assert predict.main(["copy", "toy_test.csv"]) == 0
    assert export.main(["copy", "--format", "saved_model"]) == 0
    assert report.main(["copy"]) == 0
    said = capsys.readouterr()
    assert said.err.count("STOPPED after") == 3
    assert f"{best['val_accuracy']:.4f}" in said.out
    assert "--resume copy" in (stopped / "report.html").read_text()
    words = ["--phase", "finetune", "--epochs", "1", "--wandb", "disabled", "--run", "of-stopped"]
    assert main([*words, "--from", "copy"]) == 0
    start = RunDir(Path("runs/of-stopped")).read_history()[0]
    assert start.val_loss == pytest.approx(best["val_loss"], rel=0.02)
    shutil.rmtree("runs/of-stopped")
    # It can still be finished.
    assert main(["--resume", "copy", "--wandb", "disabled"]) == 0
    assert hash_all(stopped)["history"] == hash_all(Path("runs/frozen"))["history"]


@pytest.mark.parametrize(
    ("name", "every"),
    [("TERM", None), ("TERM", 0.002), *(pytest.param(n, None, marks=SLOW) for n in SLOW_SIGNALS)],
)
def test_a_signal_loses_no_finished_epoch(killer: Killer, name: str, every: float | None) -> None:
    run, number = killer.folder / f"runs/{name}-{every}", signal.Signals[f"SIG{name}"]
    words = [*FROZEN, "--epochs", "100000", "--run", run.name]
    when = {"after": killer.seconds["frozen"], "every": every, "number": number}
    codes = (128 + number,) if every is None else (128 + number, -number)
    assert killer.run(*words, **when)[0] in codes, killer.log
    # The newest checkpoint has every epoch of the history.
    state = json.loads(max(run.glob("checkpoints/*/state.json")).read_text())
    assert len(state["history"]) == len(RunDir(run).read_history()) > 0
    assert state["position"]["epoch"] == len(state["history"]) + 1


def test_nobody_reading_does_not_end_a_training(killer: Killer) -> None:
    assert killer.run(*FROZEN, "--run", "unread", log=None)[0] == 74  # for the result on stdout
    assert hash_all(killer.folder / "runs/unread") == hash_all(killer.folder / "runs/frozen")


@pytest.mark.parametrize("what", ["history", "checkpoint"])
def test_an_error_of_the_disk_costs_no_epoch(stopped: Path, capsys, monkeypatch, what: str) -> None:
    """Writing fails once: the history of an epoch, or the checkpoint after an epoch."""
    owner, name = (RunDir, "write_history") if what == "history" else (CheckpointDir, "save")
    write, n_epochs = getattr(owner, name), len(RunDir(stopped).read_history())
    failed: list[bool] = []

    def fail_once(self: object, content, *others: object) -> None:
        rows = content["history"] if what == "checkpoint" else content
        if len(rows) > n_epochs and not failed:
            failed.append(True)
            raise OSError(errno.EIO, "Input/output error", str(stopped / "x"))
        write(self, content, *others)

    monkeypatch.setattr(owner, name, fail_once)
    code = main(["--resume", "copy", "--wandb", "disabled", *ALWAYS])
    said = capsys.readouterr().err
    assert code == (0 if what == "history" else 74), said
    assert f"keeps {n_epochs + 1} epochs; `" in said or f"{what}.csv is written again" in said
    assert code == 0 or main([*FROZEN, "--run", "copy"]) == 0
    assert hash_all(stopped) == hash_all(Path("runs/frozen"))


def test_figures_that_fail_do_not_cost_the_run(stopped: Path, capsys) -> None:
    names = ("curves.png", "mistakes.png", "README.md", "report.html")
    for name in names:
        (stopped / name / "in the way").mkdir(parents=True)
    assert main(["--resume", "copy", "--wandb", "disabled"]) == 0
    said = capsys.readouterr().err
    assert [name for name in names if f"{name} was not made" not in said] == []
    assert (stopped / "DONE.json").is_file()


@pytest.mark.parametrize("what", ["model", "evaluation"])
def test_a_full_disk_after_training_costs_no_epoch(
    stopped: Path, capsys, monkeypatch, what: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(stopped / "x"))

    resume = ["--resume", "copy", "--wandb", "disabled"]
    with monkeypatch.context() as patch:
        if what == "model":
            patch.setattr(keras.Model, "save", fail)
        else:
            patch.setattr(RunDir, "write_predictions", fail)
        assert main(resume) == 74
    assert "train --resume copy` continues" in capsys.readouterr().err
    history = (stopped / "history.csv").read_bytes()
    assert main(resume) == 0
    assert (stopped / "history.csv").read_bytes() == history
    assert hash_all(stopped) == hash_all(Path("runs/frozen"))


def test_room_is_checked_before_training(stopped: Path, capsys, monkeypatch) -> None:
    usage = shutil.disk_usage(stopped)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(["--resume", "copy", "--wandb", "disabled"]) == 74
    assert "runs/copy/checkpoints" in capsys.readouterr().err


def test_a_checkpoint_that_training_removed_is_replaced_by_the_newest(stopped: Path) -> None:
    run = read_saved_run(RunDir(stopped))
    shutil.move(run.checkpoint.path, run.checkpoint.path.with_name("999999"))
    assert run.model.count_params() > 0


def test_what_a_kill_after_the_end_left_is_removed(killer: Killer, tmp_path: Path) -> None:
    runs = killer.folder / "runs"
    for words in (["--resume", "over"], [*FROZEN, "--run", "over"]):
        shutil.copytree(runs / "frozen", tmp_path / "over", dirs_exist_ok=True)
        (tmp_path / "over/checkpoints/000001").mkdir(parents=True)
        assert main([*words, "--runs-dir", str(tmp_path)]) == 3
        assert not (tmp_path / "over/checkpoints").exists()


@pytest.mark.slow
def test_two_first_starts_in_one_folder(killer: Killer, tmp_path: Path) -> None:
    write_toy_data(tmp_path)
    command = [sys.executable, Path(__file__).with_name("toy.py"), *FROZEN]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [subprocess.Popen(command, cwd=tmp_path, env=environment) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    runs = list(tmp_path.glob("runs/2*"))
    assert len(runs) == 2
    for run in runs:
        assert hash_all(run) == hash_all(killer.folder / "runs/frozen")
    assert not list((tmp_path / "runs/.cache").rglob("*.tmp-*"))


@pytest.mark.slow
def test_memory_and_descriptors_stay_flat(
    stopped: Path, toy_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 epochs grew by 23 MB after the first 500, 5 kB each."""
    add_epoch, seen = TrainState.add_epoch, {}

    def watch(state: TrainState, row: HistoryRow, val: Counts) -> bool:
        anonymous = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        seen[row.epoch] = int(anonymous[1]), len(os.listdir("/proc/self/fd"))
        return add_epoch(state, row, val)

    monkeypatch.setattr(TrainState, "add_epoch", watch)
    words = [*FROZEN, "--epochs", "1500", "--quiet", "--wandb", "disabled", "--run", "flat"]
    assert main(words) == 0
    shutil.rmtree("runs/flat")
    (before, n_before), (after, n_after) = seen[500], seen[1500]
    assert after - before < 15_000  # kB
    assert n_after == n_before


def test_a_frozen_model_is_what_the_checkpoint_says(stopped: Path) -> None:
    """The network of a stopped run is that of the model.keras that its stop wrote."""
    expected = keras.saving.load_model(stopped / "model.keras").get_weights()
    found = read_saved_run(RunDir(stopped)).model.get_weights()
    for one, other in zip(found, expected, strict=True):
        if np.issubdtype(one.dtype, np.floating):  # no count of batches
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_wandb_continues_under_the_same_id(killer: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*FROZEN, *ALWAYS, "--wandb", "offline"]
    finish_killed(killer, "w", *words, kills=[{"at_call": 220}])
    run = killer.folder / "runs/w"
    provenance = json.loads((run / "provenance.json").read_text())
    assert len(provenance["resumptions"]) == 1
    folders = list(run.glob("wandb/offline-run-*"))
    assert {path.name.rpartition("-")[2] for path in folders} == {provenance["wandb_id"]}
    assert hash_all(run) == hash_all(killer.folder / "runs/frozen")
