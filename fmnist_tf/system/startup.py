"""Import TensorFlow and Keras in one known configuration, and without noise on stderr."""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from fmnist_tf.errors import UsageError

_STARTUP_NOISE = re.compile(
    r"^[IW]\d{4} |^\d{4}-.*: [IW] |^WARNING: All log|cuInit|oneDNN supports DT_|^\s*$"
)


def import_tensorflow(start: Callable[[], None] = lambda: None) -> None:
    """Import TensorFlow and Keras in the one configuration that runs are made in.

    Commands call this after they have checked what can be checked without TensorFlow. `start` is
    called before TensorFlow computes anything, such as to join other processes.

    Raises:
        UsageError: the program has imported Keras with another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow turns oneDNN's kernels on only for processors with vector neural-network
    # instructions; they are faster on others too (runs/LOG.md).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # keras.json is for the user's own programs: its backend, axis order or dtype would change what
    # a run computes.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    is_first = "tensorflow" not in sys.modules
    with holding_stderr(is_startup_noise), freezing_objects() if is_first else nullcontext():
        import keras
        import tensorflow as tf

        if is_first:
            tf.config.list_physical_devices()  # logs a missing GPU as an error
    start()
    with holding_stderr(is_startup_noise):
        if is_first:
            # The first cast logs, as an error and once, that a processor has no bfloat16 units.
            # Runs choose their precision accordingly (`--precision auto`), but store features in
            # bfloat16.
            tf.function(lambda x: tf.cast(x, tf.bfloat16), autograph=False)(tf.zeros((1, 8)))
    if (found := keras.config.backend()) != "tensorflow":
        raise UsageError(
            f"expected Keras with the backend tensorflow, found {found}, with which this program "
            "has imported it; set the environment variable KERAS_BACKEND=tensorflow before"
        )
    # It warns of functions that are built again and again, as by several runs of a process.
    tf.get_logger().setLevel("ERROR")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@contextmanager
def freezing_objects() -> Iterator[None]:
    """Import inside without garbage collection, then exclude all objects from later collections.

    TensorFlow's modules have hundreds of thousands of objects that live until the process ends, and
    each full collection would visit them all (runs/LOG.md). It must not be used after other work,
    whose objects would never be collected either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()


def is_startup_noise(line: str) -> bool:
    """Return whether TensorFlow logs this line at every start; its log level applies too late."""
    return _STARTUP_NOISE.search(line) is not None


@contextmanager
def holding_stderr(is_noise: Callable[[str], bool]) -> Iterator[None]:
    """Hold back what C++ code writes to stderr inside, then print the lines that are no noise.

    If the code inside raises, every line is printed: one of them may be the reason.
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
