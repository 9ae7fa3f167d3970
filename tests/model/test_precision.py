"""auto is the precision that the device computes fast; bfloat16 works or is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fmnist_tf.model.precision import choose_precision, preferred_precision

BFLOAT16 = {"avx2", "avx512f", "avx512_bf16"}


@pytest.mark.parametrize(
    ("capability", "features", "environment", "expected"),
    [
        (None, {"amx_bf16"}, {}, "bfloat16"),
        (None, BFLOAT16, {}, "bfloat16"),
        (None, {"avx2"}, {}, "float32"),
        ((8, 0), set(), {}, "bfloat16"),
        ((7, 5), BFLOAT16, {}, "float32"),
        ((0, 0), set(), {}, "float32"),
        (None, BFLOAT16, {"TF_ENABLE_ONEDNN_OPTS": "0"}, "float32"),
        (None, BFLOAT16, {"ONEDNN_MAX_CPU_ISA": "avx2"}, "float32"),
        (None, BFLOAT16, {"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, "float32"),
        (None, BFLOAT16, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "bfloat16"),
        (None, BFLOAT16, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bfloat16"),
        (None, BFLOAT16, {"ONEDNN_MAX_CPU_ISA": ""}, "bfloat16"),
    ],
)
def test_auto_follows_the_device_and_its_kernels(
    capability, features, environment, expected: str
) -> None:
    precision, reason = preferred_precision(capability, features, environment)
    assert precision == expected
    assert all(name in reason for name in environment if precision == "float32")


def test_what_is_asked_for_is_computed(bfloat16_kernels: None) -> None:
    assert choose_precision("bfloat16") == ("bfloat16", "as asked")
    assert choose_precision("float32") == ("float32", "as asked")


@pytest.mark.slow
def test_kernels_that_lack_bfloat16_are_found_before_any_work() -> None:
    script = (
        "from fmnist_tf.errors import UsageError\n"
        "from fmnist_tf.model.precision import choose_precision\n"
        "print(choose_precision('auto')[0])\n"
        "try: choose_precision('bfloat16')\n"
        "except UsageError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    auto, error = answer.stdout.splitlines()
    assert auto == "float32"
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in error
