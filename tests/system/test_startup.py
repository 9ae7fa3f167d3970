"""TensorFlow starts quietly, and errors on stderr still come through."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from fmnist_tf.system.startup import freezing_objects, holding_stderr, is_startup_noise


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2"])
def test_neither_the_import_nor_the_first_cast_prints_anything(isa: str) -> None:
    script = (
        "import gc\n"
        "from fmnist_tf.system.startup import import_tensorflow as f; f()\n"
        "frozen = gc.get_freeze_count(); f()\n"
        "assert gc.isenabled() and gc.get_freeze_count() == frozen > 100_000\n"
        "import tensorflow as tf\n"
        "tf.function(lambda x: tf.cast(x, tf.bfloat16))(tf.ones((8, 64)))"
    )
    command, environment = [sys.executable, "-c", script], os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (answer.returncode, answer.stderr) == (0, "")


NOISE = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1.0 1 port.cc:153] oneDNN custom operations are on.\n"
    b"E0000 00:00:1.0 1 x.cc:52] failed call to cuInit: INTERNAL: CUDA error\n"
    b"E0000 00:00:1.0 1 util.cc:131] oneDNN supports DT_BFLOAT16 only on platforms with AVX-512.\n"
)


def test_noise_is_dropped_and_errors_are_printed(capfd) -> None:
    real = "E0000 00:00:1.0 1 y.cc:1] something real"
    with holding_stderr(is_startup_noise):
        os.write(2, NOISE + real.encode())
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.splitlines() == [real]
    with pytest.raises(ImportError), holding_stderr(is_startup_noise):
        raise ImportError(os.write(2, NOISE))
    assert capfd.readouterr().err.encode() == NOISE  # one of these lines may be the reason


def test_frozen_objects_are_not_collected_and_later_ones_are() -> None:
    already = gc.get_freeze_count()
    with freezing_objects():
        made = [[] for _ in range(1000)]
        assert not gc.isenabled()
    frozen = gc.get_freeze_count()
    assert frozen >= already + len(made)
    assert gc.isenabled()
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1
    with pytest.raises(ImportError), freezing_objects():
        raise ImportError
    assert gc.isenabled()
