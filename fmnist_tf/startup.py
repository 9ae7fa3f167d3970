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
from collections.abc import Iterator
from contextlib import contextmanager

_STARTUP_NOISE = re.compile(r"^[IW]\d{4} |^\d{4}-.*: [IW] |^WARNING: All log|cuInit|^\s*$")


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
    with _without_startup_noise():
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU, and says so
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@contextmanager
def _without_startup_noise() -> Iterator[None]:
    """Hold back what C++ code writes to stderr, and pass on what is an error.

    TensorFlow logs before its log level applies, and calls the absence of a GPU an error.
    """
    sys.stderr.flush()
    visible = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(visible, 2)
            os.close(visible)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not _STARTUP_NOISE.search(line):
                    print(line, file=sys.stderr)
