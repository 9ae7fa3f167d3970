"""Ctrl-C and SIGTERM -> one exception that cannot get lost.

In: signals. Out: `StoppedError`, raised at once and, because Python drops what is raised inside
callbacks and destructors, again at the next `check`. A second signal ends the process as if
nobody listened. This module must not know what is being stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_pending: list[StoppedError] = []


class StoppedError(BaseException):
    """Somebody stopped the program; like KeyboardInterrupt, no error of the program.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, as shells count.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {_NAMES[signal.Signals(number)]}")
        self.exit_code = 128 + number


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM inside into a `StoppedError`.

    Afterwards signals do what they did before: a notebook that ran a command can still be
    interrupted.
    """
    _pending.clear()
    before = {number: signal.signal(number, _stop) for number in _NAMES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()  # what was raised and not checked for is over


def check() -> None:
    """Raise what a signal left behind; long loops call this at every turn."""
    if _pending:
        raise _pending.pop()


def _stop(number: int, frame: FrameType | None) -> None:
    for other in _NAMES:
        signal.signal(other, signal.SIG_DFL)
    _pending.append(StoppedError(number))
    raise _pending[0]
