"""Memory is seen while it is held, and given back when it is not."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes, release_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")


def test_the_peak_is_seen_and_stays() -> None:
    watch = MemoryWatch()
    before = watch.peak_anonymous_bytes
    assert before is not None
    assert before > 1e7
    held = np.ones(30_000_000)
    time.sleep(0.4)
    held_bytes = held.nbytes
    del held
    release_memory()
    time.sleep(0.3)
    peak = watch.peak_anonymous_bytes
    assert peak is not None
    assert peak >= before + 0.9 * held_bytes


def test_peak_memory_grows_with_use() -> None:
    before = peak_memory_bytes()
    assert 1e6 < before < 1e12
    block = np.ones(before // 8 + 30_000_000)  # larger than ever before, and touched
    assert peak_memory_bytes() > before + 1e8
    del block


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    show = "from fmnist_tf.system.memory import peak_memory_bytes; print(peak_memory_bytes())"
    script = (
        "import subprocess, sys\n"
        "held = b'x' * 400_000_000\n"
        f"subprocess.run([sys.executable, '-c', {show!r}], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    assert 1e6 < int(done.stdout) < 2e8


def test_a_restart_forgets_both_peaks() -> None:
    script = (  # a process of its own: what others left in this one would count too
        "import time\n"
        "from fmnist_tf.system.memory import MemoryWatch, peak_memory_bytes\n"
        "def peaks():\n"
        "    return watch.peak_anonymous_bytes, peak_memory_bytes()\n"
        "watch = MemoryWatch()\n"
        "held = b'x' * 240_000_000\n"
        "time.sleep(0.3)\n"
        "del held\n"
        "before = peaks()\n"
        "watch.restart()\n"
        "assert all(b - a > 200_000_000 for a, b in zip(peaks(), before)), (before, peaks())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_freed_goes_back_to_the_system() -> None:
    # Blocks too small to be mapped each by itself, and one on top that keeps the heap's end.
    blocks = [bytearray(60_000) for _ in range(3000)]
    keeper = bytearray(60_000)
    full = MemoryWatch().peak_anonymous_bytes
    blocks.clear()
    release_memory()
    after = MemoryWatch().peak_anonymous_bytes
    assert full is not None
    assert after is not None
    assert after <= full - 0.5 * 3000 * 60_000
    assert len(keeper) == 60_000
