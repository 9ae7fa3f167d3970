"""What every command does around its work: signals, exit codes, one line for each error."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from fmnist_tf.cli import terminal
from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.system import signals

_MAX_LINE = 4000  # characters; a message quotes what it found, which may be long


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that use a finished run: RUN and --runs-dir."""
    parser.add_argument("run", metavar="RUN", help="name or folder of a finished run")
    add_runs_dir(parser)


def add_runs_dir(parser: argparse._ActionsContainer) -> None:
    """Add --runs-dir to a parser or to a group of its flags."""
    parser.add_argument(
        "--runs-dir",
        metavar="DIR",
        type=Path,
        default=Path("runs"),
        help="folder of runs (default: runs)",
    )


def add_terminal_flags(parser: argparse.ArgumentParser) -> None:
    """Add --quiet and --debug, which every command has."""
    group = parser.add_argument_group("terminal")
    group.add_argument(
        "--quiet", action="store_true", help="only warnings and errors on stderr, no progress"
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks")


def run_command(body: Callable[[argparse.Namespace], None], flags: argparse.Namespace) -> int:
    """Run a command and return its exit code; print an error as lines on stderr.

    Args:
        body: the command; raises `FmnistError`, `OSError` or `signals.StoppedError` to end early.
        flags: with those of `add_terminal_flags`.

    Returns:
        0; the exit code of an `FmnistError`; 74 for an input/output error, or if the reader of
        stdout went away before the end; 130 after Ctrl-C, 143 after SIGTERM; 1 for a bug.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    terminal.set_quiet(flags.quiet)
    is_done = False
    try:
        with signals.listening():
            body(flags)
        is_done = True
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Otherwise Python would print one more error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if is_done else 74
    except (Exception, signals.StoppedError) as error:
        if flags.debug and not isinstance(error, signals.StoppedError):
            traceback.print_exc()
        lines, exit_code = _describe(error)
        for line in lines:
            terminal.warn(printable(line, _MAX_LINE))
        return exit_code


def _describe(error: BaseException) -> tuple[list[str], int]:
    """Return the lines of an error's message, and its exit code."""
    if isinstance(error, (FmnistError, signals.StoppedError)):
        return [str(line) for line in error.args], error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return [f"input/output error: {where}{error.strerror or error}"], 74
    # A stop that is raised within a library can come out as an error of that library.
    cause = error.__context__
    while cause is not None:
        if isinstance(cause, signals.StoppedError):
            return _describe(cause)
        cause = cause.__context__
    reason = printable(" ".join(str(error).split()), 300)
    return [f"internal error: {type(error).__name__}: {reason}. See it with --debug"], 1
