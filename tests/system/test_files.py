"""A path is the old or the new one, whatever kills the writer; a lock holds one process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.system.files import (
    check_folder,
    check_target,
    locked,
    remove_leftovers,
    replacing,
    write_atomically,
)
from fmnist_tf.system.signals import StoppedError, listening


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (".", "found a folder"),
        ("/dev/null", "found a device or a pipe"),
        ("pipe", "found a device or a pipe"),
        ("file/x/y", "which is a file"),
        pytest.param(
            "closed/x", "not writable", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root")
        ),
    ],
)
def test_what_cannot_become_a_file_is_refused(name: str, found: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("file").touch()
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=f"^--out {re.escape(name)}: .*{found}"):
        check_target("--out", Path(name))


def test_checks_create_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").touch()
    for name in ("old", "new", "some/folder/new"):
        check_target("--out", Path(name))
    check_folder("--runs-dir", Path("some/folder"))
    assert os.listdir() == ["old"]


def test_a_link_is_replaced_and_not_what_it_names(tmp_path: Path) -> None:
    file, link = tmp_path / "new/file", tmp_path / "link"
    link.symlink_to(file)
    with write_atomically(link.resolve()) as stream:
        stream.write(b"old")
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert (link.is_symlink(), file.read_text(), link.read_text()) == (False, "old", "new")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "part").touch()
        raise NotADirectoryError

    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass  # nothing is created
    with pytest.raises(TypeError), write_atomically(tmp_path / "a") as file:
        file.write("no bytes")  # type: ignore[arg-type]
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "folder") as folder:
        fill(folder)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_appears_whole_and_replaces_no_content(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()  # an empty one may be there
    for is_free in (True, False):
        try:
            with replacing(target) as folder:
                (folder / "variables").mkdir(parents=True)
                (folder / "variables/x").write_text(f"{is_free}")
                assert list(target.iterdir()) == ([] if is_free else [target / "variables"])
        except OSError:
            assert not is_free
    assert (target / "variables/x").read_text() == "True"
    assert os.listdir(tmp_path) == ["out"]


def start(script: str, *words: object) -> subprocess.Popen[str]:
    """Start a process with the primitives in reach; its signals come from `die`."""
    begin = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from fmnist_tf.system import signals\n"
        "from fmnist_tf.system.files import locked, replacing\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", begin + script, *map(str, words)], stdin=pipe, stdout=pipe, text=True
    )


@pytest.mark.parametrize(
    ("moment", "survivor"), [("fsync", "old"), ("replace", "old"), ("replaced", "new")]
)
def test_a_killed_writer_leaves_the_old_or_the_new_file(
    moment: str, survivor: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "moment, replace = sys.argv[2], os.replace\n"
        "if moment == 'replaced': os.replace = lambda a, b: (replace(a, b), die())\n"
        "else: setattr(os, moment, die)\n"
        "with replacing(Path(sys.argv[1])) as temporary: temporary.write_text('new')\n"
    )
    with start(script, path, moment) as process:
        assert process.wait() == -signal.SIGKILL
    assert path.read_text() == survivor
    with replacing(tmp_path / "other") as ours:
        ours.touch()
        elsewhere = tmp_path / f".new.tmp-00000000-{process.pid}-00000000"
        elsewhere.touch()
        remove_leftovers(tmp_path)
        assert {ours, elsewhere, path} == set(tmp_path.iterdir())
        os.utime(elsewhere, (0, 0))
        remove_leftovers(tmp_path)
        assert {ours, path} == set(tmp_path.iterdir())


def test_content_is_synced_before_its_name(tmp_path: Path, monkeypatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    with replacing(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "x").touch()
    assert steps == ["x", folder.name, "replace", tmp_path.name]


HOLD = "with locked(Path(sys.argv[1])):\n    print('ready', flush=True)\n    sys.stdin.readline()\n"
WAIT = (
    "with signals.listening(), locked(Path(sys.argv[1]), on_wait=lambda h: print(h, flush=True)):\n"
    "    print('mine', flush=True)\n"
)


def test_a_held_folder_is_refused_until_its_holder_is_killed(tmp_path: Path) -> None:
    with start(HOLD, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(RunExistsError, match=f"process {process.pid} on .* since 20") as caught:
            with locked(tmp_path):
                pass
        assert caught.value.exit_code == 3
        process.kill()
    with locked(tmp_path):
        lock = tmp_path / ".lock"
        for content in (b"{", b"{}", b"[" * 2000):
            lock.write_bytes(content)
            with pytest.raises(RunExistsError, match="another process"), locked(tmp_path):
                pass
    with locked(tmp_path):
        assert json.loads(lock.read_bytes())["pid"] == os.getpid()
    assert lock.exists()


def test_who_waits_is_told_once_and_gets_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path), start(WAIT, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"process {os.getpid()} on ")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() != 0  # StoppedError, which nobody catches there
        assert process.stdout.read() == ""
    with start(HOLD, tmp_path) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with start(WAIT, tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"process {holder.pid}")
            holder.communicate("\n")
            assert process.communicate()[0] == "mine\n"


def test_a_full_disk_does_not_keep_the_lock_from_holding(tmp_path: Path) -> None:
    # No file may grow, as on a full disk.
    no_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    with start(no_room + HOLD, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(RunExistsError), locked(tmp_path):
            pass
        process.communicate("\n")
    assert process.returncode == 0


def test_a_dropped_signal_still_ends_the_waiting(tmp_path: Path) -> None:
    def told(_: str) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StoppedError:
            pass  # as a destructor would

    with locked(tmp_path), listening(), pytest.raises(StoppedError):
        with locked(tmp_path, on_wait=told):
            pass


def test_a_failed_write_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x")
