"""The bound that rates are compared with: what the processor could compute.

FLOP/s = physical cores x clock x FLOP a cycle; a multiplication and its addition count as two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fmnist_tf.system.cpu import read_cpuinfo, usable_cpus

FLOP_PER_CYCLE: dict[str, tuple[tuple[str, int], ...]] = {
    # Feature of the processor -> FLOP a cycle and core, the best first.
    # Vectors: two FMA units x lanes x 2. AMX: a product of 16x32 and 32x16 tiles in 16 cycles.
    "bfloat16": (("amx_bf16", 1024), ("avx512_bf16", 128)),
    "float32": (("avx512f", 64), ("avx2", 32)),
}


def flop_per_cycle(features: Collection[str], precision: str) -> int | None:
    """Return the FLOP a cycle of one core, or None where it is not known."""
    return next((flop for name, flop in FLOP_PER_CYCLE[precision] if name in features), None)


def count_physical_cores() -> int:
    """Return how many cores this process may use; two hyper-threads share one.

    Where the system does not tell, every CPU counts as a core.
    """
    cores = set()
    for cpu in usable_cpus():
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(path.read_text().strip() if path.is_file() else str(cpu))
    return len(cores)


def read_clock_mhz() -> float | None:
    """Return the clock of the fastest CPU at this moment in MHz, or None where it is not known."""
    clocks = re.findall(r"^cpu MHz\s*: ([\d.]+)", read_cpuinfo(), re.MULTILINE)
    return max(map(float, clocks), default=None)


def count_multiplications(model: Any) -> dict[str, int]:
    """Return the multiplications of one image in a functional Keras model without nested models.

    Only layers with a kernel count. `frozen`: forward, of what lies below every trainable layer;
    `trained`: forward, of the rest; `backward`: once for each trainable kernel's gradient, and once
    for the gradient of each input that depends on a trainable layer.
    """
    counts = {"frozen": 0, "trained": 0, "backward": 0}
    trained: set[int] = set()  # tensors that depend on a trainable layer
    for layer in model.layers:
        inputs, outputs = (x if isinstance(x, list) else [x] for x in (layer.input, layer.output))
        is_above = any(id(tensor) in trained for tensor in inputs)
        is_trainable = bool(layer.trainable_weights)
        if is_above or is_trainable:
            trained |= {id(tensor) for tensor in outputs}
        if hasattr(layer, "kernel"):
            positions = math.prod(outputs[0].shape[1:-1])  # of a convolution; a dense layer has one
            number = math.prod(layer.kernel.shape) * positions
            counts["trained" if is_above or is_trainable else "frozen"] += number
            counts["backward"] += number * (is_above + is_trainable)
    return counts
