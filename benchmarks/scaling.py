"""`python -m benchmarks.scaling`: what several workers are worth here, and what more rows cost.

Constants are measured in short runs of one process and in all-reduces between processes. A model
computes from them how long runs with 1, 2 and 4 workers take, and what 10^6, 10^8 and 10^10 rows
cost. The runs are then measured, through `python -m fmnist_tf.train`.

All use the same processors of this machine, at most 4. Each of W workers has a part of them to
itself, a thread for each; where there are more workers than processors, several share one. The
workers are processes on the loopback interface.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.cli.terminal import say
from fmnist_tf.errors import FmnistError
from fmnist_tf.system.startup import import_tensorflow
from fmnist_tf.training.cluster import Cluster
from fmnist_tf.training.feature_store import SHARD_ROWS

UNITS, N_CLASSES, N_MAPS, BATCH, SMALL_BATCH = 512, 10, 2048, 256, 32
N_REPEATS = 10  # of an all-reduce
HEADS = {"flatten": 7 * 7 * N_MAPS, "gap": N_MAPS}  # features of a row of ResNet50 at 224 pixels
STORAGE, PROCESSOR = 0.023, 0.04  # assumed prices, $ per GB and month, and per processor and hour


class Settings(NamedTuple):
    """Sides in pixels; rows of the runs, and of the longer of two that give the constants."""

    side: int
    n_rows: int
    n_long: int
    epochs: int
    large_side: int
    n_csv_rows: int
    workers: tuple[int, ...]


FULL = Settings(64, 2560, 1280, 5, large_side=224, n_csv_rows=20_000, workers=(1, 2, 4))
QUICK = Settings(32, 512, 512, 2, large_side=32, n_csv_rows=1000, workers=(1, 2))


class Times(NamedTuple):
    """Seconds of a run: its features, one of its steps with its part of val, reading the CSV."""

    features: float
    step: float
    csv: float = 0.0


class Costs(NamedTuple):
    """Seconds of one process: for its features and each row of them, for a step and its rows."""

    features: float
    feature_row: float
    step: float
    step_row: float


def head_bytes(n_features: int) -> int:
    """Return the bytes of a head's gradient, which an all-reduce adds up in each step."""
    return 4 * ((n_features + 1) * UNITS + (UNITS + 1) * N_CLASSES)


def find_addresses(n: int) -> list[str]:
    """Return free addresses of the loopback interface."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def find_place(n_workers: int, index: int) -> list[int]:
    """Return the processors of one worker."""
    processors = sorted(os.sched_getaffinity(0))[:4]
    each = max(len(processors) // n_workers, 1)
    first = index * each % len(processors)
    return processors[first : first + each]


def write_csv(path: Path, n_rows: int) -> None:
    """Write random images; half of a row is background, as in Fashion-MNIST."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for row in range(n_rows):
            pixels = rng.integers(1, 256, 784) * (rng.random(784) < 0.5)
            file.write(f"{row % N_CLASSES},{','.join(map(str, pixels.tolist()))}\n")


def train(
    folder: Path,
    n_workers: int,
    n_rows: int,
    batch: int,
    side: int,
    epochs: int,
    threads: int | None = None,
) -> Times:
    """Train a head on the folder's train.csv, each worker with at most so many threads, if any."""
    words = ["--data", "train.csv", "--label-column", "first", "--weights", "random", "--no-test"]
    words += ["--precision", "float32", "--runs-dir", "runs", "--run", "run", "--quiet"]
    words += ["--image-size", str(side), "--limit", str(n_rows), "--units", str(UNITS)]
    words += ["--epochs", str(epochs), "--batch-size", str(batch), "--wandb", "disabled"]
    cluster, log, processes = {"worker": find_addresses(n_workers)}, folder / "log", []
    shutil.rmtree(folder / "runs", ignore_errors=True)  # with the cached features
    with log.open("w") as file:
        for index in range(n_workers):
            task = {"type": "worker", "index": index}
            variables = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
            place = ",".join(map(str, find_place(n_workers, index)[:threads]))
            command = ["taskset", "-c", place, sys.executable, "-m", "fmnist_tf.train", *words]
            options: dict[str, Any] = {"cwd": folder, "stdout": file, "stderr": file}
            processes.append(subprocess.Popen(command, env=os.environ | variables, **options))
        if any([process.wait() for process in processes]):
            raise FmnistError(*log.read_text().splitlines()[-9:])
    seconds = json.loads((folder / "runs/run/provenance.json").read_text())["seconds"]
    with (folder / "runs/run/history.csv").open() as history:
        of_epochs = [float(row["seconds"]) for row in csv.DictReader(history)]
    step = statistics.median(of_epochs[1:] or of_epochs) / math.ceil(n_rows * 0.9 / batch)
    return Times(seconds["features"], step, seconds["data"])


def measure_costs(folder: Path, s: Settings, threads: int) -> tuple[Costs, float]:
    """Return the costs of a process with so many threads, and seconds to read a CSV row."""
    options = s.side, s.epochs, threads
    short = train(folder, 1, SHARD_ROWS, SMALL_BATCH, *options)
    long = train(folder, 1, s.n_long, BATCH, *options)
    row = (long.features - short.features) / max(s.n_long - SHARD_ROWS, 1)
    step_row = max(long.step - short.step, 0) / (BATCH - SMALL_BATCH)
    costs = Costs(long.features - row * s.n_long, row, long.step - step_row * BATCH, step_row)
    return costs, long.csv / s.n_csv_rows


def time_ring(workers: Sequence[str], index: int, n_bytes: Sequence[int], out: Any) -> None:
    """Be one worker; the chief sends the seconds of all-reduces, each with three small arrays."""
    os.sched_setaffinity(0, find_place(len(workers), index))
    cluster = Cluster(tuple(workers), index)
    import_tensorflow(lambda: cluster.start(lambda line: None))
    import tensorflow as tf

    def add_up(own: Any) -> Any:
        replica = tf.distribute.get_replica_context()
        # An argument has no device yet, which all_reduce wants; a sum has.
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, [part + 1 for part in own])

    add = tf.function(lambda own: cluster.strategy.run(add_up, (own,)), autograph=False)
    for size in n_bytes:
        values = [tf.ones(max(size // 4, 1)), *[tf.ones(8)] * 3]
        add(values)  # builds the graph
        started = time.perf_counter()
        for _ in range(N_REPEATS):
            add(values)
        cluster.wait_for_all()
        if cluster.is_chief:
            out.send((time.perf_counter() - started) / N_REPEATS)


def measure_ring(n_workers: int, n_bytes: int) -> tuple[float, float]:
    """Return the seconds of an all-reduce of nothing, and what so many bytes add to them."""
    if n_workers == 1:
        return 0.0, 0.0
    context, workers = multiprocessing.get_context("spawn"), find_addresses(n_workers)
    ours, theirs = context.Pipe()
    arguments = [(workers, index, (4, n_bytes), theirs) for index in range(n_workers)]
    processes = [context.Process(target=time_ring, args=own) for own in arguments]
    for process in processes:
        process.start()
    theirs.close()
    for process in processes:
        process.join()
    nothing, all_bytes = ours.recv(), ours.recv()
    return nothing, max(all_bytes - nothing, 0.0)


def simulate(
    costs: Costs,
    ring: tuple[float, float],
    n_workers: int,
    n_sharing: float,
    n_rows: int,
    batch: int = BATCH,
) -> Times:
    """Compute a run's times: workers claim shards, then share each batch and all-reduce.

    `n_sharing` workers take turns on each processor; `ring` is that of `measure_ring`.
    """
    free_at = [costs.features * n_sharing] * n_workers
    for first in range(0, n_rows, SHARD_ROWS):
        seconds = costs.feature_row * n_sharing * min(SHARD_ROWS, n_rows - first)
        free_at[free_at.index(min(free_at))] += seconds
    step = (costs.step + costs.step_row * batch / n_workers) * n_sharing
    return Times(max(free_at), step + sum(ring))


def measure(s: Settings, folder: Path) -> None:
    """Measure the constants, then the runs, and print the tables."""
    write_csv(folder / "train.csv", s.n_csv_rows)
    gradient = head_bytes(N_MAPS * math.ceil(s.side / 32) ** 2)
    csv_bytes = (folder / "train.csv").stat().st_size / s.n_csv_rows
    n, costs, csv_seconds = len(find_place(1, 0)), {}, 0.0
    for threads in sorted({max(n // workers, 1) for workers in s.workers}):
        say(f"constants of one process with {threads} threads")
        costs[threads], csv_seconds = c, _ = measure_costs(folder, s, threads)
        print(
            f"- {threads} threads: features {c.features:.1f} s + {1000 * c.feature_row:.2f} ms a "
            f"row; a step {1000 * c.step:.0f} ms + {1000 * c.step_row:.3f} ms a row"
        )
    say(f"constants of ResNet50 at {s.large_side} pixels")
    options = BATCH, s.large_side, 1
    few, many = (train(folder, 1, n + 128, *options).features for n in (0, SHARD_ROWS))
    row = (many - few) / SHARD_ROWS
    print(f"- ResNet50 at {s.large_side} pixels: {1000 * row:.1f} ms a row with {n} threads")
    print(f"- a row of a CSV: {csv_bytes:.0f} bytes, {1e6 * csv_seconds:.0f} us")
    lines, first = [], None
    for workers in s.workers:
        say(f"{workers} workers")
        ring, threads = measure_ring(workers, gradient), max(n // workers, 1)
        if workers > 1:
            print(
                f"- all-reduce of {workers} workers: {1000 * ring[0]:.1f} ms + "
                f"{1000 * ring[1]:.0f} ms for {gradient / 1e6:.1f} MB"
            )
        model = simulate(costs[threads], ring, workers, max(workers * threads / n, 1), s.n_rows)
        real = train(folder, workers, s.n_rows, BATCH, s.side, s.epochs)
        first = first or real
        lines.append(
            f"| {workers} x {threads} | {s.n_rows / real.features:.0f} images/s "
            f"| {real.features:.1f} | {model.features:.1f} | {model.features / real.features:.2f} "
            f"| {1000 * real.step:.0f} | {1000 * model.step:.0f} | {model.step / real.step:.2f} "
            f"| {1000 * (real.step - first.step):.0f} |"
        )
    print(
        f"\nResNet50 at {s.side} pixels, {s.n_rows:,} rows, batches of {BATCH}, {n} threads in "
        f"all, {gradient / 1e6:.1f} MB of gradient\n\n| workers x threads | features "
        "| features, s | simulated | ratio | step, ms | simulated | ratio | engine, ms |",
        "|---" * 9 + "|",
        *lines,
        sep="\n",
    )
    print(
        f"\nMore rows, by one such machine, ResNet50 at {s.large_side} pixels\n\n| rows | CSV, GB "
        "| reading, h | features, h | store, GB: flatten | gap | order, GB |",
        "|---" * 7 + "|",
        *(
            f"| 10^{power} | {10**power * csv_bytes / 1e9:,.0f} "
            f"| {10**power * csv_seconds / 3600:,.2f} | {10**power * row / 3600:,.0f} "
            f"| {2e-9 * 10**power * HEADS['flatten']:,.0f} "
            f"| {2e-9 * 10**power * HEADS['gap']:,.0f} | {8e-9 * 10**power:,.2f} |"
            for power in (6, 8, 10)
        ),
        "",
        sep="\n",
    )
    for head, f in HEADS.items():
        passes = 2e-9 * f * STORAGE / (row * n * PROCESSOR / 3600)
        print(
            f"- head {head}: {2 * f:,} bytes a row, {head_bytes(f) / 1e6:,.1f} MB of gradient a "
            f"step; {2e-6 * f / row:,.2f} MB/s from the store keep up; storing costs less than "
            f"computing from {passes:.2g} passes a month on"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="Measure runs with 1, 2 and 4 workers on this machine, compare them with a "
        "model, and compute with it what more rows cost.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="1 and 2 workers, fewer rows")
    add_terminal_flags(parser)
    return run_command(_run, parser.parse_args(argv))


def _run(flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="fmnist_tf-scaling-") as folder:
        measure(QUICK if flags.quick else FULL, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
