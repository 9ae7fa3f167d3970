"""Published files, found in a cache or downloaded, and used only if their digest matches."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.system.files import file_digest, remove, remove_leftovers, replacing

CONNECT_SECONDS, READ_SECONDS = 5.0, 10.0
"""Limits on the connection, address look-up included, and on each wait for more bytes."""
RETRIES = 1
_MAX_BYTES = 4 << 30  # of a file that is looked at


class DownloadError(FmnistError):
    """The network or the server did not deliver the file: exit code 74, an input/output error."""

    exit_code = 74


def keras_home() -> Path:
    """Return the folder of Keras' own cache: KERAS_HOME if set, else `~/.keras`."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def find_or_fetch(
    url: str, digest: str, *, cache_dir: Path, download_dir: Path, say: Callable[[str], None]
) -> Path:
    """Return the path of a published file, downloaded if it is in neither folder.

    Proxies named in the environment are used. A progress bar is drawn if stderr is a terminal.

    Args:
        url: http or https; its last part is the file's name.
        digest: SHA-256, 64 hexadecimal digits; or `md5:` and 32, if the publisher states only that.
        cache_dir: another program's cache, never written to.
        download_dir: where it is downloaded to, and looked for after `cache_dir`.
        say: takes a line for a file that is not used, and for a download.

    Raises:
        DownloadError: it cannot be downloaded, or what came has another digest.
    """
    name = url.rsplit("/", 1)[-1]
    algorithm, _, expected = digest.rpartition(":")
    for path in (cache_dir / name, download_dir / name):
        if path.is_file() and path.stat().st_size <= _MAX_BYTES:
            found = file_digest(path, algorithm or "sha256")
            if found == expected:
                return path
            say(f"{path} is not used: expected {digest}, found {found} (a broken download?)")
    import pooch
    import requests

    say(f"downloading {url}")
    _require_connection(url)
    remove_leftovers(download_dir)
    remove(download_dir / name)
    fetch = pooch.HTTPDownloader(
        timeout=(CONNECT_SECONDS, READ_SECONDS), progressbar=sys.stderr.isatty()
    )
    for n_left in reversed(range(1 + RETRIES)):
        try:
            with replacing(download_dir / name) as temporary:
                fetch(url, str(temporary), None)
                if (found := file_digest(temporary, algorithm or "sha256")) != expected:
                    raise ValueError(f"expected {digest}, found {found}")
            break
        except (requests.RequestException, ValueError) as error:
            if not n_left:
                reason = printable(str(error), 300)
                raise DownloadError(f"cannot download {url}: {reason}") from None
    return download_dir / name


def _require_connection(url: str) -> None:
    """Connect once to the server or its proxy, in a thread that can be left behind.

    A time limit of a socket does not cover the address look-up, and counts anew for each address.
    """
    from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    parts = urlsplit(prepend_scheme_if_needed(proxy, "http") if proxy else url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    problem: str | None = f"no connection within {CONNECT_SECONDS:g} s"

    def connect() -> None:
        nonlocal problem
        try:
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
            problem = None
        except OSError as error:
            problem = str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if problem:
        raise DownloadError(f"cannot download {url}: {problem} ({parts.hostname}; no network?)")
