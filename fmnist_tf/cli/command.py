"""What every command does around its work: signals, exit codes, one line for each error."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from fmnist_tf.cli import terminal
from fmnist_tf.errors import FmnistError, UsageError, printable
from fmnist_tf.system import signals

_MAX_LINE = 4000  # characters; a message quotes what it found, which may be long
_LONG_WORD = re.compile(r"(\S{1000})\S+")  # a name that is cut, so that what follows is seen
_NO_MEMORY = "end other programs, or choose a smaller --batch-size, --image-size or --units"
_NO_ROOM = "free some space, or name a folder on another disk"
_BAD_DISK = "the disk or the connection to it fails; try again, or name a folder on another disk"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EIO: _BAD_DISK,
    errno.ESTALE: _BAD_DISK,
    errno.EFBIG: "a limit on the size of files (ulimit -f) is too low for it",
    errno.EROFS: "name a folder that can be written to",
    errno.ENOMEM: _NO_MEMORY,
}
"""What to do about errors that no user's input causes. Libraries quote their text."""


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
        0; the exit code of an `FmnistError`; 74 for an input/output error, too little memory, or
        if the reader of stdout went away before the end; 3 if another process wrote the same folder
        first; 2 for a name that cannot exist; 130 after Ctrl-C, 143 after SIGTERM; 1 for a bug.
    """
    _complete_surroundings()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    terminal.set_quiet(flags.quiet)
    is_done = False
    try:
        with signals.listening():
            _check_values(flags)
            body(flags)
        is_done = True
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Otherwise Python would print one more error when it flushes stdout at exit.
        _discard(1)
        return 0 if is_done else 74
    except (Exception, signals.StoppedError) as error:
        if flags.debug and not isinstance(error, signals.StoppedError):
            traceback.print_exc()
        lines, exit_code = _describe(error)
        for line in (*lines, *getattr(error, "__notes__", ())):
            terminal.warn(printable(_LONG_WORD.sub(r"\1...", line), _MAX_LINE), terminal.RED)
        return exit_code


def _describe(error: BaseException) -> tuple[list[str], int]:
    """Return the lines of an error's message, and its exit code."""
    if isinstance(error, (FmnistError, signals.StoppedError)):
        return [str(line) for line in error.args], error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        where = error.filename2 or error.filename
        return [f"{where} exists already: another process wrote it meanwhile; nothing changed"], 3
    if isinstance(error, OSError):
        where, reason = _name_file(error), error.strerror or " ".join(str(error).split())
        advice = _ADVICE.get(error.errno or 0, "") if reason == _text_of(error.errno) else ""
        is_bad_name = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
        line = f"{where}{reason}{advice and '; '}{advice}"
        return ([line], 2) if is_bad_name else ([f"input/output error: {line}"], 74)
    # A stop that is raised within a library can come out as an error of that library.
    cause = error.__context__
    while cause is not None:
        if isinstance(cause, signals.StoppedError):
            return _describe(cause)
        cause = cause.__context__
    reason = printable(" ".join(str(error).split()), 300)
    for number, advice in _ADVICE.items():
        if _text_of(number) in str(error):
            return [f"input/output error: {reason}; {advice}"], 74
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return [f"out of memory: {reason}; {_NO_MEMORY}"], 74
    return [f"internal error: {type(error).__name__}: {reason}. See it with --debug"], 1


def _name_file(error: OSError) -> str:
    """Return the file's name with a colon; print has none."""
    name = error.filename2 or error.filename
    if name is None:
        try:
            print(flush=True)
        except OSError:  # as flushing would be once more when Python exits
            _discard(1)
            name = "standard output"
    return f"{name}: " if name else ""


def _text_of(number: int | None) -> str:
    return os.strerror(number or 0)


def _check_values(flags: argparse.Namespace) -> None:
    """Check what argparse and TensorFlow make nothing of.

    Raises:
        UsageError: `--run=--`, of which argparse makes a list; or folders whose names are not
            UTF-8, where TensorFlow cannot write.
    """
    for name, value in vars(flags).items():
        if value == [] and name != "runs":
            raise UsageError(f"--{name.replace('_', '-')}=--: expected a value, found none")
    folder = os.path.abspath(getattr(flags, "runs_dir", "."))
    if folder != os.fsencode(folder).decode(errors="replace"):
        raise UsageError(f"--runs-dir {folder}: expected a path in UTF-8, as TensorFlow needs it")


def _complete_surroundings() -> None:
    """Give the process what every process should have: three streams, a home, a last word.

    A file that is opened while stderr is closed would get its number, and its messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without an account
        os.environ["HOME"] = "/nonexistent"
    if not faulthandler.is_enabled():  # such as SIGBUS, when a mapped file is cut
        faulthandler.enable(2, all_threads=False)


def _discard(number: int) -> None:
    """Let a file descriptor read nothing and write to nowhere."""
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
