"""Run the toy's training in processes that are killed, or whose disk fails, at a chosen moment.

As a program it imports TensorFlow once, then reads one JSON job a line and forks a process for
each, which is a real process to the kernel, and prints its exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "remove")


class Killer:
    """A program of this module, as a test uses it.

    Attributes:
        folder: where the processes work.
        seconds: of the undisturbed runs.
        calls: file-system calls of the undisturbed runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env=environment,
        )

    def run(self, *words: str, log: str | None = "log", **when: Any) -> tuple[int, float, int]:
        """Train with these words; return the exit code, seconds and the file-system calls.

        Args:
            words: of the command.
            log: file for stderr and stdout; None: a pipe that nobody reads.
            when: `after=SECONDS`, then `every=SECONDS`, or `at_call=N`, counted from 1; and what
                happens then: `number=SIGNAL`; `error=ERRNO` for this call; or `full=BYTES`, which
                are left in `runs` from then on, as a file `runs/ballast` takes the others.
        """
        job = {"words": words, "log": log, "number": signal.SIGKILL, **when}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["seconds"], answer["calls"]

    def begin(self, name: str, *words: str) -> None:
        """Train an undisturbed run and note its seconds."""
        code, self.seconds[name], self.calls[name] = self.run(*words, "--run", name)
        assert code == 0, self.log

    @property
    def log(self) -> str:
        """What the last process printed."""
        return (self.folder / "log").read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _count_calls(counter: int, act: Callable[[int, Any], None]) -> None:
    """Call `act` before each call that changes the file system; write their number to a file."""
    n_calls = 0

    def watch(original: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            os.pwrite(counter, f"{n_calls:9}".encode(), 0)
            act(n_calls, given[0])
            return original(*given, **named)

        return call

    for name in CALLS:
        setattr(os, name, watch(getattr(os, name)))


def _work(job: dict[str, Any], counter: int) -> int:
    from fmnist_tf.train import main

    if job["log"] is None:
        unread, log = os.pipe()
        os.close(unread)
    else:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(log, number)
        setattr(sys, name, os.fdopen(number, "w", closefd=False))

    if job["number"] != signal.SIGKILL:  # what is started in the background ignores SIGINT
        signal.signal(job["number"], signal.SIG_DFL)

    def kill() -> None:
        os.kill(os.getpid(), job["number"])

    def act(call: int, what: Any) -> None:
        if call != job.get("at_call"):
            return
        if "error" in job:
            name = None if isinstance(what, int) else what
            raise OSError(job["error"], os.strerror(job["error"]), name)
        if "full" in job:
            free = shutil.disk_usage("runs").free - job["full"]
            with open("runs/ballast", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(free, 1))
        else:
            kill()

    _count_calls(counter, act)

    def wait_and_kill() -> None:
        time.sleep(job["after"])
        kill()
        while job.get("every"):
            time.sleep(job["every"])
            kill()

    if job.get("after") is not None:
        threading.Thread(target=wait_and_kill, daemon=True).start()
    return main(job["words"])


def _serve() -> None:
    from matplotlib.figure import Figure
    from toy import build_toy_spec, save_no_figure

    # As `import_tensorflow` has them. No operation runs before a fork: its threads would be lost.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    # What each process would import, and collect as garbage, by itself.
    for name in ("fmnist_tf.pipeline.fit", "fmnist_tf.pipeline.finish", "sklearn.decomposition"):
        importlib.import_module(name)
    gc.freeze()
    from fmnist_tf.model.backbones import BACKBONES

    BACKBONES["toy"], Figure.savefig = build_toy_spec(), save_no_figure
    counter = os.memfd_create("calls")
    for line in sys.stdin:
        job = json.loads(line)
        os.ftruncate(counter, 0)
        started = time.monotonic()
        if (child := os.fork()) == 0:
            code = 70
            try:
                code = _work(job, counter)
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        calls = int(os.pread(counter, 20, 0) or 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
            "calls": calls,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
