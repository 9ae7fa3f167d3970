"""The benchmark of several workers: its model of a run, and a small run of all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import Costs, head_bytes, simulate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("n_workers", "n_sharing", "features", "step"),
    [(1, 1.0, 1 + 5 * 2.56, 0.2 + 2.56), (2, 1.0, 1 + 3 * 2.56, 0.2 + 1.28 + 0.3),
     (4, 2.0, 2 + 2 * 5.12, 2 * (0.2 + 0.64) + 0.3)],
)  # fmt: skip
def test_workers_claim_shards_and_share_each_batch(
    n_workers: int, n_sharing: float, features: float, step: float
) -> None:
    ring = (0.1, 0.2) if n_workers > 1 else (0.0, 0.0)
    times = simulate(Costs(1.0, 0.01, 0.2, 0.01), ring, n_workers, n_sharing, 5 * 256)
    assert times.features == pytest.approx(features)
    assert times.step == pytest.approx(step)


def test_the_gradient_of_a_head_has_its_weights_and_biases() -> None:
    assert head_bytes(2048) == 4 * (2048 * 512 + 512 + 512 * 10 + 10)


def test_its_constants_explain_runs_that_follow_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs, ring = Costs(1.0, 0.01, 0.2, 0.001), (0.1, 0.2)

    def train(folder, n_workers, n_rows, batch, side, epochs, threads=9) -> scaling.Times:
        n_sharing = max(n_workers / len(scaling.find_place(1, 0)), 1.0)
        own_ring = ring if n_workers > 1 else (0.0, 0.0)
        return simulate(costs, own_ring, n_workers, n_sharing, n_rows, batch)

    monkeypatch.setattr(scaling, "train", train)
    monkeypatch.setattr(scaling, "measure_ring", lambda n, size: ring if n > 1 else (0.0, 0.0))
    scaling.measure(scaling.FULL._replace(n_csv_rows=10), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    runs = [line.split(" | ") for line in lines if " images/s |" in line]
    assert [cells[0][:3] for cells in runs] == ["| 1", "| 2", "| 4"]
    assert {cells[n] for cells in runs for n in (4, 7)} == {"1.00"}


@pytest.mark.slow
def test_it_measures_and_simulates_two_workers() -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for line in (
        "- all-reduce of 2 workers: ",
        "| 1 x ",
        "| 2 x 1 |",
        "| 10^10 | ",
        "- head gap: ",
    ):
        assert f"\n{line}" in answer.stdout
