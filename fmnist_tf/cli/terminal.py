"""What a person sees while a command works: lines, boxes and progress bars on stderr.

In: text and counts. Out: the same on stderr, fit for a terminal or a log. Results do not pass here:
they go to stdout. This module must not know what it is about.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from fmnist_tf.system import signals

BOX_WIDTH = 78

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Let `say` and progress bars be silent from now on, or speak again."""
    global _quiet
    _quiet = quiet


def say(line: str) -> None:
    """Print one line on stderr, above a progress bar if there is one; nothing when quiet."""
    if not _quiet:
        warn(line)


def warn(line: str) -> None:
    """Print one line on stderr, also when quiet: what a person must know."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def boxed(*paragraphs: str) -> str:
    """Return a warning in a box that nobody overlooks, `BOX_WIDTH` wide."""
    edge = "+" + "-" * (BOX_WIDTH - 2) + "+"
    lines = [line for text in paragraphs for line in textwrap.wrap(text, BOX_WIDTH - 4)]
    return "\n".join([edge, *(f"| {line:<{BOX_WIDTH - 4}} |" for line in lines), edge])


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that draws a bar with rate and time left.

    Nothing is drawn when quiet, or where stderr is no terminal: a log wants lines, not bars.
    Whoever reports progress can be stopped: the function raises what a signal left behind.
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
                bar.reset()  # the next epoch
            bar.total = total
            bar.update(done - bar.n)

        yield show
