"""TensorFlow comes quietly; errors on stderr still come through."""

from __future__ import annotations

import subprocess
import sys


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_import_says_nothing_nor_does_the_first_cast() -> None:
    answer = run(
        "from fmnist_tf.system.startup import import_tensorflow as f; f()\n"
        "import tensorflow as tf\n"
        "tf.function(lambda x: tf.cast(x, tf.bfloat16))(tf.ones((8, 64)))"
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_noise_is_dropped_and_errors_are_passed_on() -> None:
    answer = run(
        "import os\n"
        "from fmnist_tf.system.startup import _is_startup_noise, holding_stderr\n"
        "with holding_stderr(_is_startup_noise):\n"
        "    os.write(2, b'I0000 00:00:1.0 1 port.cc:153] oneDNN is on\\n')\n"
        "    os.write(2, b'E0000 00:00:1.0 1 x.cc:52] failed call to cuInit: none\\n')\n"
        "    os.write(2, b'E0000 00:00:1.0 1 y.cc:1] something real\\n')\n"
        "os.write(2, b'after\\n')\n"
    )
    assert answer.stderr.splitlines() == ["E0000 00:00:1.0 1 y.cc:1] something real", "after"]


def test_an_exception_does_not_swallow_stderr() -> None:
    answer = run(
        "import os\n"
        "from fmnist_tf.system.startup import _is_startup_noise, holding_stderr\n"
        "with holding_stderr(_is_startup_noise):\n"
        "    os.write(2, b'I0000 00:00:1.0 what led to it\\n')\n"
        "    raise RuntimeError('x')\n"
    )
    assert "what led to it" in answer.stderr
    assert "RuntimeError: x" in answer.stderr
