"""The benchmark's arithmetic, its workers' lives, and that every system computes the same."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.bench import main
from fmnist_tf.benchmark import bounds
from fmnist_tf.benchmark import worker as worker_module
from fmnist_tf.benchmark.plan import (
    N_CHECKED,
    TASKS,
    Job,
    Settings,
    Task,
    plan_epoch,
    plan_systems,
)
from fmnist_tf.benchmark.rows import (
    LEAST_COSINE,
    Measurement,
    compare_outputs,
    compose_rows,
    count_flop,
)
from fmnist_tf.benchmark.suite import BenchError, run_benchmark
from fmnist_tf.benchmark.table import format_result, format_seconds
from fmnist_tf.benchmark.workers import WorkerError, running

PASS, FLATTEN, GAP, FINETUNE = TASKS
ROW_KEYS = {
    "stage", "head", "system", "images_per_second", "ratio", "seconds", "rounds", "spread",
    "peak_mb", "anonymous_mb", "percent_of_bound", "percent_of_reached", "cosine", "precision",
    "batch_size", "stored_bytes_an_image", "device", "rule", "reason",
}  # fmt: skip
COUNTS = {
    "feature_pass": {"frozen": 1000, "trained": 0, "backward": 0},
    "flatten": {"frozen": 1000, "trained": 50, "backward": 60},
    "gap": {"frozen": 1000, "trained": 5, "backward": 6},
    "finetune": {"frozen": 800, "trained": 250, "backward": 400},
}
FACTS = {
    "precision": "float32",
    "why": "the processor has no bfloat16 units",
    "gpus": [],
    "feature_batch": 128,
    "multiplications": COUNTS,
    "versions": {"keras": "3"},
}
# Speaks the workers' language without computing anything; every answer is logged.
FAKE = """
import json, os, shutil, signal, subprocess, sys, time
plan = json.loads(sys.argv[1])
job = json.loads(sys.stdin.readline())
name = job["kind"] + "/" + job["stage"] + "/" + str(job["head"])
def log(word):
    with open(plan["log"], "a") as file:
        file.write(f"{name} {word}\\n")
def answer(**values):
    print(json.dumps(values), flush=True)
if job["kind"] == "prepare":
    answer(facts=plan["facts"])
    sys.exit()
if name in plan.get("failed", {}):
    answer(failed=plan["failed"][name])
    sys.exit(1)
answer(facts={"precision": "float32", "batch_size": job["batch_size"], "stored_bytes_an_image": 7})
measured = 0
for line in sys.stdin:
    request = json.loads(line)
    log(request["ask"] + str(request.get("units", "")))
    if request["ask"] == "outputs":
        path = f"{job['folder']}/{os.getpid()}.npy"
        shutil.copy(plan["wrong" if name in plan.get("wrong_ones", []) else "right"], path)
        answer(path=path)
    elif request["ask"] == "probe":
        answer(flop_per_second=plan["probe"].get(job["kind"]))
    else:
        measured += 1
        if plan.get("dies", {}).get(name) == measured:
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.get("hangs") == name:
            child = subprocess.Popen(["sleep", "100"])
            log(f"pids {os.getpid()} {child.pid}")
            time.sleep(100)
        images = request["units"] * 10
        rate = plan["rates"][name][measured % len(plan["rates"][name])]
        answer(images=images, seconds=images / rate, peak_bytes=2_000_000,
               anonymous_bytes=1_000_000, clock_mhz=2000.0)
"""
RATES = {
    "ours/feature_pass/None": [20.0],
    "plain_keras/feature_pass/None": [10.0],
    "with_openvino/feature_pass/None": [30.0],
    "with_torch/feature_pass/None": [15.0, 14.0, 16.0],
    "ours/frozen_epoch/flatten": [600.0],
    "plain_keras/frozen_epoch/flatten": [8.0],
    "ours/frozen_epoch/gap": [6000.0],
    "plain_keras/frozen_epoch/gap": [9.0],
    "ours/finetune_epoch/flatten": [12.0],
    "plain_keras/finetune_epoch/flatten": [4.0],
}
SETTINGS = Settings(quick=True, image_size=64, rounds=3, round_seconds=10.0)


def fake(folder: Path, **plan: object) -> tuple[str, ...]:
    """Return the command of a fake worker."""
    outputs = np.random.default_rng(0).uniform(0.1, 1, (32, 4)).astype(np.float32)
    files = {name: str(folder / f"{name}.npy") for name in ("right", "wrong")}
    np.save(files["right"], outputs)
    np.save(files["wrong"], outputs[::-1])
    whole = {"facts": FACTS, "rates": RATES, "log": str(folder / "log"), "probe": {}, **files}
    whole |= plan
    return (sys.executable, "-c", FAKE, json.dumps(whole))


def run_fake(folder: Path, settings: Settings = SETTINGS, **plan: object) -> dict:
    (folder / "work").mkdir()
    result = run_benchmark(
        settings,
        folder / "work",
        say=lambda line: None,
        show=lambda done, total: None,
        command=fake(folder, **plan),
    )
    return json.loads(json.dumps(result))


def row_of(result: dict, stage: str, system: str, head: str | None = None) -> dict:
    (row,) = (
        row
        for row in result["rows"]
        if (row["stage"], row["system"], row["head"]) == (stage, system, head)
    )
    return row


def test_rates_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmnist_tf.benchmark.suite.describe_machine", lambda: MACHINE)
    monkeypatch.setattr("fmnist_tf.benchmark.suite.count_physical_cores", lambda cpus: 2)
    steps: list[tuple[int, int]] = []
    (tmp_path / "work").mkdir()
    result = run_benchmark(
        SETTINGS,
        tmp_path / "work",
        say=lambda line: None,
        show=lambda done, total: steps.append((done, total)),
        command=fake(tmp_path, probe={"plain_keras": 6.4e10, "with_torch": 3e10}),
    )
    assert set(result) == {"machine", "settings", "rows"}
    assert {frozenset(row) for row in result["rows"]} == {frozenset(ROW_KEYS)}
    assert [(row["stage"], row["head"], row["system"]) for row in result["rows"]] == [
        ("feature_pass", None, "ours"),
        ("feature_pass", None, "keras_float32"),
        ("feature_pass", None, "openvino_float32"),
        ("feature_pass", None, "torch_compile_float32"),
        ("frozen_epoch", "flatten", "ours"),
        ("frozen_epoch", "flatten", "keras_float32"),
        ("frozen_epoch", "gap", "ours"),
        ("frozen_epoch", "gap", "keras_float32"),
        ("finetune_epoch", "flatten", "ours"),
        ("finetune_epoch", "flatten", "keras_float32"),
        ("frozen_phase", "flatten", "ours"),
        ("frozen_phase", "flatten", "keras_float32"),
        ("frozen_phase", "gap", "ours"),
        ("frozen_phase", "gap", "keras_float32"),
    ]
    torch = row_of(result, "feature_pass", "torch_compile_float32")
    assert torch["rounds"] == [15.0, 14.0, 16.0]
    assert (torch["images_per_second"], torch["ratio"]) == (15.0, 1.5)
    assert torch["spread"] == pytest.approx(2 / 15)
    assert (torch["peak_mb"], torch["anonymous_mb"], torch["cosine"]) == (2.0, 1.0, 1.0)
    assert torch["seconds"] == 4000.0
    assert [row["batch_size"] for row in result["rows"]] == [128] * 4 + [256] * 4 + [64] * 2 + [
        None
    ] * 4
    # 2 cores x 2000 MHz x 32 FLOP = 128 GFLOP/s; an image of 1000 multiplications is 2000 FLOP
    assert result["machine"]["flop_per_second_arithmetic"] == {"float32": 1.28e11, "bfloat16": None}
    assert result["machine"]["flop_per_second_reached"] == {"float32": 6.4e10, "bfloat16": None}
    assert torch["percent_of_bound"] == pytest.approx(100 * 15 * 2000 / 1.28e11)
    assert torch["percent_of_reached"] == pytest.approx(100 * 15 * 2000 / 6.4e10)
    # 60,000 / 20 once and 60,000 / 600 ten times; 60,000 / 8 ten times
    ours = row_of(result, "frozen_phase", "ours", "flatten")
    keras = row_of(result, "frozen_phase", "keras_float32", "flatten")
    assert (ours["seconds"], keras["seconds"]) == (4000.0, 75000.0)
    assert ours["images_per_second"] == 150.0
    assert ours["ratio"] == pytest.approx(18.75)
    assert ours["percent_of_bound"] == pytest.approx(
        100 * (60_000 * 2000 + 600_000 * 2 * (50 + 0.9 * 60)) / 1.28e11 / 4000
    )
    assert row_of(result, "frozen_phase", "ours", "gap")["seconds"] == 3100.0
    assert steps[-1] == (64, 64)


MACHINE = {
    "processor": "Test",
    "cores": 2,
    "features": ["avx2"],
    "memory_bytes": 2**34,
    "system": "Linux",
}


def test_systems_take_turns_and_sizes_follow_their_speed(tmp_path: Path) -> None:
    rates = {**RATES, "plain_keras/finetune_epoch/flatten": [0.2]}
    run_fake(tmp_path, replace(SETTINGS, tasks=(FINETUNE,)), rates=rates)
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    asked = [(name.split("/")[0], word) for name, word in log]
    # A unit of ten images at 12 a second: 12 of them take 10 s. The first measurement compiles, so
    # the size follows the second, also where the least takes 50 s; that one is a round by then.
    assert asked == [
        ("ours", "outputs"), ("plain_keras", "outputs"),
        ("ours", "measure1"), ("ours", "measure1"),
        ("plain_keras", "measure1"), ("plain_keras", "measure1"),
        *[("ours", "measure12"), ("plain_keras", "measure1")] * 2, ("ours", "measure12"),
    ]  # fmt: skip


def test_a_fast_system_is_not_asked_for_more_than_the_disk_takes(tmp_path: Path) -> None:
    rates = {**RATES, "ours/frozen_epoch/gap": [1e6]}
    run_fake(tmp_path, replace(SETTINGS, tasks=(GAP,)), rates=rates)
    assert "ours/frozen_epoch/gap measure819\n" in (tmp_path / "log").read_text()


def test_a_worker_that_dies_costs_its_row_alone(tmp_path: Path) -> None:
    result = run_fake(
        tmp_path,
        replace(SETTINGS, tasks=(PASS, GAP)),
        dies={"plain_keras/feature_pass/None": 4, "ours/frozen_epoch/gap": 1},
    )
    died = row_of(result, "feature_pass", "keras_float32")
    assert died["images_per_second"] is None
    assert died["reason"] == (
        "the worker ended (killed by SIGKILL, perhaps for want of memory); its last line: "
        "last words"
    )
    ours = row_of(result, "feature_pass", "ours")
    assert (ours["images_per_second"], ours["ratio"], ours["cosine"]) == (20.0, None, None)
    phase = row_of(result, "frozen_phase", "ours", "gap")
    assert phase["reason"].startswith("frozen_epoch: the worker ended")
    assert row_of(result, "frozen_phase", "keras_float32", "gap")["ratio"] == 1.0
    assert "not measured: the worker ended" in format_result(result, 120)


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    failed = {"with_openvino/feature_pass/None": "openvino is not installed: pip"}
    result = run_fake(tmp_path, replace(SETTINGS, tasks=(PASS,)), failed=failed)
    # Its precision is the processor's.
    (name,) = {row["system"] for row in result["rows"] if row["system"].startswith("openvino_")}
    row = row_of(result, "feature_pass", name)
    assert row["reason"] == "openvino is not installed: pip"
    assert row_of(result, "feature_pass", "torch_compile_float32")["ratio"] == 1.5


def test_a_gpu_is_held_against_its_fastest_product_alone(tmp_path: Path) -> None:
    facts = {**FACTS, "gpus": ["Fast"], "precision": "bfloat16"}
    rates = {**RATES, "plain_keras/feature_pass/None": [10.0]}
    settings = replace(SETTINGS, tasks=(PASS,))
    result = run_fake(tmp_path, settings, facts=facts, rates=rates, probe={"plain_keras": 1e6})
    assert result["machine"]["flop_per_second_arithmetic"] == {"float32": None, "bfloat16": None}
    row = row_of(result, "feature_pass", "keras_bfloat16")
    assert (row["percent_of_bound"], row["percent_of_reached"]) == (None, 2.0)
    text = format_result(result, 80)
    assert "not known for this machine" in text
    assert "LEFT OUT" not in text


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    failed = dict.fromkeys(RATES, "no such thing")
    with pytest.raises(BenchError, match="nothing could be measured: no such thing"):
        run_fake(tmp_path, failed=failed)
    with pytest.raises(BenchError, match=r"weights were not made: the worker ended \(exit code 1"):
        run_benchmark(
            SETTINGS,
            tmp_path,
            say=lambda line: None,
            show=lambda done, total: None,
            command=(sys.executable, "-c", "raise SystemExit(1)"),
        )


def test_a_fast_wrong_answer_is_no_answer(tmp_path: Path) -> None:
    name = "with_torch/feature_pass/None"
    result = run_fake(tmp_path, replace(SETTINGS, tasks=(PASS,)), wrong_ones=[name])
    row = row_of(result, "feature_pass", "torch_compile_float32")
    assert row["images_per_second"] is None
    assert row["reason"].startswith("computes something else than keras_float32: cosine ")


@pytest.mark.parametrize("package", ["openvino", "torch"])
def test_a_package_that_is_not_installed_is_named(package: str, tmp_path: Path) -> None:
    kind = {"openvino": "with_openvino", "torch": "with_torch"}[package]
    # None stands for a module that cannot be imported.
    script = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from fmnist_tf.benchmark.worker import main; sys.exit(main())"
    )
    job = replace(JOB, kind=kind, folder=str(tmp_path))
    with running(job, (sys.executable, "-c", script)) as worker:
        with pytest.raises(WorkerError, match=f"^{package} is not installed: pip install"):
            worker.receive()


JOB = Job(
    kind="prepare",
    precision="float32",
    stage="feature_pass",
    head=None,
    batch_size=32,
    image_size=16,
    backbone="toy",
    folder="",
)


def test_bfloat16_is_measured_where_it_is_fast() -> None:
    def names(precision: str, *features: str) -> list[str]:
        return [system.name for system in plan_systems(precision, features)]

    assert names("float32", "avx2") == [
        "ours", "keras_float32", "openvino_float32", "torch_compile_float32",
    ]  # fmt: skip
    assert names("bfloat16", "avx2", "amx_bf16") == [
        "ours", "keras_float32", "keras_bfloat16", "openvino_bf16", "torch_compile_bf16",
    ]  # fmt: skip
    # A GPU does bfloat16; the processor, where OpenVINO runs, does not.
    assert names("bfloat16", "avx512f")[3:] == ["openvino_float32", "torch_compile_bf16"]


@pytest.mark.parametrize(
    ("features", "float32", "bfloat16"),
    [
        ((), None, None),
        (("avx2",), 32, None),
        (("avx2", "avx512f", "avx512_bf16"), 64, 128),
        (("avx2", "avx512f", "avx512_bf16", "amx_bf16"), 64, 1024),
    ],
)
def test_flop_per_cycle(features, float32, bfloat16) -> None:
    assert bounds.flop_per_cycle(features, "float32") == float32
    assert bounds.flop_per_cycle(features, "bfloat16") == bfloat16


def test_hyper_threads_share_a_core(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert bounds.count_physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert bounds.count_physical_cores({1, 2}, tmp_path) == 2
    assert bounds.count_physical_cores({7, 8}, tmp_path) == 2  # nothing is told of these


def test_products_grow_until_one_is_long_enough() -> None:
    ran: list[bounds.MatMul | bounds.Conv] = []

    def build(product):
        def run() -> None:
            ran.append(product)
            time.sleep(0.06 if product == bounds.MatMul(4096) else 0.001)

        return run

    best = bounds.find_fastest(build)
    assert bounds.MatMul(4096) in ran
    assert bounds.MatMul(8192) not in ran
    assert bounds.MatMul(4096).flop == 2 * 4096**3
    conv = bounds.Conv(256, 28, 128, 128, 3)
    assert conv.flop == 2 * 256 * 28**2 * 128 * 128 * 9
    assert conv in ran
    fastest = max(2 * 4096**3 / 0.06, max(p.flop for p in ran if isinstance(p, bounds.Conv)) / 1e-3)
    assert 0.3 * fastest < best <= fastest


def test_outputs_are_compared_beyond_their_mean() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(5, 0.1, (8, 20))
    assert compare_outputs(expected, expected) == 1.0
    assert compare_outputs(expected + 1e-6, expected) > 0.9999
    # Plain cosines would all be above 0.99.
    assert compare_outputs(expected[::-1], expected) < 0.5
    one_off = expected.copy()
    one_off[3] = expected[2]
    assert compare_outputs(one_off, expected) < 0.9
    assert np.isnan(compare_outputs(np.full((8, 20), np.nan), expected))


def test_an_output_of_nothing_but_nan_is_no_answer() -> None:
    keras, ours = (system for system in reversed(plan_systems("float32", ())[:2]))
    expected = np.random.default_rng(0).normal(size=(4, 3))
    facts = {"precision": "float32", "batch_size": 1}
    rows = compose_rows(
        [
            Measurement(keras, PASS, (1.0,), facts=facts, outputs=expected),
            Measurement(ours, PASS, (2.0,), facts=facts, outputs=expected * np.nan),
        ],
        COUNTS, {}, {},
    )  # fmt: skip
    assert [row["ratio"] for row in rows] == [1.0, None]
    assert rows[0]["percent_of_bound"] is None
    assert rows[1]["reason"].endswith("cosine nan")


def test_flop_of_a_task() -> None:
    ours, keras = plan_systems("float32", ())[:2]
    assert count_flop(ours, PASS, COUNTS) == count_flop(keras, PASS, COUNTS) == 2000
    assert count_flop(ours, FINETUNE, COUNTS) == 2 * (250 + 0.9 * 400)
    assert count_flop(keras, FINETUNE, COUNTS) == 2 * (800 + 250 + 0.9 * 400)


def test_a_short_epoch_validates_one_image_for_nine() -> None:
    train, val = plan_epoch(9, 64)
    assert (len(train), len(val)) == (576, 64)
    assert (train.min(), train.max()) == (0, 255)
    assert [len(rows) for rows in plan_epoch(1, 256)] == [256, 28]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "."], "--json .: expected the name of a file, found a folder"),
        (["--json", "/dev/null"], "--json /dev/null: expected the name of a file, found a device"),
        (["--image-size", "31"], "--image-size 31: expected a whole number from 32 to 1024"),
        (["--image-size", "1025"], "--image-size 1025: expected a whole number from 32"),
    ],
)
def test_wrong_flags_are_said_before_the_work(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fmnist_tf.benchmark.suite.run_benchmark", lambda *_, **__: 1 / 0)
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(message)


def test_the_command_prints_tables_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fmnist_tf.benchmark.suite.run_benchmark",
        functools.partial(run_benchmark, command=fake(tmp_path)),
    )
    assert main(["--quick", "--json", "x.json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(Path("x.json").read_text())
    assert printed.out == format_result(result, 80) + "\n"
    assert re.search(r"for the deepest stage at\s+60,000 images", printed.out)
    assert result["settings"]["quick"] is True
    assert result["settings"]["image_size"] == 64
    assert max(map(len, printed.out.splitlines())) <= 80
    cells = [line.split() for line in printed.out.splitlines()]
    ours = next(line for line in cells if line[:3] == ["ours", "(float32)", "600"])
    assert ours[3:8] == ["0", "75.0x", "1.7", "min", "2"]
    assert "seconds = 60,000 / feature_pass's rate + 10 x 60,000 /" in printed.out
    assert printed.out.splitlines()[-1] == (
        "frozen phase, flatten head: ours 66.7 min, keras_float32 20.8 h (18.8x)"
    )
    assert {row["head"] for row in result["rows"]} == {None, "flatten"}
    assert "LEFT OUT: all bfloat16 systems (the processor has no bfloat16 units)" in printed.out
    assert "QUICK: at 64 pixels" in printed.out
    assert "NOISY" not in printed.out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.9, "99.9 s"), (100, "1.7 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_help_is_instant() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fmnist_tf.bench", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras", "numpy", "torch", "openvino", "json"}
    assert "--image-size" in answer.stdout


def test_the_parent_imports_no_framework() -> None:
    script = (
        "import sys, fmnist_tf.benchmark.suite, fmnist_tf.benchmark.table\n"
        "print([m for m in ('tensorflow', 'keras', 'torch', 'openvino') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def test_a_full_disk_does_not_cost_the_result(tmp_path, monkeypatch, capsys) -> None:
    def fail(path: Path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fmnist_tf.benchmark.suite.run_benchmark",
        functools.partial(run_benchmark, command=fake(tmp_path)),
    )
    monkeypatch.setattr("fmnist_tf.bench.write_atomically", fail)
    assert main(["--quick", "--json", "x.json"]) == 74
    assert "seconds = 60,000 / feature_pass's rate" in capsys.readouterr().out


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A zombie waits for nobody but its parent.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_and_no_file(number, tmp_path: Path) -> None:
    if not Path("/proc/self/stat").is_file():
        pytest.skip("processes are looked up in /proc")
    script = (
        "import functools, json, sys\n"
        "from fmnist_tf import bench\n"
        "from fmnist_tf.benchmark import suite\n"
        "suite.run_benchmark = functools.partial(suite.run_benchmark, command=sys.argv[1:])\n"
        "sys.exit(bench.main(['--quick', '--json', 'x.json']))"
    )
    command = [sys.executable, "-c", script, *fake(tmp_path, hangs="plain_keras/feature_pass/None")]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "log"
    assert wait_until(lambda: log.is_file() and "pids" in log.read_text())
    pids = [int(word) for word in log.read_text().split("pids ")[1].split()[:2]]
    assert all(map(is_alive, pids))
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert out == ""
    assert (
        err.splitlines()[-1] == f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}"
    )
    assert wait_until(lambda: not any(map(is_alive, pids)))
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "x.json").exists()


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_worker_outlives_no_parent(state: str, tmp_path: Path) -> None:
    if not Path("/proc/self/stat").is_file():
        pytest.skip("processes are looked up in /proc")
    stage = {
        "busy": "time.sleep(100)",
        # What a library prints is no answer.
        "idle": "print('noise', flush=True) or types.SimpleNamespace(facts={})",
    }[state]
    worker = (
        "import sys, time, types\n"
        "slow = sys.modules['fmnist_tf.benchmark.slow'] = types.ModuleType('slow')\n"
        f"slow.open_stage = lambda job: {stage}\n"
        "from fmnist_tf.benchmark.worker import main\n"
        "main()\n"
    )
    job = replace(JOB, kind="slow", folder=str(tmp_path))
    script = (
        "import os, sys, time\n"
        "from fmnist_tf.benchmark.plan import Job\n"
        "from fmnist_tf.benchmark.workers import running\n"
        f"with running({job!r}, (sys.executable, '-c', {worker!r})) as worker:\n"
        f"    worker.receive() if {state == 'idle'} else time.sleep(1)\n"
        "    print(worker._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.stdout, answer.stderr
    assert wait_until(lambda: not is_alive(int(answer.stdout)))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("ours", ["tensorflow", "fmnist_tf.benchmark.ours"]),
        ("plain_keras", ["tensorflow", "fmnist_tf.benchmark.plain_keras"]),
        ("with_openvino", ["fmnist_tf.benchmark.with_openvino"]),
    ],
)
def test_workers_compute_with_the_kernels_that_runs_have(kind, calls, monkeypatch) -> None:
    """TensorFlow leaves oneDNN off on many processors; `import_tensorflow` turns it on."""
    called = []
    fake = types.SimpleNamespace(open_stage=lambda job: None)
    monkeypatch.setattr(worker_module, "import_tensorflow", lambda: called.append("tensorflow"))
    monkeypatch.setattr(
        worker_module.importlib, "import_module", lambda n: called.append(n) or fake
    )
    worker_module.open_stage(replace(JOB, kind=kind))
    assert called == calls


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """The common files of the toy network, in their folder, and the facts."""
    from toy import build_toy_spec

    from fmnist_tf.benchmark import prepare
    from fmnist_tf.model.backbones import BACKBONES

    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", build_toy_spec())
        facts = prepare.open_stage(replace(JOB, folder=str(folder))).facts
        yield folder, facts


@pytest.mark.parametrize("task", [PASS, FINETUNE], ids=lambda task: task.stage)
def test_ours_and_plain_keras_compute_the_same(prepared, task: Task) -> None:
    from fmnist_tf.benchmark.worker import open_stage

    folder, _ = prepared
    outputs = {}
    for kind in ("plain_keras", "ours"):
        job = Job(kind, "float32", task.stage, task.head, 16, 16, "toy", str(folder))
        stage = open_stage(job)
        assert stage.facts["precision"] == "float32"
        outputs[kind] = np.asarray(stage.outputs(), np.float32)
        assert len(outputs[kind]) == N_CHECKED
        batch_size = stage.facts["batch_size"]
        if task.head:
            assert stage.measure(2) == 2 * batch_size + round(2 * batch_size / 9)
        else:
            assert stage.measure(2) % (2 * batch_size) == 0
        if task.head:
            moved = np.asarray(stage.outputs(), np.float32)
            assert np.abs(moved - outputs[kind]).max() > 1e-6
    if task.head:
        outputs = {kind: np.log(np.maximum(x, 1e-30)) for kind, x in outputs.items()}
    assert compare_outputs(outputs["ours"], outputs["plain_keras"]) > 0.99


def test_plain_keras_trains_what_ours_trains(toy_spec) -> None:
    from fmnist_tf.benchmark.plain_keras import build_classifier

    def shapes(finetune: bool) -> list[tuple[int, ...]]:
        network = toy_spec.build(16)
        model = build_classifier(network, toy_spec, 16, "gap", finetune=finetune)
        return [tuple(weight.shape) for weight in model.trainable_weights]

    head = [(8, 512), (512,), (512, 10), (10,)]
    assert shapes(finetune=False) == head
    # BatchNorm stands still
    assert sorted(shapes(finetune=True)) == sorted([(1, 1, 4, 8), (8,), (3, 3, 4, 8), (8,), *head])


def test_multiplications_of_the_toy(prepared) -> None:
    _, facts = prepared
    # 16 pixels: the stem at 8x8 with 3x3x3x4, two of the deep stage at 8x8 with 1x1x4x8 and
    # 3x3x4x8, both of which read the stem; then 4x4x8 into the head of 512 and 10.
    stem, deep = 64 * 3 * 3 * 3 * 4, 64 * (4 * 8 + 9 * 4 * 8)
    hidden, output = 4 * 4 * 8 * 512, 512 * 10
    assert facts["multiplications"] == {
        "feature_pass": {"frozen": stem + deep, "trained": 0, "backward": 0},
        "flatten": {
            "frozen": stem + deep, "trained": hidden + output, "backward": hidden + 2 * output,
        },
        "gap": {
            "frozen": stem + deep,
            "trained": 8 * 512 + output,
            "backward": 8 * 512 + 2 * output,
        },
        "finetune": {
            "frozen": stem,
            "trained": deep + hidden + output,
            "backward": deep + 2 * (hidden + output),
        },
    }  # fmt: skip


def test_mixed_bfloat16_is_keras_own_policy(prepared) -> None:
    import keras

    from fmnist_tf.benchmark.worker import open_stage

    folder, _ = prepared
    try:
        job = Job("plain_keras", "bfloat16", "frozen_epoch", "gap", 16, 16, "toy", str(folder))
        stage = open_stage(job)
        assert stage.outputs().shape == (N_CHECKED, 10)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_the_whole_way_with_a_toy(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from toy import build_toy_spec\n"
        "from fmnist_tf.benchmark.worker import main\n"
        "from fmnist_tf.model.backbones import BACKBONES\n"
        "BACKBONES['toy'] = build_toy_spec()\n"
        "sys.exit(main())"
    )
    settings = Settings(True, 16, rounds=2, round_seconds=0.1, tasks=(GAP,), backbone="toy")
    result = run_benchmark(
        settings,
        tmp_path,
        say=lambda line: None,
        show=lambda done, total: None,
        command=(sys.executable, "-c", script, str(Path(__file__).parent)),
    )
    ours, keras = (
        row_of(result, "frozen_epoch", name, "gap") for name in ("ours", "keras_float32")
    )
    assert (ours["reason"], keras["reason"]) == (None, None)
    assert ours["cosine"] > LEAST_COSINE[ours["precision"]]
    assert keras["cosine"] == 1.0
    assert ours["ratio"] == ours["images_per_second"] / keras["images_per_second"]
    assert len(ours["rounds"]) == 2
    assert 50 < ours["peak_mb"] < 20_000
    assert not list(tmp_path.glob("outputs-*"))
    assert format_result(result, 80)


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    started = time.monotonic()
    target = tmp_path / "x.json"
    command = [sys.executable, "-m", "fmnist_tf.bench", "--quick", "--json", str(target)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    print(answer.stdout)
    print(f"{time.monotonic() - started:.0f} s")
    rows = json.loads(target.read_text())["rows"]
    for row in rows:
        if row["reason"] is not None:
            assert "is not installed" in row["reason"]
        elif row["cosine"] is not None:
            assert row["cosine"] > LEAST_COSINE[row["precision"]]
        if row["system"] == "ours":
            assert row["ratio"] > (5 if row["stage"] == "frozen_phase" else 0.5)
