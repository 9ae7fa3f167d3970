"""What trains one network: this process alone, its GPUs together, or several processes.

TensorFlow's engine does the work: `MirroredStrategy` for the GPUs of one process, and
`MultiWorkerMirroredStrategy` for processes, which are named by TF_CONFIG (as launchers set it) or
by Slurm. TensorFlow has one such engine in a process, so there is one `current` cluster.

A worker is a process, a replica a device that has a copy of the network; worker 0 is the chief.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import FmnistError, UsageError, printable
from fmnist_tf.system import signals

JOIN_SECONDS = 600.0
_START_SECONDS = 120  # of TensorFlow, when all workers are there
_TF_CONFIG = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
_LOST = {
    f"{reason}Error"  # of tf.errors
    for reason in ("Unavailable", "Aborted", "Cancelled", "DeadlineExceeded", "FailedPrecondition")
}


class WorkerLostError(FmnistError):
    """Another worker ended or cannot be reached: exit code 75, as for what may be tried again."""

    exit_code = 75


@dataclass
class Cluster:
    """The workers of a run, and this one among them.

    Attributes:
        workers: HOST:PORT of each, the chief's first; empty if this process is alone.
        index: of this worker.
        strategy: TensorFlow's, once `start` was called.
    """

    workers: tuple[str, ...] = ()
    index: int = 0
    strategy: Any = field(default=None, repr=False)

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Cluster:
        """Return the cluster that TF_CONFIG or Slurm's variables describe.

        Raises:
            UsageError: TF_CONFIG is not what launchers write.
        """
        if text := environment.get(_TF_CONFIG):
            return cls._from_tf_config(text)
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return cls._from_slurm(environment)
        return cls()

    @classmethod
    def _from_tf_config(cls, text: str) -> Cluster:
        try:
            config = json.loads(text)
            jobs = {name: list(hosts) for name, hosts in config.get("cluster", {}).items()}
            if sum(map(len, jobs.values())) < 2:
                return cls()
            task = config["task"]["type"], int(config["task"]["index"])
            tasks = [(job, n) for job in ("chief", "worker") for n in range(len(jobs.get(job, ())))]
            workers = tuple(str(jobs[job][n]) for job, n in tasks)
            if jobs.keys() - {"chief", "worker"} or len(set(workers)) < len(workers):
                raise ValueError("other jobs than chief and worker, or an address twice")
            for worker in workers:
                _split(worker)
            return cls(workers, tasks.index(task))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"TF_CONFIG: expected JSON such as {_EXAMPLE}, found {printable(text, 300)} "
                f"({error!r}); unset it to train in one process"
            ) from error

    @classmethod
    def _from_slurm(cls, environment: Mapping[str, str]) -> Cluster:
        # TensorFlow's own resolver sorts hosts by name (n10 before n9) and needs GPUs.
        from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

        hosts = slurm.expand_hostlist(environment["SLURM_STEP_NODELIST"])
        n_tasks = slurm.expand_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        first_port = 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])  # as Lightning has it
        workers = [
            f"{host}:{first_port + n}"
            for host, n_here in zip(hosts, n_tasks, strict=True)
            for n in range(n_here)
        ]
        return cls(tuple(workers), int(environment["SLURM_PROCID"]))

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run directory."""
        return self.index == 0

    @property
    def n_workers(self) -> int:
        """1 if this process is alone."""
        return max(len(self.workers), 1)

    @property
    def n_replicas(self) -> int:
        """Of all workers together."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy else 1

    @property
    def n_local(self) -> int:
        """Replicas of this worker."""
        return self.n_replicas // self.n_workers

    def start(self, say: Callable[[str], None] = print) -> None:
        """Join the other workers, or use the GPUs of this process; becomes the `current` cluster.

        To be called after TensorFlow is imported and before it computes anything.

        Raises:
            WorkerLostError: not all workers have come within `JOIN_SECONDS`.
            StoppedError: a signal stops this process.
        """
        global _current
        import tensorflow as tf

        if self.workers and self.workers == _current.workers:  # an earlier run of this process
            self.strategy = _current.strategy
        elif self.workers:
            say(
                f"worker {self.index} of {self.n_workers}{' (chief)' * self.is_chief} at "
                f"{self.workers[self.index]}: waiting for {', '.join(self._others)}"
            )
            self._meet()
            self._join()
            kind = "NCCL" if tf.config.list_logical_devices("GPU") else "RING"
            say(f"training on {self.n_workers} workers, {self.n_replicas} devices, by {kind}")
        else:
            devices = [device.name for device in tf.config.list_logical_devices("GPU")]
            if not devices:  # more than one are for tests alone
                devices = [device.name for device in tf.config.list_logical_devices("CPU")]
            if len(devices) > 1:
                self.strategy = tf.distribute.MirroredStrategy(devices)
                say(f"training on {len(devices)} devices of this machine")
        _current = self

    def scope(self) -> AbstractContextManager[Any]:
        """Create variables inside that all replicas have; every worker creates the same ones."""
        return self.strategy.scope() if self.strategy else nullcontext()

    @property
    def _others(self) -> list[str]:
        return [worker for worker in self.workers if worker != self.workers[self.index]]

    def _meet(self) -> None:
        """Wait until all workers are there; TensorFlow would wait deaf to signals.

        Each listens at its address until it has reached all others, and then in TensorFlow.
        """
        own, missing = self.workers[self.index], self._others
        try:
            listener = socket.create_server(_split(own), reuse_port=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"worker {self.index}: expected its own address in TF_CONFIG, at a free port, "
                f"found {printable(own)} ({error})"
            ) from error
        ends = time.monotonic() + JOIN_SECONDS
        with listener:
            while missing := [worker for worker in missing if not _is_up(worker)]:
                if time.monotonic() > ends:
                    raise WorkerLostError(
                        f"worker {self.index}: expected {', '.join(missing)} within "
                        f"{JOIN_SECONDS:.0f} s; start all workers, and let each reach the others"
                    )
                signals.check()
                time.sleep(0.2)

    def _join(self) -> None:
        import tensorflow as tf

        experimental = tf.distribute.experimental
        by = experimental.CommunicationImplementation
        kind = by.NCCL if tf.config.list_physical_devices("GPU") else by.RING
        own = {"cluster": {"worker": self.workers}, "task": {"type": "worker", "index": self.index}}
        os.environ[_TF_CONFIG] = json.dumps(own)
        sigterm = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it waits for
        signal.alarm(_START_SECONDS)
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=experimental.CommunicationOptions(implementation=kind)
            )
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGTERM, sigterm)  # TensorFlow has replaced the handler

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn what TensorFlow raises inside when another worker is lost into one error.

        Raises:
            WorkerLostError: another worker ended or cannot be reached.
        """
        try:
            yield
        except Exception as error:
            if not self.workers or type(error).__name__ not in _LOST:
                raise
            reason = " ".join(str(error).split()).rpartition("is aborted by: ")[2]
            lost = WorkerLostError(
                f"worker {self.index}: another worker ended or cannot be reached; see what the "
                "others say. The same command on every worker continues the run",
                f"TensorFlow: {printable(reason, 300)}",
            )
            for note in getattr(error, "__notes__", ()):
                lost.add_note(note)
            raise lost from error

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of all workers' arrays, of one shape, and of float64 or int32."""
        if self.n_workers == 1:
            return values
        sums: np.ndarray = self._add(values.reshape(-1)).numpy()
        return sums.reshape(values.shape)

    @cached_property
    def _add(self) -> Callable[[np.ndarray], Any]:
        import tensorflow as tf

        def weigh(own: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return own * tf.cast(replica % self.n_local == 0, own.dtype)

        @tf.function(autograph=False, reduce_retracing=True)
        def add(own: tf.Tensor) -> tf.Tensor:
            parts = self.strategy.run(weigh, (own,))
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

        return lambda values: add(tf.constant(values))

    def from_chief(self, values: np.ndarray) -> np.ndarray:
        """Return the chief's array, bit by bit; the others give one of its shape and dtype."""
        if self.n_workers == 1:
            return values
        content = np.ascontiguousarray(values).tobytes()
        words = np.frombuffer(content + bytes(-len(content) % 4), np.int32) * np.int32(
            self.is_chief
        )
        received = self.total(words).tobytes()[: len(content)]
        return np.frombuffer(received, values.dtype).reshape(values.shape)

    def json_from_chief(self, content: Any) -> Any:
        """Return the chief's JSON content; what the others give does not matter."""
        if self.n_workers == 1:
            return content
        own = np.frombuffer(json.dumps(content).encode(), np.uint8)
        n_bytes = int(self.from_chief(np.array([len(own)], np.int32))[0])
        received = self.from_chief(np.resize(own, n_bytes))
        return json.loads(received.tobytes())

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Check that all workers have the chief's facts.

        Raises:
            UsageError: on every worker, if one has others.
        """
        own = json.loads(json.dumps(facts))
        theirs = self.json_from_chief(own)
        differing = [name for name in own if own[name] != theirs.get(name)]
        if self.total(np.array([len(differing)], np.int32))[0]:
            raise UsageError(
                f"worker {self.index}: expected the same on every worker, found differences",
                *(
                    f"{name}: the chief has {printable(str(theirs.get(name)), 200)}, worker "
                    f"{self.index} has {printable(str(own[name]), 200)}"
                    for name in differing
                ),
            )

    def have_one(self, folder: Path) -> bool:
        """Return whether the chief's folder is every worker's, as on a shared disk."""
        if self.n_workers == 1:
            return True
        with ExitStack() as held:
            name = ""
            if self.is_chief:
                folder.mkdir(parents=True, exist_ok=True)
                name = held.enter_context(tempfile.NamedTemporaryFile(dir=folder)).name
            seen = folder / Path(self.json_from_chief(name)).name
            return bool(self.total(np.array([seen.exists()], np.int32))[0] == self.n_workers)

    def wait_for_all(self) -> None:
        """Return when every worker has called this."""
        self.total(np.zeros(1, np.int32))


_current = Cluster()


def current() -> Cluster:
    """Return the cluster that was started, else this process alone."""
    return _current


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _is_up(address: str) -> bool:
    try:
        socket.create_connection(_split(address), timeout=1).close()
    except OSError:
        return False
    return True
