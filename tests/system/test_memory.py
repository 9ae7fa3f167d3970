"""Memory is measured while it is held, and given back when it is freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")

BEGIN = """
import os, subprocess, sys, time
from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes, release_memory
MB = 2**20
"""


def run(script: str) -> None:
    """Run a script in a process of its own: other tests hold and free memory in this one."""
    subprocess.run([sys.executable, "-c", BEGIN + script], check=True)


def test_peaks_are_seen_and_stay() -> None:
    run("""
def peaks(): return watch.peak_anonymous_bytes, peak_memory_bytes()
watch = MemoryWatch()
before = peaks()
assert all(MB < peak < 100 * MB for peak in before), before
held = b"x" * (100 * MB)
time.sleep(0.3)
del held
grown = peaks()
assert all(b - a > 95 * MB for a, b in zip(before, grown)), (before, grown)
""")


def test_a_watch_that_nobody_reads_ends() -> None:
    run("""
import gc, threading
watches = [MemoryWatch() for _ in range(9)]
assert threading.active_count() == 10
del watches[1:]
gc.collect()
time.sleep(0.5)
assert threading.active_count() == 2
held = b"x" * (100 * MB)
time.sleep(0.3)
assert watches[0].peak_anonymous_bytes > 100 * MB
""")


def test_the_peak_is_not_that_of_the_parent_process() -> None:
    run("""
if len(sys.argv) > 1:
    assert peak_memory_bytes() < 100 * MB
else:
    held = b"x" * (200 * MB)
    subprocess.run([*sys.orig_argv, "child"], check=True)
""")


def test_freed_memory_goes_back_to_the_system() -> None:
    # Blocks too small to be mapped each by itself, below one that stays.
    run("""
def held(): return MemoryWatch().peak_anonymous_bytes
blocks = [bytearray(60_000) for _ in range(1000)]
keeper = bytearray(60_000)
full = held()
blocks.clear()
release_memory()
assert held() < full - 30 * MB, (full, held())
""")
