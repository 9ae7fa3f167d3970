"""A file on disk -> its SHA-256 and its text in blocks of whole lines, in bounded memory.

Refused here: what is not a readable regular file, is too large, is another format, is a corrupt or
absurdly compressed gzip, or changes while it is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterator
from io import FileIO
from types import TracebackType

from fmnist_tf.data.csv.cells import LINE_BYTES
from fmnist_tf.errors import DataError, file_error

BLOCK_BYTES = 1 << 18
"""Bytes a read asks for; of 32 KiB to 1 MiB about the fastest (runs/LOG.md)."""
GZIP_RATIO = 200
"""Greatest decompressed / compressed size; images compress 5 to 10 times."""
GZIP_FLOOR_BYTES = 64 << 20
"""Decompressed bytes below which the ratio is not looked at."""

_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"PAR1", "a Parquet file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x00\x00\x08\x01", "an IDX label file"),
    (b"\x00\x00\x08\x03", "an IDX image file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)
_MARKUP = re.compile(rb"\s*(?:<!doctype|<html|<\?xml|<head|<body)", re.IGNORECASE)


class CsvBytes:
    """One regular file, opened once; a context manager.

    Attributes:
        path: the file as the user named it.
        size: bytes on disk.
        is_gzip: the bytes begin with gzip's magic number, whatever the name.
        notes: sentences on what was accepted, filled while reading.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        """Open and look at the first bytes.

        Args:
            path: any text.
            max_bytes: greatest size on disk, and after decompression.

        Raises:
            DataError: E001..E004, E006, E008, E009, E010, E043.
            OSError: the disk fails.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._raw = _open_regular(path)
        try:
            self._state = _state(os.fstat(self._raw.fileno()))
            self.size = self._state[0]
            if self.size == 0:
                raise file_error("E004", path, "the file is empty (0 bytes)", "a CSV of images")
            if self.size > max_bytes:
                raise file_error("E006", path, f"{self.size} bytes", f"at most {max_bytes} bytes")
            head = os.pread(self._raw.fileno(), 512, 0)
            self.is_gzip = head.startswith(b"\x1f\x8b")
            self.notes = ["decompressed as gzip"] if self.is_gzip else []
            if path.endswith(".gz") and not self.is_gzip:
                raise file_error(
                    "E008",
                    path,
                    f"the first bytes are {repr(head[:2])[1:]}",
                    "gzip's magic bytes 1f 8b, as the name ends in .gz",
                    "take .gz off the name if the file is plain text",
                )
            self._check_head(head)
        except BaseException:
            self._raw.close()
            raise
        self._read_bytes = 0
        self._text_bytes = 0

    def __enter__(self) -> CsvBytes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raw.close()

    def read_sha256(self) -> str:
        """Return the SHA-256 of the bytes as they lie on disk, in hexadecimal."""
        self._raw.seek(0)
        return hashlib.file_digest(self._raw, "sha256").hexdigest()

    def read_blocks(self) -> Iterator[bytes]:
        r"""Yield the text from the start, a UTF-8 byte-order mark left out, in whole lines.

        Each block ends in `\n` except perhaps the last. A line longer than `LINE_BYTES` comes as
        far as it was read and is the last block.

        Raises:
            DataError: E007, E008, E009, E010.
        """
        carry = b""
        started = False
        for chunk in self._read_text():
            carry += chunk
            if not started:
                if len(carry) < len(_BOM) and self._read_bytes < self.size:
                    continue
                started = True
                self._check_head(carry)
                if carry.startswith(_BOM):
                    self.notes.append("skipped a UTF-8 byte-order mark (E013)")
                    carry = carry[len(_BOM) :]
            cut = carry.rfind(b"\n") + 1
            if cut:
                yield carry[:cut]
                carry = carry[cut:]
            if len(carry) > LINE_BYTES + 1:
                yield carry
                return
        if carry:
            yield carry

    def estimate_text_bytes(self) -> int:
        """Return how long the whole text is, judged by the part that was read."""
        return self.size * self._text_bytes // max(self._read_bytes, 1)

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
        self._read_bytes = self._text_bytes = 0
        chunks = self._gunzip() if self.is_gzip else self._read_raw()
        for chunk in chunks:
            self._text_bytes += len(chunk)
            yield chunk

    def _read_raw(self) -> Iterator[bytes]:
        # No further than the size at opening, so that a file that grows is no endless one.
        while chunk := self._raw.read(min(BLOCK_BYTES, self.size - self._read_bytes)):
            self._read_bytes += len(chunk)
            yield chunk

    def _gunzip(self) -> Iterator[bytes]:
        """Inflate the members of RFC 1952 one after another, at most a block at a time."""
        inflater = zlib.decompressobj(wbits=31)
        members = 0
        for chunk in self._read_raw():
            # Output that is pending when the input runs out comes with the next chunk; a member's
            # last chunk ends in its trailer, which is not consumed before all output is out.
            while chunk:
                if inflater.eof:
                    inflater = zlib.decompressobj(wbits=31)
                try:
                    text = inflater.decompress(chunk, BLOCK_BYTES)
                except zlib.error as error:
                    found = f"gzip data that does not decompress ({error})"
                    if members:
                        found = "data after the end of the gzip stream"
                    raise self._gzip_error(found) from None
                chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                members += inflater.eof
                if text:
                    self._check_inflated(self._text_bytes + len(text))
                    yield text
        if not inflater.eof:
            raise self._gzip_error("a gzip stream that breaks off")

    def _gzip_error(self, found: str) -> DataError:
        hint = "the copy is incomplete or damaged: fetch it again"
        return file_error("E008", self.path, found, "a complete gzip file", hint)

    def _check_inflated(self, text_bytes: int) -> None:
        ratio = text_bytes / self._read_bytes
        if text_bytes > self._max_bytes:
            found = f"more than {self._max_bytes} bytes after decompression"
            raise file_error("E007", self.path, found, f"at most {self._max_bytes} bytes")
        if text_bytes > GZIP_FLOOR_BYTES and ratio > GZIP_RATIO:
            found = f"gzip data that grows {ratio:.0f} times"
            expected = f"images, which grow 5 to 10 times, at most {GZIP_RATIO}"
            raise file_error("E007", self.path, found, expected, "do not trust this file")

    def _check_head(self, head: bytes) -> None:
        """Refuse what is plainly not text in UTF-8."""
        csv = "a CSV of images"
        for magic, name in _FOREIGN:
            if head.startswith(magic):
                raise file_error("E009", self.path, name, csv, "export it as CSV")
        if _MARKUP.match(head):
            hint = "an error page was saved in place of the file: fetch it again"
            raise file_error("E009", self.path, "looks like HTML", csv, hint)
        for mark, name in (
            (b"\xff\xfe\x00\x00", "UTF-32"),
            (b"\x00\x00\xfe\xff", "UTF-32"),
            (b"\xff\xfe", "UTF-16"),
            (b"\xfe\xff", "UTF-16"),
        ):
            if head.startswith(mark):
                found = f"a {name} byte-order mark"
                raise file_error("E010", self.path, found, "text in UTF-8", "save it as UTF-8")


def _open_regular(path: str) -> FileIO:
    try:
        # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (ValueError, FileNotFoundError, NotADirectoryError):
        raise file_error(
            "E001", path, "no such file", "a CSV of images", "check the path"
        ) from None
    except PermissionError:
        raise file_error("E003", path, "no permission to read it", "a readable file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise file_error("E001", path, "a name too long to exist", "a CSV of images") from None
        if error.errno == errno.ELOOP:
            raise file_error("E043", path, "a loop of symbolic links", "a CSV of images") from None
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
