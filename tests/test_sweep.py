"""The sweep: its grid, its trials and their table, and what interruptions change (nothing)."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import write_csv

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.pipeline import run as pipeline
from fmnist_tf.pipeline.study import SweepStudy, Trial, decode, plan_trials, read_space, show_point
from fmnist_tf.reporting.trials import rank
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.flags import setting_names
from fmnist_tf.sweep import main
from fmnist_tf.system.signals import StoppedError
from fmnist_tf.train import main as train_main

TOY = [
    *("--backbone", "toy", "--weights", "random", "--data", "toy_train.csv", "--head", "gap"),
    *("--units", "0", "--epochs", "2", "--batch-size", "16", "--wandb", "disabled"),
]
RATES = ["--grid", "learning_rate=1e-6,1e-2"]
FAILING = ["--grid", "learning_rate=1e38,1e-2 optimizer=sgd"]


@pytest.fixture
def folder(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 80, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    return tmp_path


def sweep(*words: str) -> int:
    return main([*TOY, "--run", "s", *words])


def read_trials(run: str = "s") -> list[dict[str, str]]:
    """The rows of trials.csv without their seconds."""
    with Path(f"runs/{run}/trials.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def read_json(path: str) -> dict:
    return json.loads(Path(path).read_text())


# The grid


def test_values_are_read_as_their_flags_read_them() -> None:
    grid = "learning_rate=1e-4,none --units=0,512 augment=none,flip+erasing lr-finder=true,false"
    point = {name: d.choices[-1] for name, d in read_space(grid).items()}
    assert decode(point) == {
        "learning_rate": None, "units": 512, "augment": ("flip", "erasing"), "lr_finder": False,
    }  # fmt: skip
    again = read_space(show_point(point))
    assert {name: d.choices[0] for name, d in again.items()} == point


def test_ranges() -> None:
    space = read_space("learning_rate=1e-5..1e-2:log dropout=0..0.5 units=8..64")
    assert [(d.low, d.high, d.log) for d in space.values()] == [
        (1e-5, 1e-2, True), (0, 0.5, False), (8, 64, False),
    ]  # fmt: skip
    points = [trial.point for trial in plan_trials(space, "random", 40, range(1))]
    assert len({tuple(point.items()) for point in points}) == 40
    assert all(type(point["units"]) is int and 8 <= point["units"] <= 64 for point in points)
    rates = sorted(point["learning_rate"] for point in points)
    assert rates[20] < 2e-3  # half of them are below the geometric mean of the ends, 3e-4


@pytest.mark.parametrize(
    "grid",
    [
        "units", "units=", "unit=3", "split_seed=3", "units=3 units=4", "units=3,3", "units=3,x",
        "units=-1", "head=mean", "augment=turn", "dropout=0..1.5", "dropout=0.5..0.5",
        "dropout=0..0.5:log", "head=1..2", "lr_finder=yes", "seed=1,2", "phase=frozen",
        "limit=100,200", "test_time_flip=true,false",
    ],
)  # fmt: skip
def test_wrong_grids_are_refused(grid: str) -> None:
    with pytest.raises(UsageError, match="--grid"):
        read_space(grid)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_a_space_or_one_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert set(read_space(text)) <= set(setting_names())


def test_a_grid_has_every_combination_once_for_each_seed() -> None:
    space = read_space("units=0,8 dropout=0,0.5,0.9")
    made = plan_trials(space, "grid", None, range(4, 6))
    trials = [(trial.point, trial.seed) for trial in made]
    points = [{"units": u, "dropout": d} for u in ("0", "8") for d in ("0", "0.5", "0.9")]
    assert trials == [(point, seed) for seed in (4, 5) for point in points]


def test_random_points_depend_on_the_seed_and_differ() -> None:
    space = read_space("units=0..3 head=gap,flatten")
    drawn = [
        [tuple(t.point.items()) for t in plan_trials(space, "random", 99, range(seed, seed + 1))]
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == len(drawn[0]) == 8


def test_points_are_ranked_by_counts_then_loss_and_incomplete_ones_come_last() -> None:
    def row(trial: int, correct: int | None, loss: float = 0.5, state: str = "complete") -> dict:
        return {"trial": trial, "correct": correct, "loss": loss, "state": state}

    # Trials 4 and 5 and their repetitions: equal sums, but not equal means of fractions.
    rows = [row(1, None, state="failed"), row(2, 5999), row(3, None, state="pruned")]
    rows += [row(4, 5483), row(5, 5488, 0.4), row(7, None, state="pruned")]
    rows += [row(9, 5667), row(10, 5664, 0.4), row(14, 5388), row(15, 5386, 0.4)]
    assert [group["trial"].iloc[0] for group in rank(pd.DataFrame(rows), 5)] == [5, 4, 2, 3, 1]


# Trials


def test_trials_share_features_leave_the_test_alone_and_the_best_is_trained_again(
    folder, capsys
) -> None:
    words = [*RATES, "--seeds", "2", "--seed", "4"]
    assert sweep(*words, "--dry-run") == 0
    assert "trial 4 of 4: learning_rate=1e-2 seed=5" in capsys.readouterr().out.splitlines()
    assert not list(Path().glob("runs/[a-z]*"))
    assert sweep(*words) == 0
    # Random weights depend on the seed. Each has the maps of the head and those of finetune.
    assert len(list(Path("runs/.cache/features").glob("*/shard-*.bin"))) == 4
    assert [row["state"] for row in read_trials()] == ["complete"] * 4
    assert {path.name for path in Path("runs/s/trial-001").iterdir()} == {
        "config.json", "evaluation.json", "history.csv", "labels.json", "provenance.json",
        "steps.csv", "trainable.txt", "DONE.json", ".lock",
    }  # fmt: skip
    figures = {path.name for path in Path("runs/s").glob("*.png")}
    assert figures == {"optimization_history.png", "slice.png"}
    evaluations = [read_json(f"runs/s/trial-00{n}/evaluation.json") for n in (2, 4)]
    assert not any("test" in evaluation for evaluation in evaluations)
    out = capsys.readouterr().out.splitlines()
    accuracy = spread([evaluation["val"]["accuracy"] for evaluation in evaluations])
    assert out[-1] == f"runs/s  best val accuracy {accuracy} (n = 2)  learning_rate=1e-2"

    (line,) = [line for line in out if line.startswith("train the best")]
    command = shlex.split(line.split(":", 1)[1])
    assert train_main([*command[3:], "--run", "best"]) == 0
    histories = [
        [line.rsplit(",", 1)[0] for line in Path(path, "history.csv").read_text().splitlines()]
        for path in ("runs/s/trial-002", "runs/best")
    ]
    assert histories[0] == histories[1]
    assert main([*TOY, *RATES, "--run", "best"]) == 3  # the name of a run


def test_a_failed_trial_is_told_and_tried_again_by_the_next_command(folder, capsys) -> None:
    assert sweep(*FAILING) == 0
    first, second = read_trials()
    assert (first["state"], first["correct"], second["state"]) == ("failed", "", "complete")
    assert first["error"]
    captured = capsys.readouterr()
    assert "trial 1 failed" in captured.err
    assert captured.out.splitlines()[-1].endswith("learning_rate=1e-2 optimizer=sgd")
    assert sweep(*FAILING, "--debug") == 0
    err = capsys.readouterr().err
    assert re.findall(r"^trial (\d) of 2", err, re.MULTILINE) == ["1"]
    assert "Traceback" in err
    assert read_trials()[1] == second
    assert main([*TOY, "--grid", "learning_rate=1e38 optimizer=sgd"]) == 1  # none is complete


def test_errors_of_disk_and_network_end_the_sweep(folder, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        for error in (OSError(28, "No space left on device"), DownloadError("down")):
            patch.setattr(pipeline, "run_trial", Mock(side_effect=error))
            assert sweep(*RATES) == 74
            assert read_trials() == []
    assert sweep(*RATES) == 0
    assert [row["state"] for row in read_trials()] == ["complete"] * 2


def test_pooled_heads_come_after_the_maps_they_average(folder, capsys) -> None:
    common = [word for word in TOY if word not in ("--head", "gap")]
    assert main([*common, "--run", "s", "--grid", "head=gap,flatten"]) == 0
    assert capsys.readouterr().err.count("averaging the feature maps") == 1
    assert [row["head"] for row in read_trials()] == ["flatten", "gap"]


def test_memory_of_a_trial_is_free_when_the_next_begins(folder, monkeypatch) -> None:
    alive: list[weakref.ref] = []

    def run_trial(experiment, *rest):
        assert not [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(experiment.network.classifier))
        return original(experiment, *rest)

    original = pipeline.run_trial
    monkeypatch.setattr(pipeline, "run_trial", run_trial)
    assert sweep(*RATES) == 0
    assert len(alive) == 2


# Seeds


def test_seeds_share_the_split_are_tested_once_and_one_that_fails_costs_no_other(
    folder, capsys, monkeypatch
) -> None:
    def run_phase(experiment, *rest):
        if experiment.config.seed == 1:
            raise MemoryError("no room")
        return original(experiment, *rest)

    original, words = pipeline.run_phase, ["--seeds", "3", "--learning-rate", "1e-2"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_phase", run_phase)
        assert sweep(*words) == 0
    assert read_trials()[1]["error"] == "MemoryError: no room"
    runs = [f"runs/s/trial-00{number}" for number in (1, 3)]
    configs = [read_json(f"{run}/config.json") for run in runs]
    assert [(config["seed"], config["split_seed"]) for config in configs] == [(0, 0), (2, 0)]
    assert all(Path(run, "DONE.json").is_file() for run in runs)
    assert len({read_json(f"{run}/provenance.json")["data"]["split_sha256"] for run in runs}) == 1
    values = [read_json(f"{run}/evaluation.json")["test"]["accuracy"] for run in runs]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"runs/s  test accuracy {spread(values)} (n = 2)"
    before = [Path(run, "evaluation.json").stat().st_mtime_ns for run in runs]
    assert sweep(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("(n = 3)")
    assert [Path(run, "evaluation.json").stat().st_mtime_ns for run in runs] == before


def test_a_finished_run_is_not_tested_again_if_only_its_record_is_missing(
    folder, monkeypatch
) -> None:
    def run_phase(*given):
        original(*given)
        raise StoppedError(15)

    original = pipeline.run_phase
    words = ["--seeds", "1", "--learning-rate", "1e-2"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_phase", run_phase)
        assert sweep(*words) == 143
    before = Path("runs/s/trial-001/DONE.json").stat().st_mtime_ns
    assert sweep(*words) == 0
    assert Path("runs/s/trial-001/DONE.json").stat().st_mtime_ns == before
    assert read_trials()[0]["test_total"] == "21"


def test_a_changed_record_or_trial_is_refused(folder, capsys) -> None:
    words = ["--grid", "learning_rate=1e-2"]
    assert sweep(*words) == 0
    for name, old, new in (
        ("sweep.json", '"correct": ', '"correct": 1'),
        ("trial-001/provenance.json", '"random"', '"file"'),
    ):
        path = Path("runs/s", name)
        content = path.read_text()
        path.write_text(content.replace(old, new, 1))
        assert path.read_text() != content
        capsys.readouterr()
        assert sweep(*words) == 2
        assert f"runs/s/{name}: expected" in capsys.readouterr().err
        path.write_text(content)
    assert sweep(*words) == 0


# Samplers


def begin(folder: Path, sampler: str, grid: str, n_points: int | None, seeds: range) -> SweepStudy:
    """Open the study in a folder; the first call plans its trials."""
    space, directory = read_space(grid), RunDir(folder)
    if not directory.file("sweep.json").exists():
        trials = plan_trials(space, sampler, n_points, seeds)
        directory.write_record("sweep.json", {"trials": [*map(dataclasses.asdict, trials)]})
    return SweepStudy(directory, space, sampler)


def train_nothing(study: SweepStudy, *, p_stop: float = 0.0, seed: int = 0) -> list[Trial]:
    """Run the trials with a formula in place of training; it may stop at any epoch."""
    rng = random.Random(seed)
    with contextlib.closing(study.claims()) as claims:
        for claim in claims:
            best = 1 / (1 + abs(np.log10(float(claim.trial.point["learning_rate"])) + 3))
            state, history = "complete", []
            for epoch in range(1, 5):
                if rng.random() < p_stop:
                    raise StoppedError(15)
                history.append(HistoryRow(epoch, "frozen", 1, 1, 1, best * epoch / 4, 1, 1))
                claim.directory.write_history(history)
                try:
                    claim.report(history[-1], epochs=4)
                except optuna.TrialPruned:
                    state = "pruned"
                    break
            correct = round(1000 * best * epoch / 4)
            study.finish(claim, state, epoch=epoch, correct=correct, total=1000)
    return [dataclasses.replace(trial, attempts=1) for trial in study.read_trials()]


SEARCH = ("learning_rate=1e-7..1e-1:log units=0,8", 24, range(7, 8))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_interruptions_change_neither_sampling_nor_pruning(tmp_path, sampler) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = train_nothing(begin(tmp_path / "whole", sampler, *SEARCH))
    n_stopped = 0
    for seed in itertools.count():
        try:
            study = begin(tmp_path / "stopped", sampler, *SEARCH)
            trials = train_nothing(study, p_stop=0.05, seed=seed)
            break
        except StoppedError:
            n_stopped += 1
    assert n_stopped >= 3
    assert trials == whole
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    assert all(trial.state == "complete" for trial in trials[:5])
    if sampler == "tpe":  # follows the results; the first ten are random
        distances = np.abs(np.log10([trial.point["learning_rate"] for trial in trials]) + 3)
        assert np.median(distances[10:]) < np.median(distances[:10])


def test_tpe_repeats_its_points_with_other_seeds_and_takes_none_twice(tmp_path) -> None:
    trials = train_nothing(begin(tmp_path, "tpe", "learning_rate=1e-4,1e-3,1e-2", 9, range(5, 7)))
    points = [trial.point["learning_rate"] for trial in trials]
    assert sorted(points[:3]) == ["1e-2", "1e-3", "1e-4"]
    assert points[3:] == points[:3]
    assert [trial.seed for trial in trials] == [5, 5, 5, 6, 6, 6]


def test_a_trial_that_always_stops_its_process_waits_for_the_others(tmp_path) -> None:
    begun = []
    for _ in range(5):
        study = begin(tmp_path, "grid", "units=1,2,3", None, range(1))
        with contextlib.closing(study.claims()) as claims:
            begun.append(next(claims).trial.number)
    assert begun == [1, 1, 1, 2, 2]


def test_a_worker_waits_for_the_trial_of_another(tmp_path) -> None:
    sweep = ("grid", "learning_rate=1e-4,1e-3", None, range(1))
    study = begin(tmp_path, *sweep)
    with ThreadPoolExecutor(1) as threads, contextlib.closing(study.claims()) as claims:
        claim = next(claims)
        other = threads.submit(train_nothing, begin(tmp_path, *sweep))
        while study.read_trials()[1].state != "complete" and not other.done():
            time.sleep(0.02)
        assert not other.done()
        study.finish(claim, "failed", error="no room", seconds=0.0)
        claims.close()
        assert [trial.state for trial in other.result()] == ["failed", "complete"]


def test_pruned_trials_are_shown(folder, capsys) -> None:
    rng, labels = np.random.default_rng(0), np.arange(120) % 4
    pixels = rng.normal(60 * labels[:, None] + 30, 40, (120, 784)).clip(0, 255).astype(int)
    np.savetxt("grey.csv", np.column_stack([labels, pixels]), "%d", ",")
    words = ["--backbone", "mlp", "--weights", "random", "--data", "grey.csv", "--units", "0"]
    words += ["--label-column", "first"]  # it goes with every pixel
    words += ["--val-fraction", "0.5", "--epochs", "3", "--batch-size", "16", "--run", "s"]
    words += ["--grid", "learning_rate=1e-7..1e-2:log", "--random", "7", "--wandb", "disabled"]
    assert main(words) == 0
    pruned = [row for row in read_trials() if row["state"] == "pruned"]
    assert capsys.readouterr().out.count("pruned after epoch 2") == len(pruned) > 0
    assert {(row["epoch"], row["correct"]) for row in pruned} == {("2", "")}


# One sweep, several commands


def test_another_sweep_of_that_name_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "run_trial", Mock(side_effect=StoppedError(15)))
    assert sweep(*RATES) == 143
    before = sorted(Path("runs/s").rglob("*"))
    longer, wider = ["--epochs", "3"], ["--grid", "learning_rate=1e-6,1e-3"]
    for words in (longer, [*longer, "--dry-run"], wider):
        assert sweep(*RATES, *words) == 3
    assert sorted(Path("runs/s").rglob("*")) == before
    header, first, *rest = Path("toy_train.csv").read_text().splitlines()
    Path("toy_train.csv").write_text("\n".join([header, *rest, first]) + "\n")
    assert sweep(*RATES) == 3


def test_finetune_sweeps_continue_one_frozen_run(folder, capsys) -> None:
    where = ["--runs-dir", "elsewhere"]
    assert train_main([*TOY, *where, "--run", "base"]) == 0
    Path("r.toml").write_text("epochs = 1\nbatch_size = 16\nphase = 'finetune'\n")
    words = [*where, "--recipe", "r.toml", "--wandb", "disabled", "--run", "s"]
    words += ["--grid", "unfreeze=conv2,all"]
    assert main(words) == 0
    configs = [read_json(f"elsewhere/s/trial-00{n}/config.json") for n in (1, 2)]
    assert [c["unfreeze"] for c in configs] == [["conv2"], ["all"]]
    assert {c["parent"] for c in configs} == {"base"}
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("train the best")]
    printed = shlex.split(line)
    assert printed[printed.index("--runs-dir") + 1] == "elsewhere"
    assert printed[printed.index("--from") + 1] == "elsewhere/base"
    # Another run is the newest by now; the sweep continues its own.
    newer = RunDir(Path(shutil.copytree("elsewhere/base", "elsewhere/newer")))
    newer.write_done()
    assert main(words) == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--random", "3"],
        ["--grid", "dropout=0..0.5"],
        ["--grid", "dropout=0,0.1", "--random", "0"],
        ["--seeds", "0"],
        ["--grid", "units=0,8"],
        ["--grid", "momentum=0.1"],
        ["--grid", "momentum=0..0.1", "--tpe", "3"],
        ["--grid", "backbone=toy,resnt8"],
        ["--grid", "backbone=toy,resnt8", "--dry-run"],
        ["--grid", "dropout=0,0.1", "--weights", "none.h5"],
        ["--grid", "weights=random,none.h5"],
        ["--seeds", "99999"],
        ["--seed", "2147483647", "--seeds", "2"],
        ["--backbone", "mlp", "--grid", "head=flatten,gap"],
    ],
)
def test_wrong_words_are_refused_before_any_work(folder, words) -> None:
    varied = {name for name in ("--backbone", "--weights", "--head") if name[2:] in str(words)}
    pairs = zip(TOY[::2], TOY[1::2], strict=True)
    toy = [word for flag, value in pairs if flag not in varied for word in (flag, value)]
    assert main([*toy, "--run", "s", *words]) == 2
    assert not Path("runs/s").exists()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("optimizer=adamw,sgd", ["--weight-decay", "0.01"]),
        ("learning_rate=1e-2,1e-1", ["--min-learning-rate", "5e-3"]),
        ("epochs=10,20", ["--warmup-epochs", "8", "--schedule", "cosine"]),
    ],
)
def test_common_settings_are_checked_with_the_varied_ones(folder, grid, words) -> None:
    toy = [word for word in TOY if word not in ("--epochs", "2")]
    assert main([*toy, "--grid", grid, *words, "--dry-run"]) == 0


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
    assert summary["summary"]["table/runs"]["nrows"] == 2
    assert summary["summary"]["comparison"]["_type"] == "image-file"


# Real processes

MLP = [
    *("--backbone", "mlp", "--weights", "random", "--data", "train.csv", "--epochs", "2"),
    *("--batch-size", "16", "--wandb", "disabled"),
    *("--grid", "learning_rate=1e-5,1e-4,1e-3 units=0,8 dropout=0,0.5"),
]


def start(run: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "fmnist_tf.sweep", *MLP, "--run", run]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Return stdout and stderr of a sweep that succeeds."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


def count_starts(run: str) -> int:
    """How many trials were begun, or begun again."""
    return sum(trial["attempts"] for trial in read_json(f"runs/{run}/sweep.json")["trials"])


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_like_an_undisturbed_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "train.csv", 200, seed=0)
    finish(start("whole"))
    rng = random.Random(5)
    for _ in range(10):
        process = start("killed")
        while not process.stderr.readline().startswith("trial "):
            assert process.poll() is None
        time.sleep(rng.uniform(0, 0.8))  # in the first trial or the next ones
        process.kill()
        process.communicate()
    finish(start("killed"))
    assert read_trials("killed") == read_trials("whole")
    n_killed_in_a_trial = count_starts("killed") - count_starts("whole")
    assert 5 <= n_killed_in_a_trial <= 10


@pytest.mark.slow
def test_two_processes_train_each_trial_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "train.csv", 200, seed=0)
    both = [start("s"), start("s")]
    outputs = [finish(process) for process in both]
    begun = [re.findall(r"^trial (\d+) of 12", err, re.MULTILINE) for _, err in outputs]
    assert all(begun)
    assert sorted(map(int, begun[0] + begun[1])) == list(range(1, 13))
    assert [row["state"] for row in read_trials()] == ["complete"] * 12
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
