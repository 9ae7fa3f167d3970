"""Downloads: verified before they count, bounded in time, safe against races and kills."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmnist_tf.data import downloads
from fmnist_tf.data.downloads import DownloadError, find_or_fetch, keras_home

BODY = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(BODY).hexdigest()
WRONG = hashlib.sha256(BODY[::-1]).hexdigest()


# pooch leaves the connection of a failed download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is one behaviour of a server."""

    def do_GET(self) -> None:
        behaviour = self.path.strip("/")
        self.server.requests.append(behaviour)
        if behaviour == "silent":
            self.server.over.wait(5)
            return
        self.send_response(404 if behaviour == "missing" else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if behaviour == "missing":
            return
        whole = len(BODY) if behaviour not in ("truncated", "stalled") else 100_000
        self.wfile.write(BODY[:: -1 if behaviour == "wrong" else 1][:whole])
        if behaviour == "stalled":
            self.wfile.flush()
            self.server.over.wait(5)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            pass  # the client hung up

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "READ_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "RETRIES", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.over = [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fetch(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, said: list[str]
) -> Callable[..., Path]:
    def fetch_behaviour(behaviour: str, digest: str = SHA256) -> Path:
        return find_or_fetch(
            server.url + behaviour,
            digest,
            cache_dir=tmp_path / "cache",
            download_dir=tmp_path / "own" / "downloads",
            say=said.append,
        )

    return fetch_behaviour


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_no_file_is_replaced(fetch, tmp_path) -> None:
    place = tmp_path / "own/downloads/ok"
    place.parent.mkdir(parents=True)
    for hinder in (os.mkfifo, os.mkdir, Path.touch):
        hinder(place)
        if place.is_file():
            os.truncate(place, 1 << 40)
        assert fetch("ok").read_bytes() == BODY
        place.unlink()


@pytest.mark.parametrize("digest", [SHA256, f"md5:{hashlib.md5(BODY).hexdigest()}"])
def test_a_file_is_fetched_once(server, fetch, tmp_path, said, capfd, digest) -> None:
    path = fetch("ok", digest)
    assert path.read_bytes() == BODY
    assert fetch("ok", digest) == path
    assert server.requests == ["ok"]
    assert said == [f"downloading {server.url}ok"]
    assert files_under(tmp_path) == ["own/downloads/ok"]
    assert capfd.readouterr() == ("", "")  # no progress bar where there is no terminal


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("wrong", f"expected {SHA256}, found {WRONG}"),
        ("truncated", "100000 bytes read"),
        ("missing", "404"),
        ("stalled", "timed out"),
        ("silent", "timed out"),
    ],
)
def test_a_failure_is_one_line_within_seconds(fetch, tmp_path, behaviour, message) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError) as error:
        fetch(behaviour)
    assert time.monotonic() - start < 2
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 74
    assert files_under(tmp_path) == []


def test_a_failed_download_is_tried_again(server, fetch, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "RETRIES", 1)
    with pytest.raises(DownloadError):
        fetch("missing")
    assert server.requests == ["missing"] * 2


def test_the_cache_is_used_and_never_written(server, fetch, tmp_path, said) -> None:
    cached = tmp_path / "cache" / "ok"
    cached.parent.mkdir()
    cached.write_bytes(BODY)
    assert fetch("ok") == cached
    assert said == []
    cached.write_bytes(BODY[::-1])
    own = fetch("ok")
    assert (own.read_bytes(), cached.read_bytes()) == (BODY, BODY[::-1])
    assert all(part in said[0] for part in (str(cached), SHA256, WRONG))
    own.write_bytes(b"altered")
    assert fetch("ok").read_bytes() == BODY
    assert server.requests == ["ok"] * 2


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_dead_network_is_named_at_once(tmp_path, monkeypatch, proxy) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
    url = "http://mirror.invalid/x" if proxy else "http://127.0.0.1:9/x"  # the discard port
    with pytest.raises(DownloadError, match=r"Connection refused.*no network"):
        find_or_fetch(url, SHA256, cache_dir=tmp_path, download_dir=tmp_path, say=print)


def test_a_hanging_address_look_up_is_bounded(tmp_path) -> None:
    """In a process of its own, whose end the look-up must not hold up either."""
    script = f"""
import os, socket, time
from pathlib import Path
from fmnist_tf.data import downloads
os.environ["no_proxy"] = "*"
socket.getaddrinfo = lambda *args, **kwargs: time.sleep(60)
downloads.CONNECT_SECONDS = 0.2
path = Path({str(tmp_path)!r})
url = "https://mirror.invalid/x"
downloads.find_or_fetch(url, "0", cache_dir=path, download_dir=path, say=print)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "no connection within 0.2 s" in done.stderr


def test_a_full_disk_is_not_called_a_network_failure(fetch, tmp_path) -> None:
    (tmp_path / "own").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="own"):
        fetch("ok")


def test_a_killed_download_leaves_nothing_that_counts(server, fetch, tmp_path) -> None:
    folder = tmp_path / "own" / "downloads"
    script = f"""
from pathlib import Path
from fmnist_tf.data.downloads import find_or_fetch
path = Path({str(folder)!r})
find_or_fetch({server.url + "stalled"!r}, {SHA256!r}, cache_dir=path, download_dir=path, say=print)
"""
    victim = subprocess.Popen([sys.executable, "-c", script], env={**os.environ})
    try:
        deadline = time.monotonic() + 20
        while not any(path.stat().st_size for path in folder.glob("*")):
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (folder / "stalled").exists()
    with pytest.raises(DownloadError):  # the partial file is not taken for the whole one
        fetch("stalled")
    assert list(folder.iterdir()) == []


def test_keras_home_follows_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for value, expected in (("/some/keras", "/some/keras"), ("", "/home/me/.keras")):
        monkeypatch.setenv("KERAS_HOME", value)
        assert keras_home() == Path(expected)
