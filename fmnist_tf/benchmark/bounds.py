"""The two bounds that rates are held against: arithmetic, and what large products reach.

In: the processor's features and clock; products to time. Out: FLOP/s. This module must not know
what is measured against them, nor import TensorFlow.

Shape letters: B batch, S side, C channels in, F channels out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fmnist_tf.system.cpu import read_cpuinfo

FLOP_PER_CYCLE: dict[str, tuple[tuple[str, int], ...]] = {
    # Feature of the processor -> multiplications and additions a cycle and core, the best first.
    # Vectors: two FMA units x lanes x 2. AMX: a product of 16x32 and 32x16 tiles in 16 cycles.
    "bfloat16": (("amx_bf16", 1024), ("avx512_bf16", 128)),
    "float32": (("avx512f", 64), ("avx2", 32)),
}
ENOUGH_SECONDS = 0.05  # a product that takes as long is large enough


def flop_per_cycle(features: Collection[str], precision: str) -> int | None:
    """Return the FLOP a cycle of one core, or None where it is not known."""
    for feature, flop in FLOP_PER_CYCLE[precision]:
        if feature in features:
            return flop
    return None


def count_physical_cores(
    cpus: Collection[int], root: Path = Path("/sys/devices/system/cpu")
) -> int:
    """Return how many cores these CPUs are; two hyper-threads share one core and its units.

    Where the system does not tell, as many as CPUs.
    """
    cores = set()
    for cpu in cpus:
        path = root / f"cpu{cpu}/topology/thread_siblings_list"
        cores.add(path.read_text().strip() if path.is_file() else str(cpu))
    return len(cores)


def read_clock_mhz(cpus: Collection[int]) -> float | None:
    """Return the highest clock of these CPUs at this moment in MHz, or None where none is told."""
    clocks, cpu = [], -1
    for line in read_cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor":
            cpu = int(value)
        elif name.strip() == "cpu MHz" and cpu in cpus:
            clocks.append(float(value))
    return max(clocks, default=None)


@dataclass(frozen=True)
class MatMul:
    """A product of two square matrices, (S, S) x (S, S)."""

    side: int

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.side**3


@dataclass(frozen=True)
class Conv:
    """A convolution at stride 1 with padding, (B, S, S, C) -> (B, S, S, F)."""

    batch_size: int
    side: int
    channels: int
    filters: int
    kernel: int

    @property
    def flop(self) -> int:
        """Multiplications and additions of the direct method."""
        area = self.side**2 * self.kernel**2
        return 2 * self.batch_size * area * self.channels * self.filters


# Each family grows until one product takes `ENOUGH_SECONDS`; the convolutions are ResNet50's.
FAMILIES: tuple[tuple[MatMul | Conv, ...], ...] = (
    tuple(MatMul(side) for side in (2048, 4096, 8192, 16384)),
    *(
        tuple(Conv(batch_size, *shape) for batch_size in (32, 256))
        for shape in ((56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (14, 1024, 256, 1))
    ),
)


def find_fastest(build: Callable[[MatMul | Conv], Callable[[], None]]) -> float:
    """Return the highest rate in FLOP/s that any of the products reaches.

    Args:
        build: a product -> a function that computes it once and waits for it.
    """
    best = 0.0
    for family in FAMILIES:
        for product in family:
            run = build(product)
            run()  # compiles
            seconds = math.inf
            for _ in range(3):
                started = time.perf_counter()
                run()
                seconds = min(seconds, time.perf_counter() - started)
            best = max(best, product.flop / seconds)
            if seconds > ENOUGH_SECONDS:
                break
    return best
