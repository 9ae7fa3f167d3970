"""Checkpoints: what training needs to continue, in folders that appear whole or not at all.

A checkpoint is a folder `000001`, `000002`, ... with the variables, as `tf.train.Checkpoint` writes
them, `state.json` with all that is no variable, and `DONE.json` with the SHA-256 of these files,
which are verified when it is read. `tf.train.CheckpointManager` is not used: it writes in place and
without fsync, and restores what it finds.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_tf.errors import UsageError
from fmnist_tf.system.checked import CheckedFolder
from fmnist_tf.system.files import replacing, require_unlinked

N_KEPT = 2
MAX_SHARE = 0.02  # of the run time is spent on checkpoints
_MARGIN_BYTES = 20_000_000  # figures, pages, predictions
_VARIABLES, _STATE = "variables", "state.json"

Variables = Mapping[str, Sequence[Any]]
"""Purpose -> tf.Variables, in an order that does not change."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their checksums.

    Attributes:
        path: its folder.
        state: the JSON object it was saved with.
        sha256: of the variables.
    """

    path: Path
    state: dict[str, Any]
    sha256: str

    def restore(self, variables: Variables) -> None:
        """Assign the values of these variables, which may be some of those that were saved.

        Raises:
            UsageError: they have other shapes, or there are others.
        """
        import tensorflow as tf

        try:
            status = tf.train.Checkpoint(**variables).read(str(self.path / _VARIABLES))
            status.assert_existing_objects_matched().expect_partial()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{self.path}: expected the variables of this network and optimizer, found others "
                f"({reason}); repeat the settings that the run was begun with"
            ) from error


@dataclass
class CheckpointDir:
    """The checkpoints of one run, written by one process at a time.

    Attributes:
        path: their folder, which need not exist.
        seconds: between two checkpoints; less where an epoch ends, more where writing one takes
            more than `MAX_SHARE` of the time. 0: no bound, every step.
        newest: the newest valid one that `find` found.
    """

    path: Path
    seconds: float = 120.0
    newest: Checkpoint | None = field(default=None, init=False)
    _cost: float = field(default=0.0, init=False)
    _saved: float = field(default_factory=time.monotonic, init=False)

    def is_due(self, *, ends_epoch: bool) -> bool:
        """Return whether it is time for another checkpoint."""
        if not self.seconds:
            return True
        wait = self._cost / MAX_SHARE
        return time.monotonic() - self._saved >= (wait if ends_epoch else max(wait, self.seconds))

    def save(self, state: Mapping[str, Any], variables: Variables) -> None:
        """Write a checkpoint, and remove all but the `N_KEPT` newest.

        Raises:
            OSError: the disk does not take it; the earlier ones stay.
        """
        import tensorflow as tf

        started = time.monotonic()
        number = 1 + max(map(_number_of, self._folders()), default=0)
        with replacing(self.path / f"{number:06d}") as temporary:
            temporary.mkdir()
            try:
                tf.train.Checkpoint(**variables).write(str(temporary / _VARIABLES))
            except tf.errors.OpError as error:
                raise OSError(None, f"{error.message}", str(self.path)) from error
            (temporary / _STATE).write_text(json.dumps(state) + "\n")
            CheckedFolder(temporary).write_done()
        for path in self._folders()[:-N_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def find(self) -> list[str]:
        """Find the newest valid checkpoint; return what is wrong with newer ones.

        Raises:
            NotAFileError: their folder is a link.
        """
        problems = []
        for path in reversed(self._folders()):
            try:
                self.newest = _read(path)
                break
            except (UsageError, KeyError, StopIteration) as error:
                problems.append(f"{path}: {error}")
        return problems

    def require_room(self, n_bytes: int, besides: int) -> None:
        """Check that the disk has room for checkpoints.

        Args:
            n_bytes: the size of one; one more than `N_KEPT` is there while it is written.
            besides: the size of what else will be written, in bytes.

        Raises:
            OSError: it has not.
        """
        self.path.mkdir(exist_ok=True)
        there = sum(path.lstat().st_size for path in self.path.glob("*/*"))
        needed = (N_KEPT + 1) * n_bytes + besides + _MARGIN_BYTES - there
        free = shutil.disk_usage(self.path).free
        if free < needed:
            found = f"No space left on device: the run needs {needed / 1e9:.3g} GB for checkpoints"
            found += f" and the model, and {free / 1e9:.3g} GB are free; --runs-dir names another"
            raise OSError(errno.ENOSPC, found, str(self.path))

    def remove(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        folders = require_unlinked(self.path).glob("*")
        return sorted((path for path in folders if path.name.isdecimal()), key=_number_of)


def _number_of(folder: Path) -> int:
    return int(folder.name)


def _read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UsageError: a file is missing, is no file, or was changed.
        KeyError, StopIteration: it is not a checkpoint.
    """
    folder = CheckedFolder(require_unlinked(path))
    listed = folder.done["files"]
    for name in {f"{_VARIABLES}.index", *listed}:
        with folder.reading(name):
            pass
    data = next(entry for name, entry in listed.items() if ".data-" in name)
    return Checkpoint(path, folder.read_json(_STATE), data["sha256"])
