"""What every command does with errors, signals and its streams."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys

import pytest

from fmnist_tf.cli import terminal
from fmnist_tf.cli.command import add_terminal_flags, run_command
from fmnist_tf.errors import RunExistsError, UsageError
from fmnist_tf.system import signals


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_terminal_flags(parser)
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def restored():
    yield
    terminal.set_quiet(False)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("expected a, found b"), 2, "expected a, found b"),
        (RunExistsError("exists"), 3, "exists"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"), 74,
         "input/output error: a\\nb: No space left on device"),
        (OSError("no number"), 74, "input/output error: no number"),
        (signals.StoppedError(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'. See it with --debug"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_a_code(error, code, message, capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        raise error

    assert run_command(body, flags()) == code
    assert capsys.readouterr().err == message + "\n"


def test_debug_shows_the_traceback(capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        raise UsageError("bad")

    assert run_command(body, flags("--debug")) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("is_done", "code"), [(True, 0), (False, 74)])
def test_work_that_nobody_listens_to_is_done_only_when_it_is(is_done: bool, code: int) -> None:
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
        terminal.say("on the way")
        terminal.warn("beware")
        print("the result")

    assert run_command(body, flags("--quiet")) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("the result\n", "beware\n")
    assert run_command(body, flags()) == 0
    assert capsys.readouterr().err == "on the way\nbeware\n"


def test_a_signal_stops_the_work(capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert run_command(body, flags()) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_stop_that_a_library_answers_with_an_error_is_a_stop(capsys) -> None:
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
