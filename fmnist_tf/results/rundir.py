"""The run directory: one folder per run, files written atomically, `DONE.json` last of all."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.errors import RunExistsError, UsageError, printable
from fmnist_tf.results.evaluation import check_predictions
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.system import files

DONE = "DONE.json"
CONFIG = "config.json"
SWEEP = "sweep.json"  # in a folder whose `trial-*` are runs
HISTORY = "history.csv"
PREDICTIONS = "predictions.npz"
CHECKPOINTS = "checkpoints"  # until the run is complete
LOCK = ".lock"  # see system.files.locked

# What may change after DONE.json; it has no checksum there.
_UNCHECKED = ("wandb", CHECKPOINTS, "export", "report.html")
_READ_ERRORS = (
    OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, csv.Error,
    zipfile.BadZipFile,
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class RunDir:
    """The folder of one run, which exists; `create` makes it, `open` finds it."""

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, phase: str, dataset: str) -> RunDir:
        """Create `runs_dir/name`; if `name` is None, the name is made of time, phase and data.

        Raises:
            UsageError: the name is not a plain file name, or `runs_dir` is not a folder.
            RunExistsError: the named run exists already.
        """
        if name is not None:
            check_name(runs_dir, name)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{runs_dir}: expected a folder for runs (--runs-dir), found a file; move the file "
                "or name another folder"
            ) from error
        if name is not None:
            try:
                os.mkdir(runs_dir / name)
            except FileExistsError as error:
                raise _exists(runs_dir / name) from error
            return cls(runs_dir / name)
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")[:24].strip("-") or "data"
        stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{phase}-{slug}"
        for attempt in itertools.count(1):
            path = runs_dir / (stem if attempt == 1 else f"{stem}-{attempt}")
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                break
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return the run at `path`, complete or not.

        Raises:
            UsageError: there is no such folder, or it has no `config.json`.
        """
        if (path / CONFIG).is_file():
            return cls(path)
        found = "no config.json in it" if path.is_dir() else "no such folder"
        names = [str(run.path.relative_to(path.parent)) for run in list_runs(path.parent)]
        known = ", ".join(names[:5]) or "none"
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UsageError(
            f"{path}: expected a run directory, found {found}; runs in {path.parent}: {known}{more}"
        )

    @property
    def is_complete(self) -> bool:
        """Whether `DONE.json`, the last file of a run, is there."""
        return self.file(DONE).is_file()

    @property
    def is_unfinished(self) -> bool:
        """Whether a run was begun here: it has settings, or is a folder with hidden files only."""
        if not self.path.is_dir() or self.is_complete:
            return False
        names = [path.name for path in self.path.iterdir()]
        return CONFIG in names or all(name.startswith(".") for name in names)

    @property
    def runs_dir(self) -> Path:
        """The folder of runs; for a trial, the folder that its sweep is in."""
        folder = self.path.parent
        return folder.absolute().parent if self._is_trial else folder

    @property
    def group(self) -> str:
        """The name of the run; for a trial, the name of its sweep."""
        path = self.path.absolute()
        return path.parent.name if self._is_trial else path.name

    @property
    def full_name(self) -> str:
        """The name of the run; for a trial, the names of sweep and trial."""
        name = self.path.absolute().name
        return f"{self.group}-{name}" if self._is_trial else name

    @property
    def _is_trial(self) -> bool:
        return (self.path.parent / SWEEP).is_file()

    def name_in(self, runs_dir: Path) -> str:
        """Return the path of the run relative to `runs_dir`, or absolute if it lies elsewhere."""
        # Symbolic links are not resolved: the user knows the run by this name.
        path, folder = (Path(os.path.abspath(p)) for p in (self.path, runs_dir))
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def file(self, name: str) -> Path:
        """Return the path of the file `name`, which need not exist."""
        return self.path / name

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for this process alone; see `system.files.locked`.

        Raises:
            RunExistsError: another process holds it.
        """
        return files.locked(self.path)

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a temporary path that becomes the file `name`; see `system.files.replacing`."""
        return files.replacing(self.file(name))

    def write_text(self, name: str, content: str) -> None:
        """Write the file `name` atomically, as UTF-8."""
        with self.writing(name) as temporary:
            temporary.write_bytes(content.encode())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` atomically as indented JSON.

        Raises:
            ValueError: a number is NaN or infinite, which strict JSON does not have.
        """
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in the file `name`.

        Raises:
            UsageError: it is missing, unreadable, or not a JSON object.
        """
        with self._reading(name) as path:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError(f"JSON, but a {type(content).__name__} and not an object")
        return content

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Write all epochs so far to `history.csv`; floats keep every digit (`repr`)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(HistoryRow))
        writer.writerows(astuple(row) for row in rows)
        self.write_text(HISTORY, text.getvalue())

    def read_history(self) -> list[HistoryRow]:
        """Read `history.csv`.

        Raises:
            UsageError: it is missing or a line is not an epoch.
        """
        with self._reading(HISTORY) as path:
            header, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines() or [""])
            if header != [field.name for field in fields(HistoryRow)]:
                raise ValueError(f"the header {','.join(header)}")
            return [
                HistoryRow(int(epoch), phase, *(float(number) for number in numbers))
                for epoch, phase, *numbers in lines
            ]

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays atomically as one uncompressed .npz file."""
        with self.writing(name) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Read the arrays of the .npz file `name`.

        Compressed entries are refused, so the arrays cannot be larger than the file.

        Raises:
            UsageError: it is missing, damaged, compressed, or contains Python objects.
        """
        with self._reading(name) as path:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed entries")
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)

    def write_predictions(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Write the test predictions to `predictions.npz`.

        Args:
            labels: (N,) integers 0..K-1, the true labels.
            probabilities: (N, K) floats.
        """
        labels, probabilities = labels.astype("int64"), probabilities.astype("float32")
        self.write_arrays(PREDICTIONS, {"labels": labels, "probabilities": probabilities})

    def read_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (N,) int64 and probabilities (N, K) float32 from `predictions.npz`.

        Raises:
            UsageError: it is missing, damaged, or contains anything else; see `check_predictions`.
        """
        arrays = self.read_arrays(PREDICTIONS)
        with self._reading(PREDICTIONS):
            found = {name: str(array.dtype) for name, array in arrays.items()}
            if found != {"labels": "int64", "probabilities": "float32"}:
                raise ValueError(f"the arrays {found}")
            check_predictions(**arrays)
            return arrays["labels"], arrays["probabilities"]

    def write_done(self) -> None:
        """Mark the run as complete: list each of its files with size in bytes and SHA-256.

        Left out is what may change later: `report.html`, `export/`, `wandb/`, `checkpoints/`, and
        hidden files.
        """
        checksums = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            is_hidden = any(part.startswith(".") for part in name.parts)
            if is_hidden or name.parts[0] in (*_UNCHECKED, DONE) or not path.is_file():
                continue
            size, digest = path.stat().st_size, files.file_digest(path)
            checksums[name.as_posix()] = {"bytes": size, "sha256": digest}
        self.write_json(DONE, {"finished_at": datetime.now(UTC).isoformat(), "files": checksums})

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """Yield the path of a file to read; turn what is wrong with it into a UsageError."""
        try:
            yield self.file(name)
        except _READ_ERRORS as error:
            is_missing = isinstance(error, FileNotFoundError)
            found = "no such file" if is_missing else printable(str(error), 200)
            raise UsageError(
                f"{self.file(name)}: expected the {name} of a run, found: {found}; the run is "
                "incomplete or damaged: use another, or repeat it"
            ) from error


def list_runs(runs_dir: Path) -> list[RunDir]:
    """Return the runs in `runs_dir` by name, complete or not; [] if there is no such folder.

    They include the trials of sweeps that are complete runs.
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
    """Return the run of `phase` that finished last according to its `DONE.json`, or None.

    File times are not used: they change when a run is copied. Damaged and foreign folders are
    skipped.
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
    """Check, before the work, that `RunDir.create` will accept the name.

    Raises:
        UsageError: see `check_plain`.
        RunExistsError: the run exists already.
    """
    check_plain(name)
    if (runs_dir / name).exists():
        raise _exists(runs_dir / name)


def check_plain(name: str) -> None:
    """Check the name of a run.

    Raises:
        UsageError: it is not one plain file name on every system.
    """
    plain = _NAME.fullmatch(name) and not name.endswith(".") and ".." not in name
    if not plain or _DEVICE_NAME.fullmatch(name):
        raise UsageError(
            f"--run {name[:80]!r}: expected 1 to 64 letters, digits, '.', '_' or '-', starting "
            "with a letter or digit, without '..' and not a Windows device name; choose such a "
            "name, and --runs-dir for the folder"
        )


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(
        f"{path} exists already, and a run is never overwritten; choose another --run NAME, omit "
        "--run for a fresh name, or delete the folder"
    )
