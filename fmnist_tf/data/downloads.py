"""A file known by its digest, fetched once, and never trusted before it is verified.

In: a URL, a destination and the digest the file must have. Out: the path of a file that has it,
or one clear error within seconds. This module must not know what the files contain.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fmnist_tf.errors import FmnistError, UsageError, printable
from fmnist_tf.system.files import file_digest, write_atomically

CHUNK_BYTES = 1 << 18
# A connection that moves less than this in a whole stall window is as good as dead.
STALL_BYTES = 1024


class DownloadError(FmnistError):
    """The network or the server did not deliver the file: exit code 74, an input/output error."""

    exit_code = 74


def keras_home() -> Path:
    """Return the folder of Keras' own cache: KERAS_HOME when set, else `~/.keras`."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def _split_digest(digest: str) -> tuple[str, str, str]:
    """Return the algorithm, its written name and the hexadecimal digits of a digest."""
    algorithm, _, digits = digest.rpartition(":")
    name = {"": "SHA-256", "md5": "MD5"}[algorithm]
    return algorithm or "sha256", name, digits


def find_or_fetch(
    url: str,
    digest: str,
    *,
    cache_dir: Path,
    download_dir: Path,
    max_bytes: int,
    say: Callable[[str], None],
) -> Path:
    """Return the published file from a cache that others own, else from our own downloads.

    Args:
        url: where the file is published; its last part is the file's name.
        digest: as for `fetch_verified`.
        cache_dir: looked into and never written; a wrong file there is named and left alone.
        download_dir: where it is downloaded to, unless it is there already.
        max_bytes: as for `fetch_verified`.
        say: hears of a wrong file and of a download.

    Raises:
        DownloadError: the file is in neither place and cannot be downloaded.
        UsageError: the file in `download_dir` is damaged.
    """
    algorithm, name, expected = _split_digest(digest)
    cached = cache_dir / url.rsplit("/", 1)[-1]
    if cached.is_file():
        found = file_digest(cached, algorithm)
        if found == expected:
            return cached
        say(
            f"{printable(str(cached), 200)} is not used: {name} {found}, expected {expected} "
            "(a broken download?)"
        )
    destination = download_dir / cached.name
    if not destination.exists():
        say(f"downloading {url}")
    return fetch_verified(url, destination, digest, max_bytes=max_bytes)


def fetch_verified(
    url: str,
    destination: Path,
    digest: str,
    *,
    max_bytes: int,
    connect_seconds: float = 10.0,
    stall_seconds: float = 10.0,
) -> Path:
    """Return `destination` once it holds the file with this digest, downloading it if absent.

    Proxies named in the environment are used, as urllib does. Progress is drawn on stderr when
    that is a terminal.

    Args:
        url: where the file is published, http or https.
        destination: the file's place; an existing file is used only if its digest is right, and
            is neither overwritten nor removed if it is not.
        digest: a SHA-256, 64 hexadecimal digits; or `md5:` and 32, where its publisher states no
            better one.
        max_bytes: a longer body is refused.
        connect_seconds: bound on everything until the answer's headers: address look-up,
            connection, proxy, TLS and redirects together.
        stall_seconds: the body must move by at least `STALL_BYTES` in each such span.

    Raises:
        UsageError: `destination` exists and is another file.
        DownloadError: no network, no such file, a stalled or truncated body, or a wrong file.
        OSError: the disk does not take the file.
    """
    algorithm, name, expected = _split_digest(digest)
    if destination.exists():
        found = file_digest(destination, algorithm)
        if found == expected:
            return destination
        raise UsageError(
            f"{printable(str(destination), 200)}: {name} {found}, expected {expected}: damaged, or "
            "another file. It is not used. hint: remove it, and it is downloaded afresh"
        )
    with write_atomically(destination) as file:
        hasher = hashlib.new(algorithm)
        _receive(url, file, hasher.update, max_bytes, connect_seconds, stall_seconds)
        if (found := hasher.hexdigest()) != expected:
            raise DownloadError(
                f"cannot download {printable(url, 200)}: what came has {name} {found}, expected "
                f"{expected}; nothing was kept"
            )
    return destination


def _receive(
    url: str,
    file: BinaryIO,
    digest: Callable[[bytes], None],
    max_bytes: int,
    connect_seconds: float,
    stall_seconds: float,
) -> None:
    """Copy the body of `url` into `file` and past `digest`."""
    n_received = 0
    with _network_errors_named(url, stall_seconds):
        response = _open_within(url, connect_seconds, stall_seconds)
    with response, _progress(url.rsplit("/", 1)[-1]) as show:
        n_announced = response.length  # None when the server does not say
        if n_announced is not None and n_announced > max_bytes:
            raise _failed(url, f"{n_announced} bytes announced, at most {max_bytes} expected")
        window_end, window_floor = time.monotonic() + stall_seconds, STALL_BYTES
        while True:
            with _network_errors_named(url, stall_seconds):
                chunk = response.read1(CHUNK_BYTES)
            if not chunk:
                break
            n_received += len(chunk)
            if n_received > max_bytes:
                raise _failed(url, f"more than the {max_bytes} bytes expected")
            file.write(chunk)
            digest(chunk)
            show(n_received, n_announced)
            if (now := time.monotonic()) >= window_end:
                if n_received < window_floor:
                    raise _failed(url, f"stalled after {n_received} bytes")
                window_end, window_floor = now + stall_seconds, n_received + STALL_BYTES
    if n_announced is not None and n_received != n_announced:
        raise _failed(url, f"the connection ended after {n_received} of {n_announced} bytes")


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Draw one line on stderr that is wiped at the end; nothing where stderr is no terminal."""
    screen = sys.stderr if sys.stderr.isatty() else None

    def show(n_received: int, n_announced: int | None) -> None:
        if screen:
            whole = f" of {n_announced / 1e6:.1f}" if n_announced else ""
            screen.write(f"\r\033[K{name}: {n_received / 1e6:.1f}{whole} MB")
            screen.flush()

    try:
        yield show
    finally:
        if screen:
            screen.write("\r\033[K")
            screen.flush()


def _open_within(
    url: str, connect_seconds: float, stall_seconds: float
) -> http.client.HTTPResponse:
    """Open `url` in a thread that can be left behind.

    The address look-up knows no timeout, and a socket's timeout counts anew for each address of a
    host and each redirect; only waiting from outside bounds them all.
    """
    outcome: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()

    def open_url() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=stall_seconds)
            outcome.put(cast(http.client.HTTPResponse, response))
        except Exception as error:  # handed to the waiting thread, which raises it
            outcome.put(error)

    threading.Thread(target=open_url, daemon=True).start()
    try:
        answer = outcome.get(timeout=connect_seconds)
    except queue.Empty:
        raise _failed(url, f"no answer within {connect_seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _network_errors_named(url: str, stall_seconds: float) -> Iterator[None]:
    """Turn what the network raises into a `DownloadError` of one line.

    Only network calls stand inside: a full disk raises OSError too and must stay one.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed(url, f"HTTP {error.code} {printable(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise _failed(url, f"stalled for {stall_seconds:g} s") from None
        if isinstance(cause, socket.gaierror):
            raise _failed(url, "the host's address was not found (no network?)") from None
        raise _failed(url, printable(str(cause) or type(cause).__name__, 120)) from None


def _failed(url: str, reason: str) -> DownloadError:
    return DownloadError(f"cannot download {printable(url, 200)}: {reason}")
