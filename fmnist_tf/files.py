"""Files that appear whole or not at all, and what their bytes hash to.

In: a path and bytes. Out: the old file or the new one, whatever kills the process or the power.
This module must not know what is in the files.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of the file's bytes in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; what stands there becomes `path`.

    The temporary file lies in the same folder, which is made when missing, so the last step is one
    rename. Its name is unique: several processes may write one path at once, the last to finish
    wins, none is ever torn. On an error `path` stays as it was.
    """
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
