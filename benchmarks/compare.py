"""Two checkouts, timed in turn by their command lines: is one slower than the other?

    python -m benchmarks.compare OLD NEW [--rounds 3]

Each round trains a frozen and a finetune ResNet50 at 64 pixels on 3,000 random images in each
checkout, reads a CSV of 60,000 rows for the second time, and prints a `--help`. The table gives
medians over the rounds and old / new, so that more than 1 means that NEW is faster. Flags and files
are those that both checkouts must have. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STAGES = (
    "backbone features",
    "epoch of the head",
    "finetune epoch",
    "second read of a CSV",
    "--help",
)


def write_csv(path: Path, n_rows: int) -> None:
    """Write random images of ten classes."""
    rng = np.random.default_rng(0)
    rows = np.hstack([np.arange(n_rows)[:, None] % 10, rng.integers(0, 256, (n_rows, 784))])
    header = ",".join(["label", *(f"pixel{k}" for k in range(1, 785))])
    np.savetxt(path, rows, fmt="%d", delimiter=",", header=header, comments="")


def run(checkout: Path, folder: Path, *words: str) -> None:
    """Run one command of a checkout, in `folder`."""
    subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def read_epochs(run_dir: Path) -> float:
    """Return the median seconds of a run's epochs but the first, which traces the graph."""
    with (run_dir / "history.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["epoch"]) > 1]
    return statistics.median(float(row["seconds"]) for row in rows)


def read_seconds(run_dir: Path, stage: str) -> float:
    """Return the seconds of a stage, as the run recorded them."""
    return float(json.loads((run_dir / "provenance.json").read_text())["seconds"][stage])


def measure(checkout: Path, data: Path, folder: Path) -> list[float]:
    """Return the seconds of each of `STAGES`, once."""
    train = ("fmnist_tf.train", "--wandb", "disabled", "--test-data", str(data / "test.csv"))
    small = (*train, "--data", str(data / "train.csv"))
    network = ("--weights", "random", "--image-size", "64")
    run(checkout, folder, *small, *network, "--run", "frozen", "--epochs", "4")
    finetune = ("--phase", "finetune", "--from", "frozen", "--epochs", "3")
    run(checkout, folder, *small, *finetune, "--run", "finetune")
    large = (*train, "--data", str(data / "large.csv"), "--recipe", "mlp", "--epochs", "1")
    for name in ("first", "second"):
        run(checkout, folder, *large, "--limit", "1000", "--run", name)
    started = time.perf_counter()
    run(checkout, folder, "fmnist_tf.train", "--help")
    seconds_of_help = time.perf_counter() - started
    runs = folder / "runs"
    return [
        read_seconds(runs / "frozen", "features"),
        read_epochs(runs / "frozen"),
        read_epochs(runs / "finetune"),
        read_seconds(runs / "second", "data"),
        seconds_of_help,
    ]


def main() -> None:
    """Measure both checkouts in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    flags = parser.parse_args()
    found: dict[Path, list[list[float]]] = {flags.old: [], flags.new: []}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        for file, n_rows in (("train.csv", 3000), ("test.csv", 200), ("large.csv", 60_000)):
            write_csv(data / file, n_rows)
        for number in range(flags.rounds):
            order = list(found) if number % 2 == 0 else list(found)[::-1]
            for checkout in order:
                with tempfile.TemporaryDirectory(dir=data) as folder:
                    found[checkout].append(measure(checkout, data, Path(folder)))
    print(f"{'stage':22}{'old, s':>10}{'new, s':>10}{'old / new':>12}")
    medians = [
        [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]
        for rounds in found.values()
    ]
    for stage, old, new in zip(STAGES, *medians, strict=True):
        print(f"{stage:22}{old:10.3f}{new:10.3f}{old / new:12.2f}")


if __name__ == "__main__":
    main()
