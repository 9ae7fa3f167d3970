"""What every command does with errors, signals and its output."""

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
from fmnist_tf.errors import DataError, Problem, RunExistsError, UsageError
from fmnist_tf.system import signals


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
        (UsageError("one", "two\r", "x" * 9000), 2, f"one\ntwo\\r\n{'x' * 3997}..."),
        (RunExistsError("exists"), 3, "exists"),
        (DataError([PROBLEM], {PROBLEM.code: 5}), 2, f"{PROBLEM}\n... and 4 more {PROBLEM.code}"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"), 74,
         "input/output error: a\\nb: No space left on device"),
        (signals.StoppedError(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'. See it with --debug"),
    ],
)  # fmt: skip
def test_an_error_is_a_code_and_escaped_lines(error, code, message, capsys) -> None:
    def body(_: argparse.Namespace) -> None:
        raise error

    assert run_command(body, flags()) == code
    assert capsys.readouterr().err == message + "\n"


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
