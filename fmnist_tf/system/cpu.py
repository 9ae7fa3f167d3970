"""The processor, as the operating system describes it."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def read_cpuinfo() -> str:
    """Return /proc/cpuinfo; empty on systems that are not Linux."""
    return CPUINFO.read_text() if CPUINFO.is_file() else ""


def read_cpu_features() -> set[str]:
    """Return the words of /proc/cpuinfo, among them features such as `avx2` and `amx_bf16`."""
    return set(read_cpuinfo().split())


def usable_cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
