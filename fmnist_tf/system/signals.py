"""Ctrl-C and SIGTERM become one exception that cannot get lost.

Python drops exceptions that are raised inside callbacks and destructors, so `StoppedError` is
raised at once, and again at the next `check`. A second signal ends the process.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_pending: list[StoppedError] = []


class StoppedError(BaseException):
    """A signal stopped the program; like KeyboardInterrupt, this is no `Exception`.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, as shells count.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {_NAMES[signal.Signals(number)]}")
        self.exit_code = 128 + number


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM inside into a `StoppedError`.

    Afterwards the previous handlers are back, so that a notebook can still be interrupted.
    """
    _pending.clear()
    before = {number: signal.signal(number, _stop) for number in _NAMES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()


def check() -> None:
    """Raise the `StoppedError` of a signal so far; long loops call this in every iteration."""
    if _pending:
        raise _pending.pop()


def _stop(number: int, frame: FrameType | None) -> None:
    for other in _NAMES:
        signal.signal(other, signal.SIG_DFL)
    _pending.append(StoppedError(number))
    raise _pending[0]
