"""The compute precision: bfloat16 where the device has units for it, else float32."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import tensorflow as tf

from fmnist_tf.errors import UsageError
from fmnist_tf.system.cpu import read_cpu_features

# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html: the values below
# which bfloat16 has no kernels of its own. oneDNN ignores values that it does not know.
_ISA_WITHOUT_BFLOAT16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip


def choose_precision(setting: str) -> tuple[str, str]:
    """Return the compute dtype for auto, float32 or bfloat16, and the reason in a few words.

    Raises:
        UsageError: bfloat16 is asked for and TensorFlow cannot compute in it here.
    """
    if setting == "float32":
        return setting, "as asked"
    precision, reason = preferred_precision(_gpu_capability(), read_cpu_features(), os.environ)
    if setting == "auto" and precision == "float32":
        return precision, reason
    if _convolves_in_bfloat16():
        return "bfloat16", reason if setting == "auto" else "as asked"
    if setting == "auto":
        return "float32", "TensorFlow cannot convolve in bfloat16 here"
    raise UsageError(
        f"--precision bfloat16: TensorFlow cannot convolve in bfloat16 here ({reason}); expected "
        "auto or float32"
    )


def preferred_precision(
    gpu_capability: tuple[int, int] | None,
    cpu_features: Collection[str],
    environment: Mapping[str, str],
) -> tuple[str, str]:
    """Return the faster compute dtype and the reason in a few words.

    Args:
        gpu_capability: CUDA compute capability, (0, 0) if unknown; None without a GPU.
        cpu_features: as /proc/cpuinfo names them.
        environment: variables; those that choose oneDNN's kernels are read.
    """
    if gpu_capability is not None:
        if gpu_capability >= (8, 0):
            return "bfloat16", "GPU of compute capability {}.{}".format(*gpu_capability)
        return "float32", "the GPU has no bfloat16 units"
    if environment.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        return "float32", "TF_ENABLE_ONEDNN_OPTS=0 rules out bfloat16 kernels"
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if environment.get(name, "").upper() in _ISA_WITHOUT_BFLOAT16:
            return "float32", f"{name}={environment[name]} rules out bfloat16 kernels"
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in cpu_features:
            return "bfloat16", f"the processor has {feature}"
    return "float32", "the processor has no bfloat16 units"


def _gpu_capability() -> tuple[int, int] | None:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    details = tf.config.experimental.get_device_details(gpus[0])
    return details.get("compute_capability", (0, 0))


def _convolves_in_bfloat16() -> bool:
    images, kernel = tf.ones((1, 4, 4, 1), tf.bfloat16), tf.ones((3, 3, 1, 1), tf.bfloat16)
    try:
        # Not a matrix product: without kernels for it, TensorFlow aborts the process.
        tf.nn.conv2d(images, kernel, 1, "SAME")
    except tf.errors.OpError:
        return False
    return True
