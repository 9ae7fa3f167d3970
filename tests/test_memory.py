"""Anonymous memory is seen while it is held, and given back when it is not."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from fmnist_tf.memory import MemoryWatch, release_memory
from fmnist_tf.results.provenance import peak_memory_bytes

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


def test_a_restart_forgets_both_peaks() -> None:
    watch = MemoryWatch()
    np.ones(30_000_000)
    time.sleep(0.3)
    resident, anonymous = peak_memory_bytes(), watch.peak_anonymous_bytes
    watch.restart()
    assert anonymous is not None
    assert watch.peak_anonymous_bytes is not None
    assert watch.peak_anonymous_bytes <= anonymous
    assert peak_memory_bytes() <= resident - 100_000_000


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
