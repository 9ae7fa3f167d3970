"""What every command does with errors, signals and its output."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
from fakerun import make_run

from fmnist_tf.__main__ import COMMANDS
from fmnist_tf.cli import terminal
from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import DataError, Problem, RunExistsError, UsageError
from fmnist_tf.system import signals
from fmnist_tf.system.files import replacing


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_terminal_flags(parser)
    return parser.parse_args(words)


PROBLEM = Problem("E012", "a\nb.csv", 3, 2, "pixel1\x07" + "x" * 99, "'x'", "0 to 255", "look")


@pytest.fixture(autouse=True)
def restored():
    yield
    terminal.set_quiet(False)


def test_a_problem_is_one_escaped_line_with_its_place() -> None:
    shown = str(PROBLEM)
    assert shown.startswith("error[E012] a\\nb.csv:3:2 (pixel1\\x07xxx")
    assert shown.endswith("...): 'x'; expected 0 to 255. hint: look")
    assert str(UsageError("a\x1b\n", "b")) == "a\\x1b\\n\nb"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("expected a, found b\x1b[31m\n\u202e"), 2,
         "expected a, found b\\x1b[31m\\n\\u202e"),
        (UsageError("one", "two\r", "x " * 2500), 2, f"one\ntwo\\r\n{'x ' * 1998}x..."),
        (RunExistsError("exists"), 3, "exists"),
        (DataError([PROBLEM], {PROBLEM.code: 5}), 2, f"{PROBLEM}\n... and 4 more {PROBLEM.code}"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"), 74,
         "input/output error: a\\nb: No space left on device; free some space, or name a folder on "
         "another disk"),
        (signals.StoppedError(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'. See it with --debug"),
    ],
)  # fmt: skip
def test_an_error_is_a_code_and_escaped_lines(error, code, message, capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        raise error

    assert run_command(body, flags()) == code
    assert capsys.readouterr().err == message + "\n"


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


OUT_OF_SPACE = "Can't write data (errno = 28, error message = 'No space left on device')"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "a" * 5000), 2, "too long"),
        (FileExistsError(errno.EEXIST, "File exists", "x/.tmp", None, "x/out"), 3, "x/out exists"),
        (OSError(errno.ENOTEMPTY, "Directory not empty", "x"), 3, "x exists"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "x"), 74, "x: .*; free some space"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "x"), 74, "x: .*; .* another disk"),
        (OSError(errno.ENOSPC, "5 of 9 are stored", "x"), 74, "x: 5 of 9 are stored$"),
        (OSError("h5py has no number"), 74, "h5py has no number"),
        (RuntimeError(OUT_OF_SPACE), 74, "No space .*; free some space"),
        (ResourceExhaustedError("x.pb; No space left on device"), 74, "x.pb; .*; free some space"),
        (ResourceExhaustedError("OOM of shape [9]"), 74, "shape .*; .* smaller --batch-size"),
        (MemoryError(), 74, "smaller --batch-size"),
    ],
)
def test_the_machine_is_at_fault(error, code, words, capsys) -> None:
    error.add_note("what is kept")

    def body(_: argparse.Namespace) -> None:
        raise error

    assert run_command(body, flags()) == code
    first, second = capsys.readouterr().err.splitlines()
    assert re.search(words, first)
    assert second == "what is kept"


def test_two_exports_to_one_place(tmp_path, capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        with replacing(tmp_path / "out") as slower:
            for folder in (slower, tmp_path / "out"):
                folder.mkdir()
                (folder / "model").write_text(folder.name)

    assert run_command(body, flags()) == 3
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out/model").read_text() == "out"


PLAIN = "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C"
PYTHON = f"{shlex.quote(sys.executable)} -m fmnist_tf"
HOME = """
import argparse, pwd
from fmnist_tf.cli.command import run_command
from fmnist_tf.data.downloads import keras_home
def fail(_): raise KeyError
pwd.getpwuid = fail
run_command(lambda _: print(keras_home()), argparse.Namespace(quiet=False, debug=False))
"""
CUT = """
import argparse, os
import numpy as np
from fmnist_tf.cli.command import run_command
def body(_):
    np.zeros(10**6).tofile("f")
    mapped = np.memmap("f")
    os.truncate("f", 0)
    print(mapped.sum())
run_command(body, argparse.Namespace(quiet=False, debug=False))
"""


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        (f"{PYTHON} report 2>&-", 0, "frozen", "^$"),
        (f"{PYTHON} report <&- >&- 2>&-", 0, "^$", "^$"),
        (f"{PYTHON} report >/dev/full", 74, "^$", "standard output: No space"),
        (f"{PLAIN} {PYTHON} report one --out $'o\\xff\\x1b.html'", 0, "o", "^$"),
        (f"{PLAIN} {PYTHON} report $'o\\xff\\x1b[31m'", 2, "^$", r"o\\udcff\\x1b\[31m"),
        (f"{PYTHON} report one --runs-dir $'o\\xff'", 2, "^$", "--runs-dir .* UTF-8"),
        (f"truncate -s 6G nul.csv; {PYTHON} convert nul.csv to.csv", 2, "^$", "E009.*: .*NUL"),
        (f"unset HOME; {shlex.quote(sys.executable)} -c {shlex.quote(HOME)}", 0, "^/none", "^$"),
        (f"{shlex.quote(sys.executable)} -c {shlex.quote(CUT)}; exit $?", 135, "^$", "error: Bus"),
        (f"{PYTHON} --help", 0, r"^usage: python -m fmnist_tf COMMAND", "^$"),
        (f"{PYTHON}.clean --help", 0, r"usage: python -m fmnist_tf\.clean \[-h\]", "^$"),
        (f"{PYTHON} clean --help", 0, r"usage: python -m fmnist_tf clean \[-h\]", "^$"),
        (f"{PYTHON} --version", 0, r"^fmnist-tf \d", "^$"),
    ],
    ids=lambda value: value.replace(PYTHON, "")[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_strange_surroundings(command, code, out, err, tmp_path, monkeypatch) -> None:
    make_run(tmp_path / "runs/one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    answer = subprocess.run(["bash", "-c", command], capture_output=True, timeout=300)
    assert answer.returncode == code, answer.stderr
    for pattern, found in ((out, answer.stdout), (err, answer.stderr)):
        assert re.search(pattern, found.decode(errors="replace"))
        assert "Traceback" not in found.decode(errors="replace")
    assert b"\x1b" not in answer.stderr


@pytest.mark.parametrize("words", [(), ("--debug",)])
def test_only_debug_shows_the_traceback(words: tuple[str, ...], capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        raise UsageError("bad")

    assert run_command(body, flags(*words)) == 2
    assert ("Traceback" in capsys.readouterr().err) == bool(words)


@pytest.mark.parametrize(("is_done", "code"), [(True, 0), (False, 74)])
def test_a_closed_stdout_is_an_error_only_before_the_end(is_done: bool, code: int) -> None:
    script = (
        "import argparse, os, sys\n"
        "from fmnist_tf.cli.command import add_terminal_flags, run_command\n"
        "def body(flags):\n"
        "    sys.stdin.readline()\n"
        f"    print('x', flush={not is_done})\n"
        "parser = argparse.ArgumentParser()\n"
        "add_terminal_flags(parser)\n"
        "sys.exit(run_command(body, parser.parse_args([])))\n"
    )
    pipe = subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, env=buffered
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == code


def test_quiet_leaves_warnings_and_results(capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        terminal.say("on the\nway")
        terminal.warn("beware\x1b\n|")
        print("the result")

    assert run_command(body, flags("--quiet")) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("the result\n", "beware\\x1b\n|\n")
    assert run_command(body, flags()) == 0
    assert capsys.readouterr().err == "on the\\nway\nbeware\\x1b\n|\n"


def test_a_signal_stops_the_work(capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert run_command(body, flags("--debug")) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_stop_that_a_library_turns_into_its_own_error_is_a_stop(capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        try:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                raise ValueError("scopes do not nest")
        finally:
            raise RuntimeError("cannot clean up")

    assert run_command(body, flags()) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_the_list_of_commands_fits_80_columns() -> None:
    assert max(len(f"  {name:10}{line}") for name, line in COMMANDS.items()) <= 80
