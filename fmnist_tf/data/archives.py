"""Files in folders and in zip archives alike: `archive.zip/train.csv` is a path."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from fmnist_tf.data.csv.source import EXPANSION, EXPANSION_FLOOR_BYTES
from fmnist_tf.data.kinds import HEAD_BYTES, Kind, recognise, recognise_zip
from fmnist_tf.errors import DataError, file_error
from fmnist_tf.system.files import naming


def split_member(path: Path) -> tuple[Path, str]:
    """Return the file on disk, and the name of the member inside it or ""."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def is_there(path: Path) -> bool:
    """Return whether a file, a folder, or a member of an archive has this path."""
    file, member = split_member(path)
    return member in list_members(file) if member else file.exists()


def list_files(path: Path) -> list[Path]:
    """Return the files of a folder, or of an archive and all folders in it; hidden ones left out.

    Raises:
        DataError: E008, the archive is damaged.
    """
    if not path.is_file():
        return sorted(file for file in path.glob("[!.]*") if file.is_file())
    is_hidden = ("__MACOSX", ".")
    names = [name for name in list_members(path) if not name.startswith(is_hidden)]
    return sorted(path / name for name in names if "/." not in name)


def list_members(path: Path) -> list[str]:
    """Return the names of the files in a zip archive.

    Raises:
        DataError: E008, the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from None


def read_bytes(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes, by default all, of a file or member, gunzipped.

    Raises:
        DataError: E001, no such file or member; E002, no regular file; E003, no permission; E007,
            it grows too much; E008, it is damaged or encrypted.
        OSError: the disk fails.
    """
    file, member = split_member(path)
    if not os.path.isfile(file):
        is_other = os.path.exists(file)
        code, found = ("E002", "no regular file") if is_other else ("E001", "no such file")
        raise file_error(code, str(path), found, "a file", "check the path")
    try:
        with ExitStack() as stack:
            stack.enter_context(naming(path))
            raw = stack.enter_context(file.open("rb"))
            stream, packed = cast(IO[bytes], raw), file.stat().st_size
            if member:
                archive = stack.enter_context(zipfile.ZipFile(raw))
                stream = stack.enter_context(archive.open(member))
                packed = archive.getinfo(member).compress_size
            elif raw.peek(2)[:2] == b"\x1f\x8b":
                stream = cast(IO[bytes], stack.enter_context(gzip.open(raw)))
            most = max(EXPANSION_FLOOR_BYTES, EXPANSION * packed)
            content = stream.read(most + 1 if size < 0 else size)
    except KeyError:
        hint = f"it holds {', '.join(list_members(file)[:8])}"
        raise file_error("E001", str(path), "no such member", "a member", hint) from None
    except PermissionError:
        raise file_error("E003", str(path), "no permission to read it", "a file") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or an unknown compression
        raise _damaged(path, error) from None
    if len(content) > most:
        found, expected = f"more than {most:,} bytes after decompression", "images"
        raise file_error("E007", str(path), found, expected, "do not trust this file")
    return content


def find_kind(path: Path) -> Kind:
    """Return what a file is, looking into gzip.

    Raises:
        DataError: as `read_bytes`; E009, a zip archive in another one.
    """
    kind = recognise(read_bytes(path, HEAD_BYTES))
    if kind.form != "zip":
        return kind
    if not path.is_file():
        raise kind.refuse(path, "a file that is no archive")
    return recognise_zip(list_members(path))


def _damaged(path: Path, error: Exception) -> DataError:
    found = f"it cannot be decompressed ({error})"
    hint = "the copy is incomplete, damaged or encrypted: fetch it again, or unpack it"
    return file_error("E008", str(path), found, "a complete file", hint)
