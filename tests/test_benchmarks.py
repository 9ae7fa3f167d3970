"""The benchmark's figures, its worker processes, and that ours and Keras compute the same."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.bounds import count_multiplications, flop_per_cycle
from benchmarks.measure import measure_task
from benchmarks.plan import (
    N_CHECKED,
    N_IMAGES,
    PREPARE,
    TASKS,
    Job,
    System,
    plan_systems,
)
from benchmarks.rows import KEYS, MIN_COSINE, Measurement, compare_outputs, compose_rows

ROOT = Path(__file__).parents[1]
PASS, FLATTEN, GAP, FINETUNE = TASKS.values()
OURS, OURS_OPENVINO, KERAS, OPENVINO, TORCH = plan_systems("float32", "float32")
COUNTS = {
    PASS: {"frozen": 1000, "trained": 0, "backward": 0},
    FLATTEN: {"frozen": 1000, "trained": 50, "backward": 60},
    FINETUNE: {"frozen": 800, "trained": 250, "backward": 400},
}
OUTPUTS = np.random.default_rng(0).uniform(0.1, 1, (N_CHECKED, 4)).astype(np.float32)
MACHINE = {
    "processor": "Test",
    "cores": 2,
    "memory_bytes": 2**34,
    "gpus": [],
    "physical_cores": 2,
    "clock_mhz": 2000.0,
    "flop_per_second_bound": {"float32": 1e6, "bfloat16": None},
    "precision": "float32",
    "precision_why": "the processor has no bfloat16 units",
}


def measured(system: System, task, *rates: float, outputs=OUTPUTS, reason=None) -> Measurement:
    facts = {"multiplications": COUNTS[task]} if system is KERAS else {}
    facts |= {"stored_bytes_per_image": 7} if system is OURS else {}
    job = Job(system, task, "resnet50", 64, 8, Path())
    return Measurement(job, list(rates), 2_000_000, facts, outputs, reason)


def made_up_rows() -> list[dict]:
    measurements = [
        measured(OURS, PASS, 20.0),
        measured(OURS_OPENVINO, PASS, 40.0),
        measured(KERAS, PASS, 10.0),
        measured(OPENVINO, PASS, outputs=None, reason="openvino is not installed"),
        measured(TORCH, PASS, 15.0, 14.0, 16.0),
        measured(OURS, FLATTEN, 600.0),
        measured(KERAS, FLATTEN, 8.0),
        measured(OURS, FINETUNE, 12.0),
        measured(KERAS, FINETUNE, 4.0),
    ]
    return compose_rows(measurements, MACHINE["flop_per_second_bound"])


def row_of(rows: list[dict], stage: str, system: System) -> dict:
    (row,) = (row for row in rows if (row["stage"], row["system"]) == (stage, system.name))
    return row


def test_rates_become_rows() -> None:
    rows = made_up_rows()
    assert {tuple(row) for row in rows} == {KEYS}
    assert [row["stage"] for row in rows] == [
        *["feature_pass"] * 5, *["frozen_epoch"] * 2, *["finetune_epoch"] * 2, *["frozen_phase"] * 3
    ]  # fmt: skip
    torch = row_of(rows, "feature_pass", TORCH)
    assert (torch["images_per_second"], torch["ratio"], torch["seconds"]) == (15.0, 1.5, 4000.0)
    assert (torch["peak_mb"], torch["cosine"], torch["rounds"]) == (2.0, 1.0, [15.0, 14.0, 16.0])
    assert (torch["backbone"], torch["image_size"], torch["batch_size"]) == ("resnet50", 64, 8)
    assert torch["percent_of_bound"] == pytest.approx(100 * 15 * 2 * 1000 / 1e6)
    openvino = row_of(rows, "feature_pass", OPENVINO)
    assert (openvino["images_per_second"], openvino["ratio"]) == (None, None)
    assert openvino["reason"] == "openvino is not installed"
    # 60,000 / 20 once and 60,000 / 600 ten times; 60,000 / 8 ten times
    ours, keras = (row_of(rows, "frozen_phase", system) for system in (OURS, KERAS))
    assert (ours["seconds"], keras["seconds"]) == (4000.0, 75_000.0)
    assert (ours["images_per_second"], ours["ratio"]) == (150.0, pytest.approx(18.75))
    assert row_of(rows, "frozen_phase", OURS_OPENVINO)["seconds"] == 2500.0


def test_the_bound_counts_what_each_system_computes() -> None:
    rows = made_up_rows()
    # Nine of ten images go backward; ours has the backbone features in its cache.
    ours, keras = (row_of(rows, "finetune_epoch", system) for system in (OURS, KERAS))
    assert ours["percent_of_bound"] == pytest.approx(100 * 12 * 2 * (250 + 0.9 * 400) / 1e6)
    assert keras["percent_of_bound"] == pytest.approx(100 * 4 * 2 * (1050 + 0.9 * 400) / 1e6)
    flop = 60_000 * 2000 + 600_000 * 2 * (50 + 0.9 * 60)
    phase = row_of(rows, "frozen_phase", OURS)
    assert phase["percent_of_bound"] == pytest.approx(100 * flop / 1e6 / 4000)


def test_without_the_reference_there_is_no_ratio_and_wrong_outputs_have_no_rate() -> None:
    failed = measured(KERAS, PASS, outputs=None, reason="died")
    failed.facts = {}
    row = compose_rows([measured(OURS, PASS, 20.0), failed], {"float32": 1e6})[0]
    assert row["images_per_second"] == 20.0
    assert (row["ratio"], row["cosine"], row["percent_of_bound"]) == (None, None, None)
    for wrong in (OUTPUTS[::-1], OUTPUTS * np.nan):
        ours = measured(OURS, FLATTEN, 9.0, outputs=wrong)
        rows = compose_rows([ours, measured(KERAS, FLATTEN, 1.0)], {})
        assert [row["images_per_second"] for row in rows] == [None, 1.0, 1.0]
        assert "cosine" in rows[0]["reason"]


def test_outputs_are_compared_beyond_their_mean() -> None:
    expected = np.random.default_rng(0).normal(5, 0.1, (8, 20))
    assert compare_outputs(expected, expected) == 1.0
    assert compare_outputs(expected + 1e-6, expected) > 0.9999
    # Plain cosines would all be above 0.99.
    assert compare_outputs(expected[::-1], expected) < 0.5
    one_off = expected.copy()
    one_off[3] = expected[2]
    assert compare_outputs(one_off, expected) < 0.9


def test_the_command_prints_tables_and_writes_json(tmp_path, monkeypatch, capsys) -> None:
    settings = {"rounds": 3, "round_seconds": 1.0}
    result = {"machine": MACHINE, "settings": settings, "rows": made_up_rows()}
    run = Mock(return_value=result)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("benchmarks.measure.run_benchmark", run)
    words = ["--quick", "--backbone", "ResNet50", "mlp", "--image-size", "96", "112"]
    assert main([*words, "--json", str(tmp_path / "x.json")]) == 0
    cases = [("resnet50", 96), ("resnet50", 112), ("mlp", 96), ("mlp", 112)]
    run.assert_called_once_with(cases, ["features", "flatten", "finetune"], 3, 1.0)
    assert json.loads((tmp_path / "x.json").read_text()) == result
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    cells = [line.split() for line in printed.splitlines()]
    assert ["torch_compile_float32", "15.0", "7", "1.50x", "2", "3.0", "1"] in cells
    assert any(line[:4] == ["openvino_float32", "not", "measured:", "openvino"] for line in cells)


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "."],
        ["--json", "/dev/null"],
        ["--image-size", "1025"],
        ["--backbone", "resnet51"],
    ],
)
def test_wrong_flags_end_before_the_work(words: list[str], capsys) -> None:
    assert main(words) == 2
    assert words[0] in capsys.readouterr().err


def test_bfloat16_is_measured_where_it_is_fast() -> None:
    on_processor = [system.name for system in plan_systems("bfloat16", "bfloat16")]
    assert on_processor == [
        "ours", "ours_openvino", "keras_float32", "keras_bfloat16", "openvino_bf16",
        "torch_compile_bf16",
    ]  # fmt: skip
    assert [system.precision for system in plan_systems("bfloat16", "float32")] == [
        "bfloat16", "float32", "float32", "bfloat16", "float32", "bfloat16"
    ]  # fmt: skip


def test_flop_per_cycle() -> None:
    for features, *expected in (
        ((), None, None),
        (("avx2",), 32, None),
        (("avx2", "avx512f", "amx_bf16"), 64, 1024),
    ):
        assert [flop_per_cycle(features, p) for p in ("float32", "bfloat16")] == expected


def open_stage(job: Job) -> SimpleNamespace:
    """Open a stage of a made-up system, in its worker process: see `fakes`."""
    name = job.system.name
    if name == "raises":
        raise ValueError("no\nsuch thing")
    if name == "missing":
        importlib.import_module("no_such_package.part")
    if name == "dies":
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def measure(units: int) -> int:
        with (job.folder / "log").open("a") as log:
            log.write(f"{name} {units} {os.getpid()}\n")
        time.sleep(0.1 * units)
        return 10 * units

    return SimpleNamespace(facts={"name": name}, outputs=OUTPUTS, measure=measure)


def fakes(folder: Path, *names: str) -> list[Job]:
    systems = [System(name, "test_benchmarks:open_stage", "float32") for name in names]
    return [Job(system, PASS, "resnet50", 32, 8, folder) for system in systems]


def test_systems_take_turns_in_their_own_processes(tmp_path: Path) -> None:
    measurements = measure_task(fakes(tmp_path, "first", "second"), 2, 0.3)
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    # The first measurement is warm-up, the second one tells the size of the rounds.
    assert [name for name, _, _ in log] == [
        "first", "first", "second", "second", "first", "second", "first", "second",
    ]  # fmt: skip
    assert {units for _, units, _ in log[:4]} == {"1"}
    assert {units for _, units, _ in log[4:]} <= {"2", "3"}
    assert len({pid for _, _, pid in log} | {str(os.getpid())}) == 3
    for measurement in measurements:
        assert measurement.reason is None
        assert measurement.facts == {"name": measurement.job.system.name}
        assert all(10 < rate <= 100 for rate in measurement.rates)
        assert measurement.peak_bytes > 10e6
        assert np.array_equal(measurement.outputs, OUTPUTS)


def test_a_worker_that_fails_loses_its_own_measurement_alone(tmp_path: Path) -> None:
    jobs = fakes(tmp_path, "raises", "missing", "dies", "good")
    raises, missing, dies, good = measure_task(jobs, 1, 0.1)
    assert raises.reason == "ValueError: no such thing"
    assert missing.reason.startswith("no_such_package is not installed")
    assert "last words" in dies.reason
    assert (good.reason, len(good.rates)) == (None, 1)
    assert not multiprocessing.active_children()


def test_multiplications() -> None:
    import keras

    inputs = keras.Input((8, 8, 3))
    low = keras.layers.Conv2D(4, 3, padding="same", name="low", trainable=False)(inputs)
    mid = keras.layers.Conv2D(2, 1, name="mid")(low)
    norm = keras.layers.BatchNormalization(trainable=False)(mid)
    top = keras.layers.Conv2D(5, 1, name="top", trainable=False)(norm)
    last = keras.layers.Dense(10)(keras.layers.Flatten()(top))
    # mid: the gradient of its kernel; top: of its input; the dense layer: of both
    mid_cost, top_cost, last_cost = 64 * 4 * 2, 64 * 2 * 5, 320 * 10
    assert count_multiplications(keras.Model(inputs, last)) == {
        "frozen": 64 * 27 * 4,
        "trained": mid_cost + top_cost + last_cost,
        "backward": mid_cost + top_cost + 2 * last_cost,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit")  # PyTorch calls what it deprecates
@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet-lite0"])
def test_all_systems_compute_the_same(tmp_path: Path, backbone: str) -> None:
    from benchmarks import ours, plain_keras

    prepared = Job(PREPARE, PASS, backbone, 32, 32, tmp_path)
    assert plain_keras.prepare(prepared).facts["feature_batch"] == 128
    tuned = replace(prepared, task=FINETUNE)
    stages = ours.open_stage(replace(tuned, system=OURS)), plain_keras.KerasStage(tuned)
    found, expected = (Measurement(tuned, outputs=stage.outputs).comparable() for stage in stages)
    assert compare_outputs(found, expected) > MIN_COSINE["float32"]
    assert [stage.measure(2) for stage in stages] == [64 + 7, 64 + 7]  # trained on + validated
    expected = plain_keras.KerasStage(prepared).outputs
    for system, package in ((OURS_OPENVINO, "openvino"), (OPENVINO, "openvino"), (TORCH, "torch")):
        if find_spec(package):
            stage = pkgutil.resolve_name(system.stage)(replace(prepared, system=system))
            assert compare_outputs(stage.outputs, expected) > MIN_COSINE["float32"]
            assert stage.measure(2) % 64 == 0


def test_the_stages_of_ours_on_a_small_network(tmp_path: Path, toy_spec) -> None:
    from benchmarks import ours, plan

    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 28, 28), np.uint8)
    np.savez(tmp_path / plan.IMAGES, images=images, labels=np.arange(N_IMAGES) % 10)
    kernel = np.full((3, 3, 3, 4), 0.01, np.float32)
    np.savez(tmp_path / plan.WEIGHTS, **{"stem_conv/0": kernel})
    job = Job(OURS, PASS, "toy", 16, 32, tmp_path)
    features = ours.open_stage(job)
    assert features.outputs.shape == (N_CHECKED, 4 * 4 * 8)
    assert features.facts == {"stored_bytes_per_image": 4 * 4 * 8 * 2}
    assert features.measure(1) == 2 * 32  # a batch in each of two threads
    epoch = ours.open_stage(replace(job, task=FLATTEN))
    np.testing.assert_allclose(epoch.outputs.sum(axis=1), 1, rtol=1e-5)
    assert epoch.measure(2) == 64 + 7  # trained on + validated


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(target)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    print(answer.stdout)
    for row in json.loads(target.read_text())["rows"]:
        if row["reason"] is not None:
            assert "is not installed" in row["reason"]
        elif row["system"] == "ours":
            assert row["ratio"] > (5 if row["stage"] == "frozen_phase" else 0.5)
