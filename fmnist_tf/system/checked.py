"""A folder whose files are written atomically, and listed in `DONE.json` at the end.

Whatever is read of a complete folder is first compared with its `DONE.json`, and refused if it was
changed. That proves that files belong together and are whole. It proves nothing about who wrote
them: whoever can write `DONE.json` can write one that fits.

The folder may be a symbolic link; what is in it is neither read nor written through one.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system import files

DONE = "DONE.json"

# What may change after DONE.json. It has no checksum there, and no command reads it.
_UNCHECKED = ("wandb", "tensorboard", "checkpoints", "export", "report.html")
_READ_ERRORS = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError, csv.Error,
    zipfile.BadZipFile,
)  # fmt: skip
_TEXTS, _TEXT_BYTES, _MAX_BYTES = (".json", ".csv"), 64 << 20, 16 << 30


class ChangedFileError(UsageError):
    """A file is not the one that the run wrote."""


@dataclass(frozen=True)
class CheckedFolder:
    """A folder of files that were written together: a run, a checkpoint, parsed images.

    Attributes:
        path: of the folder.
        advice: what messages end with.
    """

    path: Path
    advice: ClassVar[str] = ""

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
            raise UsageError(f"{self.file(DONE)}: expected the entry `files`{self.advice}")
        return content

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
        self.write_json(name, {**content, "sha256": files.json_digest(content)})

    def read_record(self, name: str) -> dict[str, Any]:
        """Read what `write_record` wrote.

        Raises:
            UsageError: see `read_json`; or its content was changed, or has no checksum.
        """
        content = self.read_json(name)
        if (digest := content.pop("sha256", None)) is None:
            raise UsageError(f"{self.file(name)}: expected the entry `sha256`{self.advice}")
        if digest != files.json_digest(content):
            raise ChangedFileError(
                f"{self.file(name)}: expected content of the SHA-256 in it, found other content: "
                f"it was changed{self.advice}"
            )
        return content

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

    def write_done(self) -> None:
        """Mark the run as complete: list each of its files with size in bytes and SHA-256.

        Left out is what may change later: `report.html`, `export/`, `wandb/`, `tensorboard/`,
        `checkpoints/`, and hidden files.
        """
        checksums = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            is_hidden = any(part.startswith(".") for part in name.parts)
            is_kept = path.is_file() and not path.is_symlink()
            if is_hidden or name.parts[0] in (*_UNCHECKED, DONE) or not is_kept:
                continue
            with files.open_regular(path, _MAX_BYTES) as file:
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
        path, limit = self.file(name), _TEXT_BYTES if name.endswith(_TEXTS) else _MAX_BYTES
        with self.damage(name), files.open_regular(path, limit) as file:
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
            f"{self.file(name)}: expected {why}: it was changed or added later{self.advice}"
        )

    @contextlib.contextmanager
    def damage(self, name: str) -> Iterator[None]:
        """Turn what is wrong with a file that is read into a UsageError."""
        try:
            yield
        except _READ_ERRORS as error:
            is_missing = isinstance(error, FileNotFoundError)
            found = "no such file" if is_missing else printable(str(error), 200)
            raise UsageError(
                f"{self.file(name)}: expected what was written, found: {found}{self.advice}"
            ) from error


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _describe(file: io.BufferedReader) -> dict[str, Any]:
    """Return bytes and sha256 of an open file, and go back to its start."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    return {"bytes": size, "sha256": digest}
