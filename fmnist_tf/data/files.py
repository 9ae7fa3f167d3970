"""Files as bytes, decompressed, on disk or in a zip archive: `archive.zip/train.csv` is a path."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import IO, Any, Self

from fmnist_tf.data.kinds import HEAD_BYTES, Kind, recognise, recognise_zip
from fmnist_tf.errors import DataError, file_error
from fmnist_tf.system.files import naming

MAX_BYTES = 64 << 30
"""Greatest size of a file, on disk and decompressed."""
BLOCK_BYTES = 1 << 18
"""Largest piece that is read; of 32 KiB to 1 MiB about the fastest (runs/LOG.md)."""
EXPANSION, EXPANSION_FLOOR_BYTES = 200, 64 << 20
"""Greatest decompressed / compressed size, from this many bytes on; images have 5 to 10."""

_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open
}  # fmt: skip
# What the standard library's decompressors raise on damaged or encrypted data.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, ValueError,
           RuntimeError)  # fmt: skip
_REFUSED = {
    errno.ENOENT: ("E001", "no such file"),
    errno.ENOTDIR: ("E001", "no such file"),
    errno.ENAMETOOLONG: ("E001", "a name too long to exist"),
    errno.EACCES: ("E003", "no permission to read it"),
    errno.ELOOP: ("E043", "a loop of symbolic links"),
    errno.ENXIO: ("E002", "a socket or device"),
    errno.ENODEV: ("E002", "a socket or device"),
}


class File:
    """One regular file, or a member of a zip archive, opened once; a context manager.

    Of an archive that holds one file and no other, this file is read. `kind` is that of the
    content, decompressed; `notes` say what was done to read it. DataError: E001..E003, E006..E009,
    E043.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._on_disk, self._named = split_member(Path(path))
        with ExitStack() as stack:
            self._raw = stack.enter_context(_open_regular(self.path, self._on_disk))
            self._state = _state(os.fstat(self._raw.fileno()))
            if (size := self._state[0]) > MAX_BYTES:
                raise file_error("E006", self.path, f"{size} bytes", f"at most {MAX_BYTES} bytes")
            head = os.pread(self._raw.fileno(), HEAD_BYTES, 0)
            self.kind, self._member = recognise(head), ""
            self._packing = form = self.kind.form
            if self.path.endswith(".gz") and form != "gzip" and not self._named:
                found, hint = f"the first bytes {head[:2]!r}", "take .gz off a plain file's name"
                expected = "gzip's magic bytes 1f 8b, as the name ends in .gz"
                raise file_error("E008", self.path, found, expected, hint)
            if form == "zip":
                self._member = self._find_member(stack)
            elif self._named:
                raise file_error("E001", self.path, "no such file", "an existing file")
            if form in _OPENERS or self._member:
                self.kind = recognise(next(self.read_blocks(HEAD_BYTES), b""))
            else:
                self._packing = ""
            self.notes = [f"decompressed as {self._packing}"] if self._packing else []
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and issubclass(kind, DataError):
                self.check_unchanged()  # the faults of a half-written file would mislead
        finally:
            self._open.close()

    def read_sha256(self) -> str:
        """Return the SHA-256 of the bytes on disk; of an archive and a member named in it."""
        self._raw.seek(0)
        with naming(self._on_disk):
            digest = hashlib.file_digest(self._raw, "sha256").hexdigest()
        if self._named:
            digest = hashlib.sha256(f"{digest} {self._named}".encode()).hexdigest()
        return digest

    def read_blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield the content, decompressed, in pieces of at most `size` bytes; E007, E008."""
        n_bytes = 0
        with ExitStack() as stack:
            stack.enter_context(naming(self._on_disk))
            try:
                stream = self._decompress(stack)
                while block := stream.read(size):
                    n_bytes += len(block)
                    # No further than the size at opening, so that a file that grows does end.
                    if not self._packing and n_bytes > self._state[0]:
                        return
                    self._check_growth(n_bytes)
                    yield block
            except OSError as error:
                if error.errno not in (None, errno.EINVAL):  # a wrong place in a zip archive
                    raise
                raise self._damaged(error) from None
            except _DAMAGE as error:
                raise self._damaged(error) from None

    def estimate_bytes(self, n_read: int) -> int:
        """Return how long the whole content is, judged by the first `n_read` bytes, just read."""
        size = self._state[0]
        return size * n_read // max(self._packed(), 1) if self._packing else size

    def check_unchanged(self) -> None:
        """Compare size, time of change and inode with those at opening; E041."""
        try:
            now = _state(os.stat(self._on_disk))
        except OSError:
            now = None
        if now != self._state or _state(os.fstat(self._raw.fileno())) != self._state:
            found = "the file changed or was replaced while it was read"
            hint = "wait until whatever writes it has finished, then start again"
            raise file_error("E041", self.path, found, "a file at rest", hint) from None

    def _find_member(self, stack: ExitStack) -> str:
        """Return the member to read, or "" and set the kind of the archive."""
        try:
            self._archive = stack.enter_context(zipfile.ZipFile(self._raw))
        except zipfile.BadZipFile as error:
            raise self._damaged(error, "E008" if self._named else "E009") from None
        names = [info.filename for info in self._archive.infolist() if not info.is_dir()]
        if self._named and self._named not in names:
            hint = f"it holds {', '.join(names[:8])}"
            raise file_error("E001", self.path, "no such member", "a member", hint)
        self.kind = recognise_zip(names)
        visible = [name for name in names if not is_hidden(name)]
        if self._named or (self.kind.form in ("zip", "npz") and len(visible) == 1):
            return self._named or visible[0]
        if self.kind.form == "zip":
            shown = ", ".join(visible[:5])
            self.kind = replace(self.kind, name=f"a zip archive of {len(visible)} files: {shown}")
        return ""

    def _decompress(self, stack: ExitStack) -> IO[bytes]:
        self._raw.seek(0)
        if self._member:
            return stack.enter_context(self._archive.open(self._member))
        if self._packing:
            stream: IO[bytes] = stack.enter_context(_OPENERS[self._packing](self._raw))
            return stream
        return self._raw

    def _packed(self) -> int:
        """Return the bytes on disk of what was read so far."""
        if self._member:
            return self._archive.getinfo(self._member).compress_size
        return self._raw.tell()

    def _check_growth(self, n_bytes: int) -> None:
        if n_bytes > MAX_BYTES:
            found = f"more than {MAX_BYTES} bytes after decompression"
            raise file_error("E007", self.path, found, f"at most {MAX_BYTES} bytes")
        if self._packing and n_bytes > max(EXPANSION_FLOOR_BYTES, EXPANSION * self._packed()):
            found = f"{self._packing} data that grows more than {EXPANSION} times"
            raise file_error("E007", self.path, found, "images", "do not trust this file")

    def _damaged(self, error: Exception, code: str = "E008") -> DataError:
        found = f"{self._packing} data that does not decompress ({error})"
        hint = "the copy is incomplete, damaged or encrypted: fetch it again, or unpack it"
        return file_error(code, self.path, found, "a complete file", hint)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file or member, decompressed; errors are those of `File`."""
    with File(path) as file:
        return b"".join(file.read_blocks())


def find_kind(path: Path) -> Kind:
    """Return what a file or member is, decompressed; errors are those of `File`."""
    with File(path) as file:
        return file.kind


def split_member(path: Path) -> tuple[Path, str]:
    """Return the file on disk, and the name of the member inside it or ""."""
    for parent in path.parents:
        if os.path.isfile(parent):
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def is_there(path: Path) -> bool:
    """Return whether a file, a folder, or a member of an archive has this path."""
    file, member = split_member(path)
    return path in list_files(file) if member else file.exists()


def list_files(path: Path) -> list[Path]:
    """Return the files of a folder, or of an archive and all folders in it, but no hidden ones."""
    if not path.is_file():
        return sorted(file for file in path.glob("[!.]*") if file.is_file())
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise file_error("E008", str(path), str(error), "a complete zip archive") from None
    return sorted(path / name for name in names if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Return whether a member of an archive is a hidden file, such as macOS adds."""
    return name.startswith("__MACOSX") or f"/{name}".count("/.") > 0


def _open_regular(path: str, file: Path) -> FileIO:
    try:
        # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (ValueError, OSError) as error:  # ValueError: NUL in the path
        number = error.errno if isinstance(error, OSError) else errno.ENOENT
        if number not in _REFUSED:
            raise
        code, found = _REFUSED[number]
        raise file_error(code, path, found, "a readable file", "check the path") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise file_error("E002", path, found, "a regular file")
    return open(descriptor, "rb", buffering=0)


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
