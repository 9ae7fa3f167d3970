"""What may be written is known before the work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import check_folder, check_target, write_atomically


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (".", "found a folder"),
        ("/dev/null", "found a device or a pipe"),
        ("pipe", "found a device or a pipe"),
        ("file/x", "which is a file"),
        ("file/x/y", "which is a file"),
    ],
)
def test_what_cannot_become_a_file_is_refused(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("file").touch()
    with pytest.raises(UsageError, match=f"^--out {re.escape(name)}: .*{found}"):
        check_target("--out", Path(name))


def test_what_can_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").touch()
    for name in ("old", "new", "some/folder/new"):
        check_target("--out", Path(name))
    check_folder("--runs-dir", Path("some/folder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="may not be written"):
        check_target("--out", tmp_path / "x")


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    with write_atomically(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert file.read_text() == "new"
