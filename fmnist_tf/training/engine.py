"""OpenVINO as the engine of backbone features, on a processor often faster than TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.errors import FmnistError, UsageError
from fmnist_tf.model.folding import fold_model
from fmnist_tf.system.cpu import usable_cpus
from fmnist_tf.training.feature_store import FEATURE_DTYPE, N_THREADS
from fmnist_tf.training.features import average_feature_maps, build_feature_function

TENSORFLOW, OPENVINO = "tensorflow", "openvino"
N_CHECKED = 64
# The norm of the difference to TensorFlow's float32 features of an image, by their norm: both
# engines round the result to 8 bits. In bfloat16 they round each layer too; there OpenVINO may
# differ by twice as much again as TensorFlow in bfloat16 does (0.06 to 0.09 of EfficientNet-Lite0).
TOLERANCE = 2**-7
# Of a batch: the maps of few images stay in the processor's cache (runs/LOG.md).
_REQUESTS_PER_BATCH = 8


class EngineError(FmnistError):
    """OpenVINO does not compute these features, or not as TensorFlow does."""


def choose_engine(setting: str, before: str | None = None) -> str:
    """Return the engine for `--engine`: tensorflow, or openvino and its version.

    Args:
        setting: auto, tensorflow or openvino. auto is OpenVINO where it is installed, no GPU is
            there, and TensorFlow was not used before.
        before: the engine so far, of a resumed run or of the frozen run that finetune continues.

    Raises:
        UsageError: openvino is asked for and not installed.
    """
    try:
        found = f"{OPENVINO} {version(OPENVINO)}"
    except PackageNotFoundError:
        if setting == OPENVINO:
            raise UsageError(
                "--engine openvino: OpenVINO is not installed; install it with `python -m pip "
                "install 'fmnist-tf[openvino]'`, or use --engine auto"
            ) from None
        return TENSORFLOW
    if setting == "auto" and before != TENSORFLOW and not tf.config.list_physical_devices("GPU"):
        return found
    return found if setting == OPENVINO else TENSORFLOW


def build_openvino_function(
    feature_extractor: keras.Model,
    precision: str,
    *,
    pools: bool,
    batch_size: int,
    examples: np.ndarray,
) -> Callable[[Any], tf.Tensor]:
    """Return what `build_feature_function` returns, computed by OpenVINO and checked.

    Args:
        feature_extractor: (B, 28, 28) uint8 -> features.
        precision: float32 or bfloat16, the compute dtype.
        pools: return `average_feature_maps` of the output.
        batch_size: rows of a usual call.
        examples: (N, 784) uint8, whose features are compared with TensorFlow's.

    Raises:
        EngineError: OpenVINO fails, or its features differ by more than rounding explains.
    """
    try:
        run = _compile(feature_extractor, precision, max(1, batch_size // _REQUESTS_PER_BATCH))
        found = run(examples)
    except Exception as error:  # whatever OpenVINO raises, TensorFlow can do it
        reason = str(error).strip().partition("\n")[0]
        raise EngineError(f"OpenVINO fails ({type(error).__name__}: {reason})") from error
    exact, rounded = (
        build_feature_function(feature_extractor, p, constant=False)(examples).numpy()
        for p in ("float32", precision)
    )
    difference, allowed = _differ(found, exact), TOLERANCE + 2 * _differ(rounded, exact)
    if not difference <= allowed:
        raise EngineError(
            f"OpenVINO's features of {len(examples)} images differ from TensorFlow's by up to "
            f"{difference:.2g} of their norm; expected at most {allowed:.2g}"
        )

    def compute(pixels: Any) -> tf.Tensor:
        maps = tf.numpy_function(run, [pixels], tf.bfloat16)
        maps = tf.ensure_shape(maps, (None, *feature_extractor.output_shape[1:]))
        return average_feature_maps(maps) if pools else maps

    return compute


def _differ(features: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest norm of an image's difference, by the norm of its exact features."""
    difference = features.astype(np.float32) - exact.astype(np.float32)
    axes = tuple(range(1, exact.ndim))
    squares = [np.square(x, dtype=np.float32).sum(axes) for x in (difference, exact)]
    return float(np.sqrt(squares[0] / np.maximum(squares[1], 1e-30)).max())


def _compile(
    feature_extractor: keras.Model, precision: str, size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return (B, 784) uint8 -> (B, *shape) bfloat16, computed `size` rows at a time.

    The size of a request is fixed, so that an image's features do not depend on the batch.
    """
    # OpenVINO reports its imports and conversions to its maker unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    openvino: Any = import_module("openvino")
    folded = fold_model(feature_extractor, "float32", frozen=True)

    @tf.function(input_signature=[tf.TensorSpec((size, N_PIXELS), tf.uint8)], autograph=False)
    def compute(pixels: tf.Tensor) -> tf.Tensor:
        return folded(tf.reshape(pixels, (size, IMAGE_SIZE, IMAGE_SIZE)), training=False)

    model = openvino.convert_model(compute.get_concrete_function())
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": len(usable_cpus()),
        "ENABLE_CPU_PINNING": False,  # two runs would share one core and leave the other
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    idle: SimpleQueue[Any] = SimpleQueue()
    for _ in range(N_THREADS):
        idle.put(openvino.AsyncInferQueue(compiled))

    def run(rows: np.ndarray) -> np.ndarray:
        features = np.empty((len(rows), *feature_extractor.output_shape[1:]), FEATURE_DTYPE)

        def keep(request: Any, first: int) -> None:
            part = features[first : first + size]
            part[...] = request.get_output_tensor(0).data[: len(part)]

        queue = idle.get()
        try:
            queue.set_callback(keep)
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                queue.start_async({0: np.pad(part, ((0, size - len(part)), (0, 0)))}, first)
            queue.wait_all()
        finally:
            idle.put(queue)
        return features

    return run
