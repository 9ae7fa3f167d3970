"""The run directory: one folder per run, files written atomically, `DONE.json` last of all.

Whatever is read of a complete run is first compared with its `DONE.json`, and the run refused if a
file was changed. That proves that files belong together and are whole. It proves nothing about who
wrote them: whoever can write `DONE.json` can write one that fits. The run's own folder may be a
symbolic link; what is in it is neither read nor written through one.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
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

# What may change after DONE.json. It has no checksum there, and no command reads it.
_UNCHECKED = ("wandb", CHECKPOINTS, "export", "report.html")
_READ_ERRORS = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError, csv.Error,
    zipfile.BadZipFile,
)  # fmt: skip
_MAX_BYTES = {".json": 64 << 20, ".csv": 64 << 20, ".npz": 4 << 30, ".keras": 16 << 30}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class ChangedFileError(UsageError):
    """A file is not the one that the run wrote."""


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
        return os.path.lexists(self.file(DONE))

    @property
    def done(self) -> dict[str, Any]:
        """What `DONE.json` holds: `finished_at`, and the bytes and sha256 of each of `files`.

        Raises:
            UsageError: it is missing, damaged or was changed.
        """
        content = self.read_record(DONE)
        if not isinstance(content.get("files"), dict):
            raise UsageError(f"{self.file(DONE)}: expected the entry `files`; repeat the run")
        return content

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

    def output(self, name: str) -> Path:
        """Return the path of a file or folder to write.

        Raises:
            UsageError: it, or a folder of the run that it is in, is a symbolic link.
        """
        for part in (Path(name), *Path(name).parents[:-1]):
            files.require_unlinked(self.path / part)
        return self.file(name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone; see `system.files.locked`.

        Raises:
            RunExistsError: another process holds it.
            UsageError: one of its files or folders is a symbolic link.
        """
        with files.locked(self.path):
            for path in self.path.iterdir():
                files.require_unlinked(path)
            yield

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a temporary path that becomes the file `name`; see `system.files.replacing`."""
        return files.replacing(self.output(name))

    def write_text(self, name: str, content: str) -> None:
        """Write the file `name` atomically, as UTF-8."""
        with self.writing(name) as temporary:
            temporary.write_bytes(content.encode(errors="backslashreplace"))  # of file names

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` atomically as indented JSON.

        Raises:
            ValueError: a number is NaN or infinite, which strict JSON does not have.
        """
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in the file `name`.

        Raises:
            UsageError: it is missing, unreadable, not a JSON object, or was changed.
        """
        with self.reading(name) as file:
            content = json.loads(file.read())
            if not isinstance(content, dict):
                raise ValueError(f"JSON, but a {type(content).__name__} and not an object")
        return content

    def write_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` as JSON with an entry `sha256`, which `read_record` verifies."""
        self.write_json(name, {**content, "sha256": _digest(content)})

    def read_record(self, name: str) -> dict[str, Any]:
        """Read what `write_record` wrote, or a JSON object of an older version without `sha256`.

        Raises:
            UsageError: see `read_json`; or its content was changed.
        """
        content = self.read_json(name)
        digest = content.pop("sha256", None)
        if digest not in (None, _digest(content)):
            raise ChangedFileError(
                f"{self.file(name)}: expected content of the SHA-256 in it, found other content; "
                "it was changed: restore it, use another run, or repeat this one"
            )
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
            UsageError: it is missing, a line is not an epoch, or it was changed.
        """
        with self.reading(HISTORY) as file:
            header, *lines = csv.reader(file.read().decode().splitlines() or [""])
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
            UsageError: it is missing, damaged, compressed, contains Python objects, or was
                changed.
        """
        with self.reading(name) as file:
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed entries")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
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
        with self._damage(PREDICTIONS):
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
            is_kept = path.is_file() and not path.is_symlink()
            if is_hidden or name.parts[0] in (*_UNCHECKED, DONE) or not is_kept:
                continue
            with files.open_regular(path, _MAX_BYTES[".keras"]) as file:
                checksums[name.as_posix()] = _describe(file)
        content = {"finished_at": datetime.now(UTC).isoformat(), "files": checksums}
        self.write_record(DONE, content)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[io.BufferedReader]:
        """Open a file, which in a complete run must be the one that `DONE.json` lists.

        A library that takes no open file may open the path until the end of the block.

        Raises:
            UsageError: the file is missing, was changed before or within the block, or is none; or
                the block could not read it.
        """
        path, limit = self.file(name), _MAX_BYTES[Path(name).suffix]
        with self._damage(name), files.open_regular(path, limit) as file:
            if name == DONE or not self.is_complete:
                yield file
                return
            self._verify(name, file)
            identity = _identify(os.fstat(file.fileno()))
            yield file
            if _identify(os.lstat(path)) != identity:
                raise ValueError("a file that is being changed")

    def _verify(self, name: str, file: io.BufferedReader) -> None:
        """Compare an open file with `DONE.json`; its size first, which costs nothing."""
        expected, size = self.done["files"].get(name), os.fstat(file.fileno()).st_size
        if expected is None:
            why = "no such file, as DONE.json does not list it"
        elif size != expected["bytes"]:
            why = f"the {expected['bytes']:,} bytes that DONE.json lists, found {size:,}"
        elif (digest := _describe(file)["sha256"]) != expected["sha256"]:
            why = f"SHA-256 {expected['sha256']} as DONE.json says, found {digest}"
        else:
            return
        raise ChangedFileError(
            f"{self.file(name)}: expected {why}; it was changed or added after the run: restore "
            "the run's files, use another run, or repeat this one"
        )

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        """Turn what is wrong with a file that is read into a UsageError."""
        try:
            yield
        except _READ_ERRORS as error:
            is_missing = isinstance(error, FileNotFoundError)
            found = "no such file" if is_missing else printable(str(error), 200)
            raise UsageError(
                f"{self.file(name)}: expected the {name} of a run, found: {found}; the run is "
                "incomplete or damaged: use another, or repeat it"
            ) from error


def list_runs(runs_dir: Path) -> list[RunDir]:
    """Return the runs in `runs_dir` by name, complete or not; [] if there is no such folder.

    They include the trials of sweeps that have a model.
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
            runs += (t for t in trials if t.is_complete and t.file(PREDICTIONS).exists())
    return runs


def find_newest_complete_run(runs_dir: Path, phase: str = "frozen") -> RunDir | None:
    """Return the run of `phase` that finished last according to its `DONE.json`, or None.

    File times are not used: they change when a run is copied. Foreign folders are skipped.

    Raises:
        ChangedFileError: the settings of this run, or of a newer one, were changed.
    """
    finished: list[tuple[float, str, RunDir]] = []
    for run in list_runs(runs_dir):
        try:
            when = datetime.fromisoformat(run.done["finished_at"]).timestamp()
            finished.append((when, str(run.path), run))
        except ChangedFileError:
            raise
        except (UsageError, KeyError, TypeError, ValueError, OverflowError):
            continue
    for *_, run in sorted(finished, key=lambda entry: entry[:2], reverse=True):
        if run.read_json(CONFIG).get("phase") == phase:
            return run
    return None


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _describe(file: io.BufferedReader) -> dict[str, Any]:
    """Return bytes and sha256 of an open file, and go back to its start."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    return {"bytes": size, "sha256": digest}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
