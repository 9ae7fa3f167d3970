"""The memory of this process: its peaks, and giving freed memory back.

Resident memory includes pages of mapped files, which the system takes back when it needs room.
Anonymous memory, which no file backs, is what can run out.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
import threading
import weakref
from pathlib import Path

_STATUS = Path("/proc/self/status")
_INTERVAL_SECONDS = 0.1


class MemoryWatch:
    """Samples the anonymous memory ten times a second, as long as something refers to it.

    Attributes:
        peak_anonymous_bytes: the maximum so far; None on systems that are not Linux.
    """

    def __init__(self) -> None:
        self.peak_anonymous_bytes = _read_status("RssAnon")
        if self.peak_anonymous_bytes is not None:
            threading.Thread(target=_sample, args=[weakref.ref(self)], daemon=True).start()

    def sample(self) -> None:
        """Take note of the memory now."""
        self.peak_anonymous_bytes = max(
            self.peak_anonymous_bytes or 0, _read_status("RssAnon") or 0
        )


def _sample(watch: weakref.ref[MemoryWatch]) -> None:
    # Unlike time.sleep, waiting for an event does not delay the interpreter's exit.
    pause = threading.Event()
    while not pause.wait(_INTERVAL_SECONDS):
        if (found := watch()) is None:
            return
        found.sample()
        del found  # else it would live until the next sample, and so for ever


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process; mapped files count while resident."""
    peak = _read_status("VmHWM")
    if peak is None:
        # Fallback only: on Linux this value can be that of the process which started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def _read_status(field: str) -> int | None:
    """Return a size in bytes from /proc/self/status; None on systems that are not Linux."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def release_memory() -> None:
    """Give freed memory back to the system.

    Only the cycle collector frees TensorFlow's graphs, and glibc keeps freed memory that lies below
    a block in use: over a gigabyte after caching ResNet50's features at 224 pixels (runs/LOG.md).
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
