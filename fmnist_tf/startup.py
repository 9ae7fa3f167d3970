"""TensorFlow, imported with its fast kernels and without its noise.

In: nothing. Out: TensorFlow imported, as every command that needs it does once, after it has
checked what can be checked without. This module must not know what TensorFlow is used for.
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
    """Import TensorFlow quietly, with its fast kernels.

    oneDNN's kernels are TensorFlow's default only on processors with vector neural-network
    instructions; measured faster without them too (runs/LOG.md).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _without_startup_noise():
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU, and says so


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
