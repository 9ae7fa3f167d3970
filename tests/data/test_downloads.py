"""Downloads: verified before trusted, bounded in time and size, safe against races and kills."""

import functools
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from fmnist_tf.data import downloads
from fmnist_tf.data.downloads import DownloadError, fetch_verified, keras_home
from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import write_atomically

BODY = bytes(range(256)) * 1200  # more than one chunk
SHA256 = hashlib.sha256(BODY).hexdigest()
MAX_BYTES = 1 << 20


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is one behaviour of a server."""

    def do_GET(self):
        behaviour = self.path.strip("/")
        self.server.requests.append(behaviour)
        if behaviour == "missing":
            self.send_error(404, "Not Found")
            return
        if behaviour == "proxy":
            self.send_error(403, "Forbidden\x1b[2J by policy")
            return
        if behaviour == "garbage":
            self.wfile.write(b"SSH-2.0-server\r\n")
            return
        if behaviour == "silent":
            self.server.over.wait(5)
            return
        self.send_response(200)
        if behaviour not in ("unannounced", "endless"):
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if behaviour == "truncated":
            self.wfile.write(BODY[:1000])
        elif behaviour == "stall":
            self.wfile.write(BODY[:100_000])
            self.wfile.flush()
            self.server.over.wait(5)
        elif behaviour == "drip":
            for byte in BODY[:100]:
                if self.server.over.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))
        elif behaviour == "wrong":
            self.wfile.write(BODY[::-1])
        elif behaviour == "endless":
            while not self.server.over.is_set():
                self.wfile.write(BODY)
        else:
            self.wfile.write(BODY)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # the client hung up, as some of these tests want it to

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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
def fetch(server, tmp_path):
    """Fetch one behaviour of the server into `tmp_path/file.gz`, with short timeouts."""

    def fetch_behaviour(behaviour, **settings):
        settings = {
            "max_bytes": MAX_BYTES,
            "connect_seconds": 5,
            "stall_seconds": 5,
        } | settings
        destination = settings.pop("destination", tmp_path / "cache" / "file.gz")
        return fetch_verified(server.url + behaviour, destination, SHA256, **settings)

    return fetch_behaviour


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("behaviour", ["ok", "unannounced"])
def test_a_good_file_is_fetched_once(server, fetch, tmp_path, behaviour, capfd):
    path = fetch(behaviour)
    assert path == tmp_path / "cache" / "file.gz"
    assert path.read_bytes() == BODY
    assert fetch(behaviour) == path
    assert server.requests == [behaviour]
    assert files_under(tmp_path) == ["cache/file.gz"]
    assert capfd.readouterr() == ("", "")  # no progress where there is no terminal


@pytest.mark.parametrize(
    ("behaviour", "settings", "message"),
    [
        ("wrong", {}, f"has SHA-256 {hashlib.sha256(BODY[::-1]).hexdigest()}, expected {SHA256}"),
        ("truncated", {}, f"ended after 1000 of {len(BODY)} bytes"),
        ("missing", {}, "HTTP 404 Not Found"),
        ("proxy", {}, r"HTTP 403 Forbidden\x1b[2J by policy"),
        ("garbage", {}, "SSH-2.0-server"),
        ("stall", {"stall_seconds": 0.3}, "stalled for 0.3 s"),
        ("drip", {"stall_seconds": 0.3}, "stalled after "),
        ("silent", {"stall_seconds": 0.3}, "stalled for 0.3 s"),
        ("silent", {"connect_seconds": 0.3}, "no answer within 0.3 s"),
        ("ok", {"max_bytes": 1000}, f"{len(BODY)} bytes announced, at most 1000 expected"),
        ("endless", {"max_bytes": 400_000}, "more than the 400000 bytes expected"),
    ],
)
def test_what_goes_wrong_is_one_line_within_seconds(fetch, tmp_path, behaviour, settings, message):
    start = time.monotonic()
    with pytest.raises(DownloadError) as error:
        fetch(behaviour, **settings)
    assert time.monotonic() - start < 2
    assert message in str(error.value)
    assert str(error.value).startswith("cannot download http://127.0.0.1:")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 74
    assert files_under(tmp_path) == []


def test_a_refused_connection_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.gz"
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch_verified(url, tmp_path / "file.gz", SHA256, max_bytes=MAX_BYTES)


def test_an_unknown_host_is_named(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(DownloadError, match=r"address was not found \(no network\?\)"):
        fetch_verified("https://mirror.invalid/x", tmp_path / "x", SHA256, max_bytes=MAX_BYTES)


def test_a_hanging_address_look_up_is_bounded(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(5) and [])
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0\.2 s"):
        fetch_verified(
            "http://mirror.invalid/x",
            tmp_path / "x",
            SHA256,
            max_bytes=MAX_BYTES,
            connect_seconds=0.2,
        )
    assert time.monotonic() - start < 2
    over.set()


def test_a_hanging_connection_does_not_hold_up_the_end_of_the_process(server, tmp_path):
    script = f"""
        from pathlib import Path
        from fmnist_tf.data.downloads import fetch_verified
        fetch_verified({server.url + "silent"!r}, Path({str(tmp_path / "x")!r}), {SHA256!r},
                       max_bytes={MAX_BYTES}, connect_seconds=0.2)
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert time.monotonic() - start < 3  # the server is silent for five seconds
    assert "no answer within 0.2 s" in done.stderr


def test_an_existing_wrong_file_is_neither_used_nor_touched(server, fetch, tmp_path):
    destination = tmp_path / "file.gz"
    destination.write_bytes(BODY[:1000])
    with pytest.raises(UsageError) as error:
        fetch("ok", destination=destination)
    assert str(destination) in str(error.value)
    assert hashlib.sha256(BODY[:1000]).hexdigest() in str(error.value)
    assert SHA256 in str(error.value)
    assert "remove it" in str(error.value)
    assert destination.read_bytes() == BODY[:1000]
    assert server.requests == []


def test_a_full_disk_is_not_called_a_network_failure(fetch, monkeypatch):
    @functools.wraps(write_atomically)
    def on_a_full_disk(path):
        return open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(downloads, "write_atomically", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        fetch("ok")


def test_two_downloaders_race_to_the_same_file(fetch, server, tmp_path):
    start = threading.Barrier(2)
    paths = []

    def download():
        start.wait()
        paths.append(fetch("ok"))

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert paths[0].read_bytes() == BODY
    assert files_under(tmp_path) == ["cache/file.gz"]


def test_a_kill_in_mid_download_leaves_nothing_that_is_trusted(server, fetch, tmp_path):
    destination = tmp_path / "cache" / "file.gz"
    script = f"""
        from pathlib import Path
        from fmnist_tf.data.downloads import fetch_verified
        fetch_verified({server.url + "stall"!r}, Path({str(destination)!r}), {SHA256!r},
                       max_bytes={MAX_BYTES})
    """
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        deadline = time.monotonic() + 20
        partial: list[Path] = []
        while not partial and time.monotonic() < deadline:
            assert victim.poll() is None
            time.sleep(0.01)
            partial = [path for path in destination.parent.glob(".*") if path.stat().st_size]
        assert partial  # some of the body is on the disk
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not destination.exists()
    server.over.set()
    assert fetch("ok", destination=destination).read_bytes() == BODY
    assert server.requests == ["stall", "ok"]


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "new" / "file"
    with write_atomically(path) as file:
        file.write(b"first")

    def write_half():
        with write_atomically(path) as file:
            file.write(b"second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"first"
    assert files_under(tmp_path) == ["new/file"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/somewhere/keras", "/somewhere/keras"), ("", "/home/me/.keras"), (None, "/home/me/.keras")],
)
def test_keras_home_follows_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("HOME", "/home/me")
    if value is None:
        monkeypatch.delenv("KERAS_HOME", raising=False)
    else:
        monkeypatch.setenv("KERAS_HOME", value)
    assert keras_home() == Path(expected)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_progress_is_drawn_on_a_terminal(server, tmp_path):
    script = f"""
        from pathlib import Path
        from fmnist_tf.data.downloads import fetch_verified
        fetch_verified({server.url + "ok"!r}, Path({str(tmp_path / "x")!r}), {SHA256!r},
                       max_bytes={MAX_BYTES})
    """
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], stderr=follower, check=True)
        os.close(follower)
        assert b"ok: 0.3 of 0.3 MB" in screen.read(4096)
