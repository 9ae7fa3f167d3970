"""The sweep from end to end on a toy: trials, failures, going on, seeds, W&B's file."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_train import write_csv

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.pipeline import prepare
from fmnist_tf.pipeline import run as pipeline
from fmnist_tf.sweep import main
from fmnist_tf.train import main as train_main

TOY = [
    *("--backbone", "toy", "--weights", "random", "--data", "toy_train.csv", "--head", "gap"),
    *("--units", "0", "--epochs", "2", "--batch-size", "16", "--wandb", "disabled"),
]
RATES = ["--grid", "learning_rate=1e-6,1e-2"]


@pytest.fixture
def folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 80, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    return tmp_path


def sweep(*words: str) -> int:
    return main([*TOY, "--run", "s", *words])


def read_trials() -> list[dict[str, str]]:
    with Path("runs/s/trials.csv").open() as file:
        return list(csv.DictReader(file))


def read_json(path: str) -> dict:
    return json.loads(Path(path).read_text())


def count_shards() -> int:
    return len(list(Path("runs/.cache/features").glob("*/shard-*.bin")))


def test_trials_share_one_stored_prefix_and_leave_the_test_alone(folder, capsys) -> None:
    assert sweep(*RATES) == 0
    assert count_shards() == 1
    assert [row["trial"] for row in read_trials()] == ["1", "2"]
    for number in (1, 2):
        files = {path.name for path in Path(f"runs/s/trial-00{number}").iterdir()}
        assert files == {
            "config.json", "evaluation.json", "history.csv", "labels.json", "provenance.json",
            "trainable.txt", ".lock",
        }  # fmt: skip
    assert Path("runs/s/sweep.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["trials", "learning_rate", "val", "accuracy", "n", "best", "epoch",
                              "seconds"]  # fmt: skip
    said = read_json("runs/s/trial-002/evaluation.json")
    assert "test" not in said
    assert said["val"]["total"] == 8
    share = said["val"]["accuracy"]
    assert out[-1] == f"runs/s  best val accuracy {share:.4f} (n = 1)  learning_rate=0.01"
    assert out[-3] == "data: toy (csv); backbone weights: random"


def test_the_printed_command_trains_the_best_again(folder, capsys) -> None:
    assert sweep(*RATES, "--seed", "4") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("train the best"))
    words = shlex.split(line.split(":", 1)[1])
    assert words[:3] == ["python", "-m", "fmnist_tf.train"]
    assert words[-2:] == ["--wandb", "disabled"]
    assert train_main([*words[3:], "--run", "best"]) == 0
    trial = Path("runs/s/trial-002/history.csv").read_text().splitlines()
    again = Path("runs/best/history.csv").read_text().splitlines()
    without_seconds = [line.rsplit(",", 1)[0] for line in trial]
    assert [line.rsplit(",", 1)[0] for line in again] == without_seconds


def test_a_trial_that_fails_does_not_stop_the_others(folder, capsys) -> None:
    words = ["--grid", "learning_rate=1e38,1e-2 optimizer=sgd"]
    assert sweep(*words) == 0
    first, second = read_trials()
    assert "expected a finite number" in first["error"]
    assert (first["correct"], first["loss"], first["epoch"]) == ("", "", "")
    assert float(first["seconds"]) > 0
    assert second["error"] == ""
    assert second["correct"] != ""
    captured = capsys.readouterr()
    assert "trial 1 failed, the others go on" in captured.err
    assert "failed: " in captured.out
    assert captured.out.splitlines()[-1].endswith("learning_rate=0.01 optimizer=sgd")
    assert sweep(*words) == 0  # and is tried again, it alone
    said = capsys.readouterr().err
    assert "1 of them have their result already" in said
    assert "trial 1 failed" in said


@pytest.mark.parametrize("units", ["8,4", "4,8"])
def test_a_head_that_memory_cannot_hold_fails_alone(folder, monkeypatch, units) -> None:
    def build(config, *words):
        if config.units == 8:
            raise MemoryError("no room")
        return original(config, *words)

    original = prepare.build_configured
    monkeypatch.setattr(prepare, "build_configured", build)
    toy = [word for word in TOY if word not in ("--units", "0")]
    assert main([*toy, "--run", "s", "--grid", f"units={units}"]) == 0
    errors = {row["units"]: row["error"] for row in read_trials()}
    assert errors == {"4": "", "8": "MemoryError: no room"}


def fail_at_seed(monkeypatch: pytest.MonkeyPatch, name: str, seed: int) -> None:
    """Let session's function of this name fail for runs of one seed."""

    def fail_once(config, *rest):
        if config.seed == seed:
            raise MemoryError("no room")
        return original(config, *rest)

    original = getattr(pipeline, name)
    monkeypatch.setattr(pipeline, name, fail_once)


def test_the_printed_command_is_of_a_seed_that_did_not_fail(folder, capsys, monkeypatch) -> None:
    fail_at_seed(monkeypatch, "run_trial", 0)
    assert sweep("--grid", "learning_rate=1e-2", "--seeds", "2") == 0
    assert "--recipe runs/s/trial-002/config.json" in capsys.readouterr().out


def test_pooled_heads_come_after_the_maps_they_average(folder, capsys) -> None:
    common = [word for word in TOY if word not in ("--head", "gap")]
    assert main([*common, "--run", "s", "--grid", "head=gap,flatten learning_rate=1e-6,1e-2"]) == 0
    said = capsys.readouterr().err
    assert re.findall(r"^trial (\d) of 4", said, re.MULTILINE) == ["3", "4", "1", "2"]
    assert said.count("averaging the feature maps") == 1
    assert [row["trial"] for row in read_trials()] == ["1", "2", "3", "4"]


def test_what_ended_the_sweep_is_tried_again_last(folder, capsys) -> None:
    # A trial that takes the process with it may do so again: the others have their turn first.
    assert sweep(*RATES) == 0
    for name in ("trial-001/evaluation.json", "trial-002"):
        path = Path("runs/s", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert sweep(*RATES) == 0
    assert re.findall(r"^trial (\d) of 2", capsys.readouterr().err, re.MULTILINE) == ["2", "1"]


def test_debug_shows_why_a_trial_failed_and_changes_nothing_else(folder, capsys) -> None:
    assert sweep("--grid", "learning_rate=1e38,1e-2 optimizer=sgd", "--debug") == 0
    assert "Traceback" in capsys.readouterr().err
    assert [bool(row["error"]) for row in read_trials()] == [True, False]


def test_the_table_is_whole_though_a_trial_was_stopped_before_its_row(folder) -> None:
    assert sweep(*RATES) == 0
    whole = Path("runs/s/trials.csv").read_text()
    Path("runs/s/trials.csv").unlink()
    assert sweep(*RATES) == 0
    assert Path("runs/s/trials.csv").read_text() == whole


def test_when_all_fail_the_command_does(folder, capsys) -> None:
    assert sweep("--grid", "learning_rate=1e38 optimizer=sgd") == 1
    captured = capsys.readouterr()
    assert "every trial failed, the first one: the loss is" in captured.err
    assert "failed: the loss is" in captured.out


def test_a_seed_that_fails_does_not_cost_the_others(folder, capsys, monkeypatch) -> None:
    fail_at_seed(monkeypatch, "run_phase", 1)
    assert sweep("--seeds", "3", "--learning-rate", "1e-2") == 0
    out = capsys.readouterr().out.splitlines()
    assert "not every seed came to its end: MemoryError: no room" in out
    assert out[-1].endswith("(n = 2)")
    assert Path("runs/s/trial-003/DONE.json").is_file()


def test_a_full_disk_ends_the_sweep_and_is_no_result(folder, capsys, monkeypatch) -> None:
    def fail(*_):
        raise OSError(28, "No space left on device", "runs")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_trial", fail)
        assert sweep(*RATES) == 74
    assert not Path("runs/s/trials.csv").exists()
    assert sweep(*RATES) == 0


def test_a_network_that_is_gone_ends_the_sweep_too(folder, monkeypatch) -> None:
    def fail(*_):
        raise DownloadError("no server")

    monkeypatch.setattr(pipeline, "run_trial", fail)
    assert sweep(*RATES) == 74
    assert not Path("runs/s/trials.csv").exists()


def test_it_goes_on_where_it_was(folder, capsys) -> None:
    assert sweep(*RATES) == 0
    kept = Path("runs/s/trial-001/history.csv").stat().st_mtime_ns
    before = read_trials()
    Path("runs/s/trial-002/evaluation.json").unlink()  # as if killed in it
    Path("runs/s/trials.csv").unlink()
    capsys.readouterr()
    assert sweep(*RATES) == 0
    assert "1 of them have their result already" in capsys.readouterr().err
    assert Path("runs/s/trial-001/history.csv").stat().st_mtime_ns == kept
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in before]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in read_trials()] == same


@pytest.mark.parametrize(
    "words",
    [["--epochs", "3"], ["--epochs", "3", "--dry-run"], ["--grid", "learning_rate=1e-6,1e-3"]],
)
def test_another_sweep_of_that_name_is_refused(folder, capsys, words, monkeypatch) -> None:
    # Interrupted before its first trial.
    monkeypatch.setattr("fmnist_tf.sweep._run_trial", lambda *_: 1 / 0)
    assert sweep(*RATES) == 1
    before = sorted(Path("runs/s").rglob("*"))
    assert Path("runs/s/sweep.json") in before
    assert sweep(*RATES, *words) == 3
    assert "expected the sweep that is to go on, found another" in capsys.readouterr().err
    assert sorted(Path("runs/s").rglob("*")) == before


def test_other_data_under_the_same_name_are_another_sweep(folder, capsys) -> None:
    assert sweep(*RATES) == 0
    header, first, *rest = Path("toy_train.csv").read_text().splitlines()
    Path("toy_train.csv").write_text("\n".join([header, *rest, first]) + "\n")
    capsys.readouterr()
    assert sweep(*RATES) == 3
    assert "its data sha256 was another" in capsys.readouterr().err


def test_memory_of_a_trial_is_free_when_the_next_begins(folder, monkeypatch) -> None:
    alive: list[weakref.ref] = []

    def watch(config, data, network, *rest):
        assert not [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(network.classifier))
        return original(config, data, network, *rest)

    original = pipeline.run_trial
    monkeypatch.setattr(pipeline, "run_trial", watch)
    assert sweep("--grid", "learning_rate=1e-6,1e-4,1e-2") == 0
    assert len(alive) == 3


def test_the_name_of_a_run_is_refused(folder, capsys) -> None:
    Path("runs/s").mkdir(parents=True)
    assert sweep(*RATES) == 3


def test_seeds_share_the_split_and_are_tested_where_nothing_is_chosen(folder, capsys) -> None:
    assert sweep("--seeds", "2", "--learning-rate", "1e-2") == 0
    runs = [Path("runs/s/trial-001"), Path("runs/s/trial-002")]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert [config["seed"] for config in configs] == [0, 1]
    assert [config["split_seed"] for config in configs] == [0, 0]
    assert all((run / "DONE.json").is_file() and (run / "model.keras").is_file() for run in runs)
    splits = [
        json.loads((run / "provenance.json").read_text())["data"]["split_sha256"] for run in runs
    ]
    assert splits[0] == splits[1]
    shares = [json.loads((run / "evaluation.json").read_text())["test"]["accuracy"] for run in runs]
    last = capsys.readouterr().out.splitlines()[-1]
    spread = f"{np.mean(shares):.4f} ± {np.std(shares, ddof=1):.4f}"
    assert last == f"runs/s  test accuracy {spread} (n = 2)"
    # Called again, what is finished is not tested anew.
    tested = [(run / "evaluation.json").stat().st_mtime_ns for run in runs]
    (runs[1] / "DONE.json").unlink()
    assert sweep("--seeds", "2", "--learning-rate", "1e-2") == 0
    again = [(run / "evaluation.json").stat().st_mtime_ns for run in runs]
    assert again[0] == tested[0]
    assert again[1] > tested[1]


def test_seeds_of_a_grid_are_compared_by_their_mean(folder, capsys) -> None:
    assert sweep(*RATES, "--seeds", "2") == 0
    shares = [read_json(f"runs/s/trial-00{n}/evaluation.json")["val"]["accuracy"] for n in (2, 4)]
    spread = f"{np.mean(shares):.4f} ± {np.std(shares, ddof=1):.4f}"
    assert f"best val accuracy {spread} (n = 2)" in capsys.readouterr().out
    assert not Path("runs/s/trial-001/model.keras").exists()


def test_finetune_sweeps_continue_one_frozen_run(folder, capsys) -> None:
    frozen = [*TOY, "--phase", "frozen", "--run", "base"]
    assert train_main(frozen) == 0
    words = ["--phase", "finetune", "--wandb", "disabled", "--epochs", "1", "--batch-size", "16"]
    assert main([*words, "--run", "s", "--grid", "unfreeze=deep,all"]) == 0
    configs = [read_json(f"runs/s/trial-00{n}/config.json") for n in (1, 2)]
    assert [c["unfreeze"] for c in configs] == [["deep"], ["stem", "deep"]]
    assert {c["parent"] for c in configs} == {"base"}
    command = read_json("runs/s/trial-001/provenance.json")["command"]
    assert command.endswith("--from base")
    # Another run is the newest by now; the sweep goes on from its own.
    assert train_main([*TOY, "--phase", "frozen", "--run", "newer", "--seed", "1"]) == 0
    Path("runs/s/trial-002/evaluation.json").unlink()
    assert main([*words, "--run", "s", "--grid", "unfreeze=deep,all"]) == 0
    assert read_json("runs/s/trial-002/config.json")["parent"] == "base"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--random", "3"], "--random: expected with --grid"),
        (["--grid", "dropout=0,0.1", "--random", "0"], "--random 0: expected a whole number"),
        (["--seeds", "0"], "--seeds 0: expected a whole number from 1"),
        (["--grid", "units=0,8"], "--units: expected once, and --grid varies it"),
        (["--grid", "momentum=0.1"], "momentum=0.1: --momentum 0.1: expected with --optimizer sgd"),
        (["--grid", "backbone=toy,resnt8"], "--backbone resnt8: expected one of"),
        (["--grid", "backbone=toy,resnt8", "--dry-run"], "--backbone resnt8: expected one of"),
        (["--grid", "backbone=toy,resnt8", "--wandb-file", "x.yaml"], "--backbone resnt8: expe"),
        (["--grid", "dropout=0,0.1", "--weights", "none.h5"], "--weights none.h5: no such file"),
        ([*RATES, "--wandb-file", "."], "--wandb-file .: expected the name of a file"),
        ([*RATES, "--wandb-file", "x.yaml", "--dry-run"], "--wandb-file: expected without --dry"),
        (["--grid", "weights=random,none.h5"], "--weights none.h5: no such file"),
        (["--seeds", "99999"], "1 points with 99,999 seeds: expected at most 10,000 trials"),
        (["--seed", "2147483647", "--seeds", "2"], "--seeds 2: expected seeds up to 2147483647"),
        (["--wandb-file", "x.yaml"], "--wandb-file: expected with --grid"),
        (
            ["--backbone", "mlp", "--grid", "head=flatten,gap"],
            "--head gap: expected flatten, for mlp has no feature map",
        ),
        (["--grid", "dropout=0..0.5", "--wandb-file", "x.yaml"], "expected --random N"),
    ],
)
def test_wrong_words_are_refused_before_any_work(folder, capsys, words, said) -> None:
    varied = {name for name in ("--backbone", "--weights", "--head") if name[2:] in str(words)}
    pairs = zip(TOY[::2], TOY[1::2], strict=True)
    toy = [word for flag, value in pairs if flag not in varied for word in (flag, value)]
    assert main([*toy, "--run", "s", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs/s").exists()
    assert not Path("x.yaml").exists()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("optimizer=adamw,sgd", ["--weight-decay", "0.01"]),
        ("learning_rate=1e-2,1e-1", ["--min-learning-rate", "5e-3"]),
        ("epochs=10,20", ["--warmup-epochs", "8", "--schedule", "cosine"]),
    ],
)
def test_what_is_common_need_not_stand_alone(folder, grid, words) -> None:
    toy = [word for word in TOY if word not in ("--epochs", "2")]
    assert main([*toy, "--grid", grid, *words, "--dry-run"]) == 0


def test_dry_run_lists_the_trials(folder, capsys) -> None:
    assert sweep(*RATES, "--seeds", "2", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "trial 1 of 4: learning_rate=1e-06 seed=0", "trial 2 of 4: learning_rate=0.01 seed=0",
        "trial 3 of 4: learning_rate=1e-06 seed=1", "trial 4 of 4: learning_rate=0.01 seed=1",
    ]  # fmt: skip
    assert not list(Path().glob("runs/[a-z]*"))


def test_wandb_file_holds_the_search_and_what_is_fixed(folder, capsys) -> None:
    assert sweep("--grid", "learning_rate=1e-6,1e-2", "--wandb-file", "w.yaml") == 0
    assert capsys.readouterr().out == "wandb sweep w.yaml\n"
    content = yaml.safe_load(Path("w.yaml").read_text())
    assert content["parameters"] == {"learning-rate": {"values": [1e-6, 1e-2]}}
    fixed = content["command"][4:-1]
    assert "--epochs=2" in fixed
    assert train_main([*fixed, "--wandb", "disabled", "--learning-rate=0.01", "--dry-run"]) == 0
    assert not list(Path().glob("runs/[a-z]*"))


def test_words_of_others_hold_recipe_parent_and_folder(folder, capsys) -> None:
    where = ["--runs-dir", "elsewhere"]
    assert train_main([*TOY, *where, "--run", "base"]) == 0
    Path("r.toml").write_text("epochs = 1\nbatch_size = 16\nphase = 'finetune'\n")
    words = [*where, "--recipe", "r.toml", "--grid", "unfreeze=deep", "--wandb", "disabled"]
    assert main([*words, "--wandb-file", "w.yaml"]) == 0
    command = yaml.safe_load(Path("w.yaml").read_text())["command"]
    assert command[4:6] == ["--recipe", "r.toml"]
    given = dict(zip(command[6:-1:2], command[7:-1:2], strict=False))
    assert (given["--runs-dir"], given["--from"]) == ("elsewhere", "elsewhere/base")
    capsys.readouterr()
    assert main([*words, "--run", "s"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("train the best")]
    printed = shlex.split(line)
    assert printed[printed.index("--runs-dir") + 1] == "elsewhere"
    assert printed[printed.index("--from") + 1] == "elsewhere/base"


def test_wandb_gets_a_group_of_trials_and_the_table(folder) -> None:
    from test_tracking import inspect

    assert sweep(*RATES, "--wandb", "offline") == 0
    jobs, names = [], []
    for place in ("runs/s", "runs/s/trial-001", "runs/s/trial-002"):
        (offline,) = Path(place, "wandb").glob("offline-run-*")
        records = [json.loads(line) for line in inspect(str(offline)).splitlines()]
        (run,) = [record["run"] for record in records if record["type"] == "run"]
        assert run["run_group"] == "s"
        jobs.append(run["job_type"])
        names.append(run["display_name"])
    assert jobs == ["sweep", "frozen", "frozen"]
    assert names == ["s", "s-trial-001", "s-trial-002"]
    summary = json.loads(inspect(str(next(Path("runs/s/wandb").glob("off*"))), "--summary"))
    assert summary["summary"]["runs"]["nrows"] == 2
    assert summary["summary"]["comparison"]["_type"] == "image-file"


@pytest.mark.slow
def test_a_killed_sweep_goes_on(folder) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from toy import build_toy_spec\n"
        "from fmnist_tf.model.backbones import BACKBONES\n"
        "from fmnist_tf.sweep import main\n"
        "BACKBONES['toy'] = build_toy_spec()\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [*TOY, "--run", "s", "--grid", "learning_rate=1e-6,1e-4,1e-3,1e-2", "--epochs", "40"]
    with subprocess.Popen([sys.executable, "-c", script, *words]) as process:
        deadline = time.monotonic() + 60
        while not Path("runs/s/trial-002/history.csv").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not Path("runs/s/trial-002/evaluation.json").exists()
    assert main(words) == 0
    assert [row["trial"] for row in read_trials()] == ["1", "2", "3", "4"]
