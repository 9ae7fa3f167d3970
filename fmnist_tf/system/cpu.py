"""The processor, as the system describes it.

In: nothing. Out: its features, and which CPUs this process may use. This module must not know what
they decide.
"""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def read_cpuinfo() -> str:
    """Return the system's description of the processor; empty where there is none (not Linux)."""
    return CPUINFO.read_text() if CPUINFO.is_file() else ""


def read_cpu_features() -> set[str]:
    """Return the words of that description, among them its features, e.g. `avx2`, `amx_bf16`."""
    return set(read_cpuinfo().split())


def usable_cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
