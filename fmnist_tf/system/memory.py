"""What this process holds in memory.

In: nothing. Out: the peaks of its resident memory and of its anonymous memory, which no file
backs, and memory given back to the system. Pages of mapped files count as resident too, but the
system takes those back whenever somebody needs the room; anonymous memory is what can run out.
This module must not know what the memory is used for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_SECONDS_BETWEEN_LOOKS = 0.1


class MemoryWatch:
    """Looks at the anonymous memory ten times a second, from now to the process' end.

    Attributes:
        peak_anonymous_bytes: the largest seen; None where the system does not tell (not Linux).
    """

    def __init__(self) -> None:
        self.peak_anonymous_bytes = _anonymous_bytes()
        if self.peak_anonymous_bytes is not None:
            threading.Thread(target=self._look, daemon=True).start()

    def restart(self) -> None:
        """Forget the peaks so far, that of the resident memory too where the system lets us."""
        if self.peak_anonymous_bytes is not None:
            with contextlib.suppress(OSError):
                _CLEAR_REFS.write_text("5")  # proc(5)
            self.peak_anonymous_bytes = _anonymous_bytes()

    def _look(self) -> None:
        # An event that nobody sets sleeps as well, and is not delayed by the interpreter's end.
        pause = threading.Event()
        while not pause.wait(_SECONDS_BETWEEN_LOOKS):
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes or 0, _anonymous_bytes() or 0)


def peak_memory_bytes() -> int:
    """Return this process' largest resident size so far; mapped files count while resident."""
    peak = _read_status("VmHWM")
    if peak is None:
        # It can be the parent's: Linux carries it over from before the program was loaded.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def _anonymous_bytes() -> int | None:
    return _read_status("RssAnon")


def _read_status(field: str) -> int | None:
    """Return a size in bytes from proc(5)'s status, or None where the system does not tell."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def release_memory() -> None:
    """Give freed memory back to the system.

    TensorFlow's graphs are freed by the cycle collector alone, and glibc keeps what lies freed
    below a block in use: after the frozen part of ResNet50 at 224 pixels that is over a gigabyte
    (runs/LOG.md).
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
