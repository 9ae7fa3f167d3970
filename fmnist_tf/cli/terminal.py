"""What a person sees on stderr while a command works: lines, boxes and progress bars."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from fmnist_tf.errors import escape, printable
from fmnist_tf.system import signals

BOX_WIDTH = 78

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn `say` and progress bars off, or on again."""
    global _quiet
    _quiet = quiet


def say(line: str) -> None:
    """Print one line on stderr, escaped, above a progress bar; nothing if quiet."""
    if not _quiet:
        warn(escape(line))


def warn(text: str) -> None:
    """Print a line or a box on stderr, escaped but for its newlines, also if quiet.

    Work does not end because nobody reads its messages: a closed pipe or terminal is no error.
    """
    try:
        tqdm.write("\n".join(map(escape, text.split("\n"))), file=sys.stderr)
        sys.stderr.flush()
    except OSError:  # what is still in the buffer would fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


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


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that draws a bar with rate and time left.

    Nothing is drawn if quiet, or if stderr is no terminal. The function also raises the
    `StoppedError` of a signal that has not ended the command yet.
    """
    with tqdm(
        desc=title,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=_quiet or not sys.stderr.isatty(),
        dynamic_ncols=True,
    ) as bar:

        def show(done: int, total: int) -> None:
            signals.check()
            if done < bar.n:
                bar.reset()  # a new epoch
            bar.total = total
            bar.update(done - bar.n)

        yield show
