"""Files and folders that appear whole or not at all, locks, and checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO

from fmnist_tf.errors import RunExistsError, UsageError, printable
from fmnist_tf.system import signals

_POLL_SECONDS = 0.2
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}(\.[^.]*)?$")
_STALE_SECONDS = 24 * 3600
_MAX_BYTES = 64 << 20


class NotAFileError(UsageError, OSError):
    """In a folder of ours is a link, a pipe, a device, or a file of absurd size.

    A command ends with 2; a cache, which computes anew what it cannot read, takes it for an
    OSError.
    """


def open_regular(path: Path, max_bytes: int = _MAX_BYTES) -> BufferedReader:
    """Open a regular file to read: not through a link in its place, and without waiting for a pipe.

    Raises:
        NotAFileError: it is something else, or larger.
        OSError: it is missing or cannot be opened.
    """
    file = os.fdopen(_open_regular(path, os.O_RDONLY), "rb")
    if (size := os.fstat(file.fileno()).st_size) > max_bytes:
        file.close()
        raise NotAFileError(f"{path}: expected at most {max_bytes:,} bytes, found {size:,}")
    return file


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return file.read(_MAX_BYTES)


def require_unlinked(path: Path) -> Path:
    """Return `path`, which need not exist.

    Raises:
        NotAFileError: it is a symbolic link.
    """
    if path.is_symlink():
        raise NotAFileError(
            f"{path}: expected no symbolic link, as none is followed in a run or a cache; delete it"
        )
    return path


def _open_regular(path: Path, flags: int) -> int:
    """Open a regular file that is no link, and return its descriptor."""
    require_unlinked(path)
    found = "what cannot be opened as one"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        found = "a folder, a pipe or a device"
    except OSError as error:  # a link that is there only now, a folder to write, a socket
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise NotAFileError(f"{path}: expected a file, found {found}")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of the file's bytes in lower-case hexadecimal digits."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def json_digest(content: object) -> str:
    """Return the SHA-256 of JSON content, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_target(flag: str, path: Path) -> None:
    """Check, before the work, that `replacing` will be able to write the file that `flag` names.

    Raises:
        UsageError: a folder or a device has this name, or no file can be created there.
    """
    if path.is_dir():
        raise UsageError(f"{flag} {path}: expected the name of a file, found a folder")
    if path.exists() and not path.is_file():
        # A rename would put a file in the place of /dev/stdout.
        raise UsageError(f"{flag} {path}: expected the name of a file, found a device or a pipe")
    _check_place(f"{flag} {path}", path.parent)


def check_folder(flag: str, path: Path) -> None:
    """Check that the folder that `flag` names can be written to, or created.

    Raises:
        UsageError: a file is in its place or in that of a folder above, or writing is forbidden.
    """
    _check_place(f"{flag} {path}", path)


def _check_place(where: str, path: Path) -> None:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"{where}: expected a folder, found {existing}, which is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{where}: expected a folder to write to; {existing} is not writable")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder created there becomes `path`.

    The last step is one rename, after the content has reached the disk: whatever kills the process
    or the power, `path` is the old or the new one, never a part. Several processes may write one
    path at once; the last to finish wins. On an error `path` stays as it was.

    Args:
        path: of a file, or of a folder that does not exist yet or is empty. Missing parents are
            created. A symbolic link is replaced; pass `path.resolve()` to replace what it names.
            The temporary path has the same suffix.

    Raises:
        OSError: nothing was created, the disk fails, or a folder that is not empty is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{_host_digest()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.stem}.tmp-{own}{path.suffix}")
    try:
        with naming(path):  # the error of a write has no name
            yield temporary
            for part in temporary.rglob("*"):
                _sync(part)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)  # otherwise a power cut can undo the rename
    finally:
        remove(temporary)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` from inside, which may be of a read or a write, the name of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def find_leftovers(folder: Path) -> list[Path]:
    """Return what processes that are no more were writing in `replacing`, right in `folder`."""
    found = ((_TEMPORARY.search(path.name), path) for path in folder.glob(".*.tmp-*"))
    return [path for match, path in found if match and _is_over(path, match[1], int(match[2]))]


def remove_leftovers(folder: Path) -> None:
    """Remove what `find_leftovers` finds."""
    for path in find_leftovers(folder):
        remove(path)


def _is_over(path: Path, host: str, pid: int) -> bool:
    """Return whether the process that was writing `path` has ended; elsewhere, after a day."""
    with suppress(FileNotFoundError):
        if host != _host_digest():
            return time.time() - path.lstat().st_mtime > _STALE_SECONDS
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return False


def _host_digest() -> str:
    """Return what is equal where processes see each other: host, and container on Linux."""
    name = socket.gethostname()
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(name.encode()):08x}"


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` in the end; see `replacing`."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        yield file


@contextmanager
def locked(folder: Path, *, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `folder` for this process alone, by flock(2) on the file `.lock` in it.

    The kernel releases the lock when the process ends, whatever ends it. The file stays, for if it
    were deleted two processes could each lock their own. It names who locked it last, as JSON.

    Args:
        folder: must exist.
        on_wait: what to do if another process holds the folder. None: raise. Otherwise it is
            called once, with the holder in words, and the lock is tried again until it is free or
            a signal stops this process.

    Raises:
        RunExistsError: another process holds the folder, and `on_wait` is None.
        NotAFileError: `.lock` is no file.
    """
    descriptor = _open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT)
    with open(descriptor, "r+b", buffering=0) as stream:
        is_told = False
        while not _try_lock(stream):
            holder = _describe_holder(stream)
            if on_wait is None:
                raise RunExistsError(
                    f"{folder} is in use by {holder}; wait until it ends, or choose another run"
                )
            if not is_told:
                on_wait(holder)
                is_told = True
            time.sleep(_POLL_SECONDS)
            signals.check()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with suppress(OSError):  # a full disk does not keep the lock from holding
            stream.truncate(0)
            stream.seek(0)
            stream.write(json.dumps(own).encode())
        yield


@contextmanager
def sharing(folder: Path) -> Iterator[Callable[[int], bool]]:
    """Yield a function that claims a numbered part of the work in `folder` for this process.

    It returns whether no other process has claimed the part. The kernel frees the parts of a
    process that ends: they are fcntl(2) locks on bytes of the file `.lock`, which network disks
    have too.

    Raises:
        NotAFileError: `.lock` is no file.
    """
    descriptor = _open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT)
    with open(descriptor, "r+b", buffering=0) as stream:

        def claim(number: int) -> bool:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):  # the two errors that POSIX allows
                return False
            return True

        yield claim


def _try_lock(stream: FileIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe_holder(stream: FileIO) -> str:
    """Return who wrote the lock file; the holder may be between locking and writing."""
    stream.seek(0)
    try:
        holder = json.loads(stream.read(1000))
        pid, host, since = (printable(str(holder[key])) for key in ("pid", "host", "since"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {pid} on {host} since {since}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
