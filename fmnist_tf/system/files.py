"""Files that appear whole or not at all, and what their bytes hash to.

In: a path and bytes. Out: the old file or the new one, whatever kills the process or the power; or
an error where no file can be. This module must not know what is in the files.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fmnist_tf.errors import UsageError, printable


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of the file's bytes in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_target(flag: str, path: Path) -> None:
    """Refuse, before the work, a file that `replacing` could not write in the end.

    Args:
        flag: that names it, for the message.
        path: of the file; its folder is made when the file is.

    Raises:
        UsageError: there is a folder or a device of this name, or no file can be put there.
    """
    where = f"{flag} {printable(str(path), 200)}"
    if path.is_dir():
        raise UsageError(f"{where}: expected the name of a file, found a folder")
    if path.exists() and not path.is_file():
        # A rename would put a file in the place of /dev/stdout.
        raise UsageError(f"{where}: expected the name of a file, found a device or a pipe")
    _check_place(where, path.parent)


def check_folder(flag: str, path: Path) -> None:
    """Refuse a folder that neither is one to write to nor can be made.

    Args:
        flag: that names it, for the message.
        path: of the folder.

    Raises:
        UsageError: a file is in its place or in that of a folder above, or writing is forbidden.
    """
    _check_place(f"{flag} {printable(str(path), 200)}", path)


def _check_place(where: str, path: Path) -> None:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        found = printable(str(existing), 200)
        raise UsageError(f"{where}: expected a folder, found {found}, which is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        found = printable(str(existing), 200)
        raise UsageError(f"{where}: expected a folder to write to; {found} may not be written")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; what stands there becomes `path`.

    The temporary file lies in the same folder, which is made when missing, so the last step is one
    rename. Its name is unique: several processes may write one path at once, the last to finish
    wins, none is ever torn. On an error `path` stays as it was. A link is followed.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)  # else a power cut can undo the rename
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` whole and on the disk, or not at all."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        yield file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
