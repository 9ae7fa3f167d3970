"""Signals that ask a command to end become one exception that cannot get lost.

Python drops exceptions that are raised inside callbacks and destructors, so `StoppedError` is
raised at once, and again at the next `check`. A second signal ends the process. Inside `deferred`
only `check` raises, and no number of signals ends the process: what must be consistent or saved
first, is.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Batch systems announce the end of a job with TERM, USR1, USR2 or XCPU; HUP is a closed terminal.
_OTHERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_NAMES = {signal.SIGINT: "Ctrl-C"} | {number: number.name for number in _OTHERS}
_pending: list[StoppedError] = []
_n_deferring = 0
_n_sharing = 0


class StoppedError(BaseException):
    """A signal stopped the program; like KeyboardInterrupt, this is no `Exception`.

    Attributes:
        exit_code: 128 + the signal's number, as shells count: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {_NAMES[signal.Signals(number)]}")
        self.exit_code = 128 + number


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first signal inside into a `StoppedError`, but for those that are ignored.

    `nohup` ignores SIGHUP. Afterwards the previous handlers are back, so that a notebook can still
    be interrupted.
    """
    _pending.clear()
    found = {number: signal.getsignal(number) for number in _NAMES}
    before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal inside raise only in `check`."""
    global _n_deferring
    _n_deferring += 1
    try:
        yield
    finally:
        _n_deferring -= 1
        if _pending and not _n_deferring:
            _let_next_kill()


@contextmanager
def shared() -> Iterator[None]:
    """Let `check` do nothing inside: several processes `take` their signals and stop together."""
    global _n_sharing
    _n_sharing += 1
    try:
        yield
    finally:
        _n_sharing -= 1


def take() -> StoppedError | None:
    """Return, once, the `StoppedError` of a signal so far."""
    return _pending.pop() if _pending else None


def check() -> None:
    """Raise the `StoppedError` of a signal so far; long loops call this in every iteration."""
    if _pending and not _n_sharing:
        raise _pending.pop()


def _stop(number: int, frame: FrameType | None) -> None:
    _pending[:] = _pending or [StoppedError(number)]
    if not _n_deferring:
        _let_next_kill()
        raise _pending[0]


def _let_next_kill() -> None:
    for number in _NAMES:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)
