"""The worker's side: one process that measures one stage of one system when it is asked to.

In: JSON lines on stdin: first a `Job`, then `{"ask": "outputs" | "measure" | "probe", ...}`. Out:
one JSON line each on what was stdout; anything else that is printed goes to stderr. It ends with
its stdin or its parent. This module must not know what the answers are for.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmnist_tf.benchmark.bounds import read_clock_mhz
from fmnist_tf.benchmark.plan import Job, Measurable
from fmnist_tf.errors import printable
from fmnist_tf.system.cpu import usable_cpus
from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes
from fmnist_tf.system.startup import import_tensorflow

TENSORFLOW = ("prepare", "ours", "plain_keras")  # kinds that compute with it
SAMPLE_SECONDS = 0.5  # /proc/cpuinfo is long on a large machine


def open_stage(job: Job) -> Measurable:
    """Return the stage that the job names, ready to be measured.

    Raises:
        ModuleNotFoundError: the system's package is not installed.
    """
    if job.kind in TENSORFLOW:
        import_tensorflow()  # first: what it sets cannot be set later
    module = importlib.import_module(f"fmnist_tf.benchmark.{job.kind}")
    stage: Measurable = module.open_stage(job)
    return stage


class ClockWatch:
    """A thread that looks at the clock while something is measured: idle, it would be slower.

    Attributes:
        clocks_mhz: of the busiest CPU, in the last measurement.
    """

    def __init__(self) -> None:
        self.clocks_mhz: list[float] = []
        self._cpus = usable_cpus()
        self._busy = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look while the block inside runs."""
        self.clocks_mhz.clear()
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()

    def _look(self) -> None:
        while self._busy.wait():
            clock = read_clock_mhz(self._cpus)
            self.clocks_mhz += [] if clock is None else [clock]
            time.sleep(SAMPLE_SECONDS)


def end_with_parent() -> None:
    """Watch the parent; when it is gone, end this process and whatever it has started.

    The end of stdin says so too, but only between two requests.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpid(), signal.SIGKILL)  # it leads the group it was started in


def serve(requests: Any, answer: Callable[..., None]) -> None:
    """Do what the lines of `requests` ask, until they end.

    Args:
        requests: JSON lines, the job first.
        answer: takes the answer's values by name.
    """
    import numpy as np

    clock, memory = ClockWatch(), MemoryWatch()
    job = Job(**json.loads(next(requests)))
    stage = open_stage(job)
    answer(facts=stage.facts)
    for line in requests:
        request = json.loads(line)
        if request["ask"] == "outputs":
            path = Path(job.folder) / f"outputs-{os.getpid()}.npy"
            np.save(path, np.asarray(stage.outputs(), np.float32))
            answer(path=str(path))
        elif request["ask"] == "measure":
            with clock.looking():
                started = time.perf_counter()
                images = stage.measure(request["units"])
                seconds = time.perf_counter() - started
            answer(
                images=images,
                seconds=seconds,
                peak_bytes=peak_memory_bytes(),
                anonymous_bytes=memory.peak_anonymous_bytes,
                clock_mhz=statistics.median(clock.clocks_mhz) if clock.clocks_mhz else None,
            )
        else:
            answer(flop_per_second=stage.probe())


def main() -> int:
    """Serve stdin until it ends; return the exit code."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    # Libraries print to stdout as they like; the parent wants answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        serve(sys.stdin, answer)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        answer(failed=f"{package} is not installed: pip install -e '.[bench]'")
    except Exception as error:
        reason = printable(" ".join(str(error).split()), 300)
        answer(failed=f"{type(error).__name__}: {reason}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
