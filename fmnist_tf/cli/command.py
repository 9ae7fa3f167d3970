"""What every command does around its work: signals, exit codes, one line for each error.

In: parsed flags and the work itself. Out: an exit code; errors as one message on stderr. This
module must not know what any command does.
"""

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

_LONGEST_LINE = 4000  # a message quotes what it found, which may be anything


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the commands have that use one finished run: RUN, and where runs lie."""
    parser.add_argument("run", metavar="RUN", help="name or folder of a finished run")
    add_runs_dir(parser)


def add_runs_dir(parser: argparse._ActionsContainer) -> None:
    """Add --runs-dir to a parser or to a group of its flags."""
    parser.add_argument(
        "--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="(default: runs)"
    )


def add_terminal_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    group = parser.add_argument_group("terminal")
    group.add_argument(
        "--quiet", action="store_true", help="stderr: warnings and errors alone, no progress"
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks")


def run_command(body: Callable[[argparse.Namespace], None], flags: argparse.Namespace) -> int:
    """Do the work and return its exit code.

    Args:
        body: raises `FmnistError`, `OSError` or `signals.StoppedError` when it cannot go on.
        flags: with those of `add_terminal_flags`.

    Returns:
        0; 74 for an input/output error, or output that nobody reads any more; 130 after Ctrl-C,
        143 after SIGTERM; the error's own code; 1 for an error of the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name no terminal can show is no error
    terminal.set_quiet(flags.quiet)
    is_done = False
    try:
        with signals.listening():
            body(flags)
        is_done = True
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if is_done else 74
    except signals.StoppedError as stopped:
        return _stop(str(stopped), stopped.exit_code)
    except Exception as error:
        if flags.debug:
            traceback.print_exc()
        return _stop(*_describe(error))


def _describe(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, FmnistError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"{printable(str(error.filename), 200)}: " if error.filename else ""
        return f"input/output error: {where}{error.strerror or error}", 74
    # Raised in the middle of a library's own work, a stop can come out as that library's error.
    before = error.__context__
    while before is not None:
        if isinstance(before, signals.StoppedError):
            return str(before), before.exit_code
        before = before.__context__
    reason = printable(" ".join(str(error).split()), 300)
    return f"internal error: {type(error).__name__}: {reason}. See it with --debug", 1


def _stop(message: str, exit_code: int) -> int:
    for line in message.splitlines():
        print(printable(line, _LONGEST_LINE), file=sys.stderr, flush=True)
    return exit_code
