"""TensorFlow and Keras, imported with fast kernels and without noise.

In: nothing. Out: both imported in one known configuration, as every command that needs them does
once, after it has checked what can be checked without. This module must not know what they are
used for.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STARTUP_NOISE = re.compile(
    r"^[IW]\d{4} |^\d{4}-.*: [IW] |^WARNING: All log|cuInit|oneDNN supports DT_BFLOAT16|^\s*$"
)


def import_tensorflow() -> None:
    """Import TensorFlow and Keras quietly, in the one configuration that runs are made in.

    oneDNN's kernels are TensorFlow's default only on processors with vector neural-network
    instructions; measured faster without them too (runs/LOG.md).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # A person's Keras settings are for their own programs; another backend, axis order or dtype
    # would change what a run computes.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with holding_stderr(_is_startup_noise):
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU, and says so
        # oneDNN says once, as an error, that the processor has no bfloat16 units; the features are
        # stored in it all the same, and `--precision auto` tells what is computed in.
        tf.function(lambda x: tf.cast(x, tf.bfloat16), autograph=False)(tf.zeros((1, 8)))
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def _is_startup_noise(line: str) -> bool:
    # TensorFlow logs before its log level applies, and calls the absence of a GPU an error.
    return _STARTUP_NOISE.search(line) is not None


@contextmanager
def holding_stderr(is_noise: Callable[[str], bool]) -> Iterator[None]:
    """Hold back what C++ code writes to stderr, and pass on the lines that are no noise.

    If the work inside fails every line is passed on: one of them may say why.
    """
    sys.stderr.flush()
    visible = os.dup(2)
    failed = True
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(visible, 2)
            os.close(visible)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if failed or not is_noise(line):
                    print(line, file=sys.stderr)
