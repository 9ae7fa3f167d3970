"""What a person sees on stderr while a command works: lines, boxes and progress bars."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from fmnist_tf.errors import escape, printable
from fmnist_tf.system import signals

BOX_WIDTH = 78
RED, GREEN, YELLOW = "31", "32", "33"

_WITH_NOTE = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
)

_quiet = False
_log: Path | None = None


def set_quiet(quiet: bool) -> None:
    """Turn `say` and progress bars off, or on again."""
    global _quiet
    _quiet = quiet


def log_to(path: Path) -> None:
    """Append to this file, from now on, what `say` and `warn` print, with the time (UTC)."""
    global _log
    _log = path
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)


def say(line: str, colour: str = "") -> None:
    """Print one line on stderr, escaped, above a progress bar; nothing if quiet."""
    if not _quiet:
        warn(escape(line), colour)


def warn(text: str, colour: str = YELLOW) -> None:
    """Print a line or a box on stderr, escaped but for its newlines, also if quiet.

    On a terminal its lines are wrapped at spaces, those between backticks excepted, and coloured,
    unless NO_COLOR is set (https://no-color.org). Work does not end because nobody reads its
    messages: a closed pipe or terminal is no error.
    """
    lines = [escape(line) for line in text.split("\n")]
    if _log:
        with suppress(OSError), _log.open("a") as file:
            now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
            file.writelines(f"{now} {line}\n" for line in lines)
    try:
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns
            lines = [part for line in lines for part in _wrap(line, width)]
            if colour and not os.environ.get("NO_COLOR"):
                lines = [f"\x1b[{colour}m{line}\x1b[0m" for line in lines]
        tqdm.write("\n".join(lines), file=sys.stderr)
        sys.stderr.flush()
    except OSError:  # what is still in the buffer would fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _wrap(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    kept = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), line)
    parts = textwrap.wrap(
        kept, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in parts]


def boxed(*paragraphs: str) -> str:
    """Return a warning in a box, `BOX_WIDTH` wide."""
    edge = "+" + "-" * (BOX_WIDTH - 2) + "+"
    lines = [line for text in paragraphs for line in textwrap.wrap(escape(text), BOX_WIDTH - 4)]
    return "\n".join([edge, *(f"| {line:<{BOX_WIDTH - 4}} |" for line in lines), edge])


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are escaped and at most 90 characters wide."""
    lines = (columns, ["---"] * len(columns), *rows)
    cells = ([printable(cell, 90).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def align(rows: Sequence[Sequence[str]], n_left: int = 1) -> list[str]:
    """Return rows as lines of columns, two spaces apart: the first `n_left` left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" * n_left + ">" * (len(widths) - n_left)
    lines = (
        (f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in rows
    )
    return ["  ".join(cells).rstrip() for cells in lines]


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yield a function of (done, total) that draws a bar with rate and time left.

    It takes a note, which stands in place of the rate, and another title too. Nothing is drawn if
    quiet, or if stderr is neither a terminal nor a notebook's. The function also raises the
    `StoppedError` of a signal that has not ended the command yet.
    """
    bar_class, in_notebook = tqdm, "ipykernel" in sys.modules
    if in_notebook:
        with warnings.catch_warnings(action="ignore"):  # without ipywidgets the bar is of text
            from tqdm.auto import tqdm as bar_class
    with bar_class(
        desc=title,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=_quiet or not (in_notebook or sys.stderr.isatty()),
        dynamic_ncols=True,
    ) as bar:

        def show(done: int, total: int, note: str = "", title: str = title) -> None:
            signals.check()
            if done < bar.n:
                bar.reset()  # a new epoch
            if note:
                bar.bar_format = _WITH_NOTE
            bar.set_description_str(title, refresh=False)
            bar.set_postfix_str(note, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        yield show
