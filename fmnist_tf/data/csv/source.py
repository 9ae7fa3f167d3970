"""A file on disk -> its SHA-256 and its text in bounded blocks, decompressed.

Refused here: what is not a readable regular file, is too large, is another format, is corrupt or
absurdly compressed, or changes while it is read.
"""

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
from collections.abc import Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import IO, Self, cast

from fmnist_tf.data.kinds import HEAD_BYTES, ZIP, recognise, recognise_zip
from fmnist_tf.errors import DataError, file_error
from fmnist_tf.system.files import naming

BLOCK_BYTES = 1 << 18
"""Largest piece of text; of 32 KiB to 1 MiB about the fastest (runs/LOG.md)."""
EXPANSION = 200
"""Greatest decompressed / compressed size; images compress 5 to 10 times."""
EXPANSION_FLOOR_BYTES = 64 << 20
"""Decompressed bytes below which the ratio is not looked at."""

_CSV = "a CSV of images"
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\x1a"  # Ctrl-Z ends a text file of DOS
_COMPRESSED = ("gzip", "bzip2", "xz", "zip")
# What the standard library's decompressors raise on damaged data.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, ValueError)
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


class TextFile:
    """One regular file of text, perhaps compressed, opened once; a context manager.

    Attributes:
        path: the file as the user named it.
        size: bytes on disk.
        notes: sentences on what was accepted, filled while reading.
    """

    def __init__(self, path: str, max_bytes: int, member: str | None = None) -> None:
        """Open and look at the first bytes.

        Args:
            path: any text.
            max_bytes: greatest size on disk, and after decompression.
            member: the file of a zip archive to read; None: its only file.

        Raises:
            DataError: E001..E004, E006..E010, E043.
            OSError: the disk fails.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._member = member
        with ExitStack() as stack:
            self._raw = stack.enter_context(_open_regular(path))
            self._state = _state(os.fstat(self._raw.fileno()))
            self.size = self._state[0]
            if self.size == 0:
                raise file_error("E004", path, "the file is empty (0 bytes)", _CSV)
            if self.size > max_bytes:
                raise file_error("E006", path, f"{self.size} bytes", f"at most {max_bytes} bytes")
            head = os.pread(self._raw.fileno(), HEAD_BYTES, 0)
            form = recognise(head).form
            self._kind = form if form in _COMPRESSED else ""
            self.notes = [f"decompressed as {self._kind}"] if self._kind else []
            if path.endswith(".gz") and self._kind != "gzip":
                raise file_error(
                    "E008",
                    path,
                    f"the first bytes are {repr(head[:2])[1:]}",
                    "gzip's magic bytes 1f 8b, as the name ends in .gz",
                    "take .gz off the name if the file is plain text",
                )
            if not self._kind:
                self._check_head(head)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def read_sha256(self) -> str:
        """Return the SHA-256 of the bytes as they lie on disk, in hexadecimal."""
        self._raw.seek(0)
        with naming(Path(self.path)):
            return hashlib.file_digest(self._raw, "sha256").hexdigest()

    def read_blocks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the text in pieces of at most `BLOCK_BYTES`.

        A UTF-8 byte-order mark and blank lines at the end are left out.

        Args:
            start: bytes of text, after the mark, to leave out.

        Raises:
            DataError: E007, E008, E009, E010.
        """
        chunks = self._read_text()
        first = next(chunks, b"")
        self._check_head(first)
        if first.startswith(_BOM):
            self._note("skipped a UTF-8 byte-order mark (E013)")
            start += len(_BOM)
        blank = b""  # not yet known to be followed by anything
        chunk: bytes | None = first
        while chunk:
            skipped, chunk = chunk[:start], chunk[start:]
            start -= len(skipped)
            kept = chunk.rstrip(_BLANK)
            if kept:
                for piece in (blank, kept):
                    if piece:
                        yield piece
                blank = b""
            blank += chunk[len(kept) :]
            if len(blank) > BLOCK_BYTES:
                yield blank
                blank = b""
            chunk = next(chunks, None)
        if b"\n" in blank:
            yield b"\n"
        else:
            self._note("the last line has no line end (E015)")

    def estimate_text_bytes(self, text_bytes: int) -> int:
        """Return how long the whole text is, judged by its first `text_bytes`, just read."""
        return self.size * text_bytes // max(self._raw.tell(), 1) if self._kind else self.size

    def check_unchanged(self) -> None:
        """Compare size, time of change and inode with those at opening.

        Raises:
            DataError: E041.
        """
        try:
            now = _state(os.stat(self.path))
        except OSError:
            now = None
        if now != self._state or _state(os.fstat(self._raw.fileno())) != self._state:
            raise file_error(
                "E041",
                self.path,
                "the file changed or was replaced while it was read",
                "a file at rest",
                "wait until whatever writes it has finished, then start again",
            )

    def _read_text(self) -> Iterator[bytes]:
        self._raw.seek(0)
        text_bytes = 0
        with ExitStack() as stack:
            stack.enter_context(naming(Path(self.path)))
            try:
                file = self._decompress(stack)
                while chunk := file.read(BLOCK_BYTES):
                    text_bytes += len(chunk)
                    # No further than the size at opening, so that a file that grows does end.
                    if not self._kind and text_bytes > self.size:
                        return
                    self._check_expansion(text_bytes)
                    yield chunk
            except OSError as error:
                if error.errno not in (None, errno.EINVAL):  # a wrong place in a zip archive
                    raise
                raise self._damaged(error) from None
            except _DAMAGE as error:
                raise self._damaged(error) from None

    def _decompress(self, stack: ExitStack) -> IO[bytes]:
        if self._kind == "gzip":
            return cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=self._raw)))
        if self._kind == "bzip2":
            return stack.enter_context(bz2.BZ2File(self._raw))
        if self._kind == "xz":
            return stack.enter_context(lzma.LZMAFile(self._raw))
        if self._kind == "zip":
            return stack.enter_context(self._open_member(stack))
        return self._raw

    def _open_member(self, stack: ExitStack) -> IO[bytes]:
        """Open the one CSV of a zip archive."""
        try:
            archive = stack.enter_context(zipfile.ZipFile(self._raw))
        except zipfile.BadZipFile:
            found = "a zip archive or an Excel workbook that is damaged"
            raise file_error("E009", self.path, found, _CSV, "fetch the file again") from None
        names = archive.namelist()
        if (kind := recognise_zip(names)) is not ZIP:
            raise kind.refuse(self.path, _CSV)
        if self._member is not None:
            members = [name for name in names if name == self._member]
        else:
            members = csv_members(names)
        if len(members) != 1:
            found = f"a zip archive of {len(names)} files: {', '.join(names[:5])}"
            hint = "unpack it and name the file"
            raise file_error("E009", self.path, found, "a zip archive of one CSV", hint)
        info = archive.getinfo(members[0])
        if info.flag_bits & 1:
            hint = "unpack it with its password"
            raise file_error("E009", self.path, "an encrypted zip archive", _CSV, hint)
        try:
            return archive.open(info)
        except NotImplementedError:
            found = "a zip archive of an unknown compression"
            raise file_error("E009", self.path, found, _CSV, "unpack it") from None

    def _damaged(self, error: Exception) -> DataError:
        found = f"{self._kind} data that does not decompress ({error})"
        hint = "the copy is incomplete or damaged: fetch it again"
        return file_error("E008", self.path, found, f"a complete {self._kind} file", hint)

    def _check_expansion(self, text_bytes: int) -> None:
        if text_bytes > self._max_bytes:
            found = f"more than {self._max_bytes} bytes after decompression"
            raise file_error("E007", self.path, found, f"at most {self._max_bytes} bytes")
        if self._kind and text_bytes > EXPANSION_FLOOR_BYTES:
            ratio = text_bytes / max(self._raw.tell(), 1)
            if ratio > EXPANSION:
                found = f"{self._kind} data that grows {ratio:.0f} times"
                expected = f"images, which grow 5 to 10 times, at most {EXPANSION}"
                raise file_error("E007", self.path, found, expected, "do not trust this file")

    def _check_head(self, head: bytes) -> None:
        """Refuse what is plainly not text in UTF-8."""
        if (kind := recognise(head)).form != "text":
            raise kind.refuse(self.path, _CSV)
        for mark, name in _MARKS:
            if head.startswith(mark):
                found = f"a {name} byte-order mark"
                raise file_error("E010", self.path, found, "text in UTF-8", "save it as UTF-8")

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def csv_members(names: list[str]) -> list[str]:
    """Return the files of a zip archive that could be a CSV, by their names."""
    ends = (".csv", ".txt", ".tsv", ".arff", ".data")
    return [name for name in names if name.lower().endswith(ends) and "__MACOSX" not in name]


def _open_regular(path: str) -> FileIO:
    try:
        # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (ValueError, FileNotFoundError, NotADirectoryError):
        raise file_error("E001", path, "no such file", _CSV, "check the path") from None
    except PermissionError:
        raise file_error("E003", path, "no permission to read it", "a readable file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise file_error("E001", path, "a name too long to exist", _CSV) from None
        if error.errno == errno.ELOOP:
            raise file_error("E043", path, "a loop of symbolic links", _CSV) from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise file_error("E002", path, "a socket or device", "a regular file") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise file_error("E002", path, kind, "a regular file")
    return open(descriptor, "rb", buffering=0)


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
