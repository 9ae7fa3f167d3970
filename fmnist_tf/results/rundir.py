"""The run directory: one folder per run, whole files only, `DONE.json` last of all.

In: a name and what a run has to say. Out: files that are either absent, or the old content, or the
new content, whatever kills the process; and the same content read back. This module must not know
what a model, a figure or a tracker is.

Everything is private to its owner (folder 0700, files 0600): a run may hold private images.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
import json
import os
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import RunExistsError, UsageError, printable
from fmnist_tf.system.files import file_digest, replacing

DONE = "DONE.json"
CONFIG = "config.json"
SWEEP = "sweep.json"  # in a folder whose `trial-*` are runs
HISTORY = "history.csv"
PREDICTIONS = "predictions.npz"
LOCK = ".lock"

_UNSEALED = ("wandb", "checkpoints", "export", "report.html")  # what may change after DONE.json
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class HistoryRow:
    """One epoch, one line of `history.csv`; the field names are its header.

    Attributes:
        epoch: 1-based; 0 is a starting point that was measured before any training.
        phase: `frozen`, `finetune` or `scratch`.
        loss: mean cross entropy in nats on the training examples; NaN where none were trained on.
        accuracy: 0..1 on the training examples; NaN where none were trained on.
        val_loss: mean cross entropy in nats on the validation examples.
        val_accuracy: 0..1 on the validation examples.
        learning_rate: at the end of the epoch.
        seconds: wall time of the epoch, validation included.
    """

    epoch: int
    phase: str
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


HISTORY_HEADER = tuple(field.name for field in fields(HistoryRow))


@dataclass(frozen=True)
class RunDir:
    """A run's folder, which exists; make one with `create` or `open`.

    Attributes:
        path: as the user named it, relative or absolute.
    """

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, phase: str, dataset: str) -> RunDir:
        """Make `runs_dir/name`, or a name from the clock, the phase and the data when None.

        Raises:
            UsageError: the name is not a plain file name, or `runs_dir` is not a folder.
            RunExistsError: the named run exists already; names from the clock step aside instead.
        """
        if name is not None:
            check_name(runs_dir, name)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{printable(str(runs_dir), 200)}: expected a folder for runs (--runs-dir), found "
                "a file in its place; move the file or name another folder"
            ) from error
        if name is not None:
            try:
                os.mkdir(runs_dir / name, 0o700)
            except FileExistsError as error:
                raise _exists(runs_dir / name) from error
            return cls(runs_dir / name)
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")[:24].strip("-") or "data"
        stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{phase}-{slug}"
        for attempt in itertools.count(1):
            path = runs_dir / (stem if attempt == 1 else f"{stem}-{attempt}")
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                break
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return the run at `path`, complete or not.

        Raises:
            UsageError: there is no such folder, or it holds no `config.json`.
        """
        if (path / CONFIG).is_file():
            return cls(path)
        found = "no config.json in it" if path.is_dir() else "no such folder"
        neighbours = [str(run.path.relative_to(path.parent)) for run in list_runs(path.parent)]
        known = ", ".join(neighbours[:5]) or "none"
        more = f" and {len(neighbours) - 5} more" if len(neighbours) > 5 else ""
        raise UsageError(
            f"{printable(str(path), 200)}: expected a run directory, found {found}; "
            f"runs in {printable(str(path.parent), 200)}: {known}{more}"
        )

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end: `DONE.json`, the last file of all, is there."""
        return self.file(DONE).is_file()

    @property
    def runs_dir(self) -> Path:
        """The folder of runs that this one belongs to; a sweep's trials belong to the sweep's."""
        folder = self.path.parent
        return folder.absolute().parent if self._is_trial else folder

    @property
    def group(self) -> str:
        """What this run and those that continue it have in common: its name, or its sweep's."""
        path = self.path.absolute()
        return path.parent.name if self._is_trial else path.name

    @property
    def full_name(self) -> str:
        """Its name, with its sweep's before it; unlike other sweeps' trials by that."""
        name = self.path.absolute().name
        return f"{self.group}-{name}" if self._is_trial else name

    @property
    def _is_trial(self) -> bool:
        return (self.path.parent / SWEEP).is_file()

    def name_in(self, runs_dir: Path) -> str:
        """Return the name that finds this run from `runs_dir`: its path where it lies elsewhere."""
        # Links are not followed: what a run is called by is its name.
        path, folder = (Path(os.path.abspath(p)) for p in (self.path, runs_dir))
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def file(self, name: str) -> Path:
        """Return where the file `name` of this run lies or would lie."""
        return self.path / name

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path with the suffix of `name`; what stands there becomes `name`.

        The temporary file lies in the same folder, so that the final step is one rename: a reader
        sees the old file or the new one, never a part. On an error `name` stays as it was.
        """
        with replacing(self.file(name)) as temporary:
            yield temporary
            os.chmod(temporary, 0o600)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write the whole file `name` atomically."""
        with self.writing(name) as temporary:
            temporary.write_bytes(content)

    def write_text(self, name: str, content: str) -> None:
        """Write the whole file `name` atomically, as UTF-8."""
        self.write_bytes(name, content.encode())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` as strict JSON, indented, atomically.

        Raises:
            ValueError: a number is NaN or infinite, which JSON has no word for.
        """
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in the file `name`.

        Raises:
            UsageError: it is missing, unreadable, or not a JSON object.
        """
        try:
            content = json.loads(self.file(name).read_bytes())
        except FileNotFoundError as error:
            raise self._broken(name, "no such file") from error
        except (OSError, ValueError, RecursionError) as error:
            raise self._broken(name, str(error)) from error
        if not isinstance(content, dict):
            raise self._broken(name, f"JSON, but a {type(content).__name__} and not an object")
        return content

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Write all epochs so far to `history.csv`; floats keep every digit (`repr`)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HISTORY_HEADER)
        writer.writerows(astuple(row) for row in rows)
        self.write_text(HISTORY, text.getvalue())

    def read_history(self) -> list[HistoryRow]:
        """Read `history.csv` back, exactly the rows that were written.

        Raises:
            UsageError: it is missing or a line is not an epoch.
        """
        try:
            text = self.file(HISTORY).read_text(encoding="utf-8")
            header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
            if tuple(header) != HISTORY_HEADER:
                raise ValueError(f"expected the header {','.join(HISTORY_HEADER)}")
            return [
                HistoryRow(int(epoch), phase, *(float(number) for number in numbers))
                for epoch, phase, *numbers in lines
            ]
        except FileNotFoundError as error:
            raise self._broken(HISTORY, "no such file") from error
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise self._broken(HISTORY, str(error)) from error

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays as one uncompressed .npz file, atomically."""
        with self.writing(name) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of the .npz file `name`.

        Compressed entries are refused: then the arrays cannot be larger than the file.

        Raises:
            UsageError: it is missing, damaged, compressed, or holds Python objects.
        """
        path = self.file(name)
        try:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed entries")
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError as error:
            raise self._broken(name, "no such file") from error
        except (
            zipfile.BadZipFile,
            OSError,
            ValueError,
            EOFError,
            RuntimeError,
            MemoryError,
        ) as error:
            raise self._broken(name, str(error)) from error

    def write_predictions(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Write the test predictions to `predictions.npz`.

        Args:
            labels: (N,) integers 0..K-1, the truth.
            probabilities: (N, K) float32.
        """
        self.write_arrays(
            PREDICTIONS,
            {
                "labels": np.asarray(labels, np.int64),
                "probabilities": np.asarray(probabilities, np.float32),
            },
        )

    def read_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (N,) int64 and probabilities (N, K) float32 from `predictions.npz`.

        Raises:
            UsageError: it is missing, damaged, or holds anything else.
        """
        arrays = self.read_arrays(PREDICTIONS)
        found = ", ".join(f"{key} {a.dtype}{a.shape}" for key, a in sorted(arrays.items()))
        if set(arrays) != {"labels", "probabilities"}:
            raise self._broken(PREDICTIONS, f"entries {sorted(arrays)}")
        labels, probabilities = arrays["labels"], arrays["probabilities"]
        fits = labels.dtype == np.int64 and probabilities.dtype == np.float32
        if not fits or probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
            raise self._broken(PREDICTIONS, found)
        return labels, probabilities

    def write_done(self) -> None:
        """Declare the run complete: list each of its files with size in bytes and SHA-256.

        What may change later is left out: `report.html`, which is made of the other files,
        `export/`, `wandb/`, `checkpoints/`, hidden files.
        """
        checksums = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or name.parts[0] in _UNSEALED or str(name) == DONE or not path.is_file():
                continue
            checksums[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        self.write_json(DONE, {"finished_at": datetime.now(UTC).isoformat(), "files": checksums})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone; the kernel lets go when the process ends, however.

        The lock file stays for ever: were it deleted, two processes could each lock their own.

        Raises:
            RunExistsError: another process holds it.
        """
        descriptor = os.open(self.file(LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunExistsError(
                    f"{printable(str(self.path), 200)} is in use by {_describe_holder(stream)}; "
                    "wait until it ends, or choose another run"
                ) from error
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            stream.truncate()
            stream.write(json.dumps(holder).encode())
            stream.flush()
            yield

    def _broken(self, name: str, found: str) -> UsageError:
        """Return the error that says what is wrong with the file `name`."""
        return UsageError(
            f"{printable(str(self.file(name)), 200)}: expected the {name} of a run, found: "
            f"{printable(found, 200)}; the run is incomplete or damaged: use another, or repeat it"
        )


def list_runs(runs_dir: Path) -> list[RunDir]:
    """Return the runs in `runs_dir` by name, complete or not; none when there is no such folder.

    Those of a sweep are among them if they are complete: the others only compare settings.
    """
    try:
        paths = sorted(path for path in runs_dir.iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []
    runs: list[RunDir] = []
    for path in paths:
        if (path / CONFIG).is_file():
            runs.append(RunDir(path))
        elif (path / SWEEP).is_file():
            trials = (RunDir(trial) for trial in sorted(path.glob("trial-*")))
            runs += (trial for trial in trials if trial.is_complete)
    return runs


def find_newest_complete_run(runs_dir: Path, phase: str = "frozen") -> RunDir | None:
    """Return the run of `phase` that finished last by its own record, or None.

    File times are not asked: they change when a run is copied. Damaged and foreign folders are
    passed over.
    """
    finished: list[tuple[float, str, RunDir]] = []
    for run in list_runs(runs_dir):
        try:
            when = datetime.fromisoformat(run.read_json(DONE)["finished_at"]).timestamp()
            if run.read_json(CONFIG)["phase"] == phase:
                finished.append((when, str(run.path), run))
        except (UsageError, KeyError, TypeError, ValueError, OverflowError):
            continue
    return max(finished, key=lambda entry: entry[:2])[2] if finished else None


def check_name(runs_dir: Path, name: str) -> None:
    """Say early what `RunDir.create` would refuse late.

    Raises:
        UsageError: the name is not one plain file name on every system.
        RunExistsError: there is a run of this name.
    """
    plain = _NAME.fullmatch(name) and not name.endswith(".") and ".." not in name
    if not plain or _DEVICE_NAME.fullmatch(name):
        raise UsageError(
            f"--run {printable(name)!r}: expected a plain name of 1 to 64 letters, digits, '.', "
            "'_' or '-' that starts with a letter or digit, has no '..' and is no device name; "
            "choose such a name, and --runs-dir for the folder"
        )
    if (runs_dir / name).exists():
        raise _exists(runs_dir / name)


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(
        f"{printable(str(path), 200)} exists already, and a run is never overwritten; choose "
        "another --run NAME, leave --run out for a fresh name, or delete the folder"
    )


def _describe_holder(stream: io.BufferedRandom) -> str:
    """Say who wrote the lock file; the holder may be between locking and writing."""
    try:
        holder = json.loads(stream.read(1000))
        pid, host, since = (printable(str(holder[key])) for key in ("pid", "host", "since"))
    except (ValueError, KeyError, TypeError):
        return "another process"
    return f"process {pid} on {host} since {since}"
