"""The run directory: one folder per run; how it is named and found, and what its files hold."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import astuple, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fmnist_tf.errors import RunExistsError, UsageError, did_you_mean
from fmnist_tf.results.evaluation import check_predictions
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.system.checked import ChangedFileError, CheckedFolder

CONFIG = "config.json"
SWEEP = "sweep.json"  # in a folder whose `trial-*` are runs
HISTORY = "history.csv"
STEPS = "steps.csv"
PREDICTIONS = "predictions.npz"
CUTS = "cuts.csv"  # of `--cut auto`
CHECKPOINTS = "checkpoints"  # until the run is complete
LOCK = ".lock"  # see system.files.locked

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class RunDir(CheckedFolder):
    """The folder of one run, which exists; `create` makes it, `open` finds it."""

    advice = "; restore the run's files, use another run, or repeat this one"

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
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")[:24].strip("-") or "data"
        stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{phase}-{slug}"
        fresh = (stem if n == 1 else f"{stem}-{n}" for n in itertools.count(1))
        for path in map(runs_dir.joinpath, fresh if name is None else [name]):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return cls(path)
        raise _exists(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return the run at `path`, complete or not.

        Raises:
            UsageError: there is no such folder, or it has no `config.json`.
        """
        if os.path.lexists(path / CONFIG):
            # "." and ".." name no folder that the run could be in.
            return cls(Path(os.path.abspath(path)) if path.name in ("", "..") else path)
        found = "no config.json in it" if path.is_dir() else "no such folder"
        hint = describe_runs(path.parent, path.name)
        raise UsageError(f"{path}: expected a run directory, found {found}; {hint}")

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
        return folder.absolute().parent if (folder / SWEEP).is_file() else folder

    @property
    def group(self) -> str:
        """The name of the run; for a trial, the name of its sweep."""
        return Path(self.name_in(self.runs_dir)).parts[0]

    @property
    def full_name(self) -> str:
        """The name of the run; for a trial, the names of sweep and trial."""
        return self.name_in(self.runs_dir).replace(os.sep, "-")

    def name_in(self, runs_dir: Path) -> str:
        """Return the path of the run relative to `runs_dir`, or absolute if it lies elsewhere."""
        # Symbolic links are not resolved: the user knows the run by this name.
        path, folder = (Path(os.path.abspath(p)) for p in (self.path, runs_dir))
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

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

    def write_steps(self, losses: Sequence[float]) -> None:
        """Write the loss of each step to `steps.csv`, numbered from 1 over all epochs."""
        lines = (f"{step},{loss}\n" for step, loss in enumerate(losses, start=1))
        self.write_text(STEPS, "".join(("step,loss\n", *lines)))

    def read_steps(self) -> np.ndarray:
        """Return the losses in `steps.csv`, (steps,) float64.

        Raises:
            UsageError: it is missing, a line is not a step, or it was changed.
        """
        with self.reading(STEPS) as file:
            return np.loadtxt(file, delimiter=",", skiprows=1, usecols=1, ndmin=1)

    def write_predictions(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Write true labels (N,) and probabilities (N, K) to `predictions.npz`."""
        labels, probabilities = labels.astype("int64"), probabilities.astype("float32")
        self.write_arrays(PREDICTIONS, {"labels": labels, "probabilities": probabilities})

    def read_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (N,) int64 and probabilities (N, K) float32 from `predictions.npz`.

        Raises:
            UsageError: it is missing, damaged, or contains anything else; see `check_predictions`.
        """
        arrays = self.read_arrays(PREDICTIONS)
        with self.damage(PREDICTIONS):
            found = {name: str(array.dtype) for name, array in arrays.items()}
            if found != {"labels": "int64", "probabilities": "float32"}:
                raise ValueError(f"the arrays {found}")
            check_predictions(**arrays)
            return arrays["labels"], arrays["probabilities"]


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
        if os.path.lexists(path / CONFIG):
            runs.append(RunDir(path))
        elif (path / SWEEP).is_file():
            trials = (RunDir(trial) for trial in sorted(path.glob("trial-*")))
            runs += (t for t in trials if t.is_complete and t.file(PREDICTIONS).exists())
    return runs


def describe_runs(runs_dir: Path, name: str) -> str:
    """Return the runs of a folder that are most like `name`, or the first, for a message."""
    if not runs_dir.is_dir():
        return f"there is no folder {runs_dir} in {Path.cwd()}; --runs-dir names the folder of runs"
    names = [str(run.path.relative_to(runs_dir)) for run in list_runs(runs_dir)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    known = f"runs in {runs_dir}: {', '.join(names[:5]) or 'none'}{more}"
    return did_you_mean(name, names) or known


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
