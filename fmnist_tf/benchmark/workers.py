"""The parent's side: worker processes that are asked one thing at a time and leave nothing behind.

In: a command line and a `Job`. Out: answers, or a `WorkerError` that says why there is none. This
module must not know what is asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from fmnist_tf.benchmark.plan import Job
from fmnist_tf.errors import printable

COMMAND = (sys.executable, "-m", "fmnist_tf.benchmark.worker")
# Several workers share a GPU: none may take all its memory. torch.compile would start a pool of
# processes, which live on while others are measured.
ENVIRONMENT = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is the reason."""


class Worker:
    """A running worker; see `running`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: the worker failed or died.
        """
        self.send(**request)
        return self.receive()

    def send(self, **request: Any) -> None:
        """Send a request; `receive` takes its answer."""
        try:
            _pipe(self._process.stdin).write(json.dumps(request) + "\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            pass  # the worker has ended; `receive` finds out why

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the last request.

        Raises:
            WorkerError: the worker failed or died.
        """
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise WorkerError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def _obituary(self) -> str:
        code = self._process.wait()
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", perhaps for want of memory"
        else:
            how = f"exit code {code}"
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        said = f"; its last line: {printable(last[0], 200)}" if last else ""
        return f"the worker ended ({how}){said}"


@contextmanager
def running(job: Job, command: Sequence[str] = COMMAND) -> Iterator[Worker]:
    """Start a worker and give it its job; kill it, with whatever it has started, in the end.

    The first `receive` answers the job.

    Raises:
        WorkerError: it cannot be started.
    """
    log = Path(job.folder) / f"worker-{os.urandom(4).hex()}.log"
    with log.open("w") as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **ENVIRONMENT},
                # A group of its own: Ctrl-C reaches the parent alone, which ends the whole group.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(f"the worker cannot be started: {error}") from error
    try:
        worker = Worker(process, log)
        worker.send(**asdict(job))
        yield worker
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended and is reaped
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                _pipe(pipe).close()
            except BrokenPipeError:
                pass  # what it was told last is lost with it


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("the process was started without this pipe")
    return pipe
