"""Files in folders and in zip archives alike: `archive.zip/train.csv` is a path."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fmnist_tf.data.csv.source import EXPANSION, EXPANSION_FLOOR_BYTES
from fmnist_tf.data.kinds import HEAD_BYTES, TEXT, Kind, recognise, recognise_zip
from fmnist_tf.errors import DataError, UsageError, file_error


def split_member(path: Path) -> tuple[Path, str]:
    """Return the file on disk, and the name of the member inside it or ""."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def is_there(path: Path) -> bool:
    """Return whether a file, a folder, or a member of an archive has this path."""
    file, member = split_member(path)
    return member in _list_members(file) if member else file.exists()


def list_files(path: Path) -> list[Path]:
    """Return the files of a folder, or of an archive and all folders in it; hidden ones left out.

    Raises:
        DataError: E008, the archive is damaged.
    """
    if path.is_dir():
        files = [file for file in path.glob("[!.]*") if file.is_file()]
    else:
        files = [path / name for name in _list_members(path) if not _is_hidden(name)]
    return sorted(files)


def list_beside(path: Path) -> list[Path]:
    """Return the files in the folder of a file, or in that folder of its archive."""
    file, member = split_member(path)
    files = list_files(file if member else path.parent)
    return [found for found in files if found.parent == path.parent]


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = ..., /) -> bytes:
        """Return at most so many bytes; fewer only at the end."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[Readable, int]]:
    """Open a file or a member of an archive, decompressed if it is a gzip file.

    Yields:
        The stream, and the greatest number of bytes that may be read from it.

    Raises:
        DataError: E001, no such member; E008, damaged, also while it is read.
        OSError: the file cannot be read.
    """
    file, member = split_member(path)
    try:
        if member:
            with zipfile.ZipFile(file) as archive:
                if member not in (names := archive.namelist()):
                    hint = f"it holds {', '.join(names[:8])}"
                    raise file_error("E001", str(path), "no such member", "a member", hint)
                info = archive.getinfo(member)
                with archive.open(info) as stream:
                    yield stream, min(info.file_size, _bound(info.compress_size))
            return
        with file.open("rb") as plain:
            size = file.stat().st_size
            if plain.read(2) != b"\x1f\x8b":
                plain.seek(0)
                yield plain, size
                return
            plain.seek(0)
            with gzip.GzipFile(fileobj=plain) as stream:
                yield stream, _bound(size)
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or an unknown compression
        raise _damaged(path, error) from None


def find_kind(path: Path) -> Kind:
    """Return what a file is, looking into gzip; `TEXT` also if it cannot be read."""
    if not split_member(path)[0].is_file():
        return TEXT
    try:
        with open_file(path) as (stream, _):
            kind = recognise(stream.read(HEAD_BYTES))
        return recognise_zip(_list_members(path)) if kind.form == "zip" else kind
    except (UsageError, OSError):
        return TEXT


def _list_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    found = f"it cannot be decompressed ({error})"
    hint = "the copy is incomplete, damaged or encrypted: fetch it again, or unpack it"
    return file_error("E008", str(path), found, "a complete file", hint)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _bound(size: int) -> int:
    return max(EXPANSION_FLOOR_BYTES, EXPANSION * size)
