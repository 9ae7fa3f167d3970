"""A classifier -> SavedModel, LiteRT or ONNX; and each of them read back as a function.

In: a Keras classifier, its class names, training images for the ranges of int8. Out: files that
need neither this package nor Keras and carry their labels. This module must not know runs, which
images are which, or how well an export has to agree.

Every conversion starts from one traced function that calls the classifier with `training=False`:
Keras' own exporters leave that to the model, and Keras 3.15 then runs a nested model's BatchNorm
in training mode.

Shape letters: B batch, K classes, N images.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.system.startup import holding_stderr

SIGNATURE = "serving_default"
"""The signature of SavedModel and LiteRT, under the name that servers look for."""
LABELS = "labels.txt"
"""One class name a line, by label: a SavedModel's asset, and the file within a .tflite."""
ONNX_OPSET = 18  # the newest that tf2onnx 1.17 writes

_ERROR_LINE = re.compile(r"^E\d{4} |^\d{4}-.*: E |^ERROR")

Classify = Callable[[np.ndarray], np.ndarray]
"""(B, 28, 28) uint8 -> (B, K) float32 probabilities."""


def write_saved_model(model: keras.Model, class_names: Sequence[str], folder: Path) -> None:
    """Write a SavedModel whose one signature takes pixels and answers with names.

    `pixels` (B, 28, 28) uint8 -> `name` (B,) string, the most probable class; `probability` (B,)
    float32, of that class; `names` (B, K) string and `probabilities` (B, K) float32, by label.
    Each output has the batch dimension, as TensorFlow Serving's row format requires
    (https://www.tensorflow.org/tfx/serving/api_rest). `assets/labels.txt` holds the names too.

    Args:
        model: (B, 28, 28) uint8 -> (B, K) float32.
        class_names: K names, by label.
        folder: is made.
    """
    names = tf.constant(list(class_names))
    classify = _inference(model, None)

    @tf.function(input_signature=classify.input_signature, autograph=False)
    def serve(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = classify(pixels)["probabilities"]
        return {
            "name": tf.gather(names, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "names": tf.tile(names[tf.newaxis], [tf.shape(pixels)[0], 1]),
            "probabilities": probabilities,
        }

    module = _variables_of(model)
    with tempfile.TemporaryDirectory() as elsewhere, _held_stderr():
        labels = Path(elsewhere) / LABELS
        labels.write_text(labels_text(class_names), encoding="utf-8")
        module.labels = tf.saved_model.Asset(str(labels))
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: serve})


def write_litert(
    model: keras.Model,
    class_names: Sequence[str],
    path: Path,
    calibration: np.ndarray | None = None,
) -> None:
    """Write a .tflite file: `pixels` (1, 28, 28) uint8 -> `probabilities` (1, K) float32.

    The batch is fixed at 1: phones look at one picture, and their accelerators want fixed shapes.
    The labels lie in a zip archive behind the model, where TFLite Metadata keeps associated files.

    With `calibration` weights and activations are int8 (Jacob et al. 2018, section 2; weights per
    channel), ranges being those that the calibration images reach. The softmax stays in float: as
    int8 it knows 256 probabilities, of which small ones vanish and many are equal.

    Args:
        model: (B, 28, 28) uint8 -> (B, K) float32.
        class_names: K names, by label.
        path: ends in .tflite.
        calibration: (N, 28, 28) uint8 training images, or None for float32.
    """
    function = _inference(model, 1).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], _variables_of(model))
    with _held_stderr():
        content = converter.convert() if calibration is None else _quantize(converter, calibration)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as behind:
        behind.writestr(LABELS, labels_text(class_names))


def _quantize(converter: Any, calibration: np.ndarray) -> bytes:
    def images() -> Iterator[list[np.ndarray]]:
        for image in calibration:
            yield [image[np.newaxis]]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = images
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    # https://www.tensorflow.org/lite/performance/quantization_debugger, selective quantization:
    # the one public way to leave an operation in float.
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=images,
        debug_options=tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=["SOFTMAX"]),
    )
    return debugger.get_nondebug_quantized_model()


def write_onnx(model: keras.Model, class_names: Sequence[str], path: Path) -> None:
    """Write an ONNX file: `pixels` (N, 28, 28) uint8 -> `probabilities` (N, K) float32.

    The labels are a JSON list under `labels` in its metadata. Needs tf2onnx and onnx.

    Args:
        model: (B, 28, 28) uint8 -> (B, K) float32.
        class_names: K names, by label.
        path: ends in .onnx.
    """
    import onnx
    import tf2onnx

    classify = _inference(model, None)
    with _held_stderr():
        content, _ = tf2onnx.convert.from_function(
            classify, input_signature=classify.input_signature, opset=ONNX_OPSET
        )
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    content.metadata_props.add(key="labels", value=json.dumps(list(class_names)))
    onnx.checker.check_model(content)
    onnx.save(content, path)


def read_saved_model(folder: Path) -> Classify:
    """Return a SavedModel's signature as a function."""
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures[SIGNATURE]

    def classify(pixels: np.ndarray) -> np.ndarray:
        _ = loaded  # owns the variables, which the signature does not keep alive
        return signature(pixels=tf.constant(pixels))["probabilities"].numpy()

    return classify


def read_litert(path: Path, threads: int) -> Classify:
    """Return a .tflite file as a function that runs one image after the other.

    Raises:
        FmnistError: the interpreter does not take it.
    """
    try:
        with warnings.catch_warnings(), _held_stderr():
            # TensorFlow means to move it to another package; ours is pinned to one that has it.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except RuntimeError as error:
        raise FmnistError(
            f"{path.name}: expected a file that LiteRT runs, found: {printable(str(error), 200)}. "
            "With int8 this happens where a layer's output hardly varies over the calibration "
            "images: name others with --data, or train the network further"
        ) from error
    run = interpreter.get_signature_runner(SIGNATURE)

    def classify(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([run(pixels=image[np.newaxis])["probabilities"] for image in pixels])

    return classify


def read_onnx(path: Path, threads: int) -> Classify:
    """Return an ONNX file as a function, run by onnxruntime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def classify(pixels: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"pixels": pixels})[0]

    return classify


def labels_text(class_names: Sequence[str]) -> str:
    """Return the content of `LABELS`."""
    return "".join(f"{name}\n" for name in class_names)


def _inference(model: keras.Model, batch: int | None) -> Any:
    """Return the traced function that every conversion starts from."""
    spec = tf.TensorSpec((batch, IMAGE_SIZE, IMAGE_SIZE), tf.uint8, "pixels")

    @tf.function(input_signature=[spec], autograph=False)
    def classify(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(pixels, training=False)}

    return classify


def _variables_of(model: keras.Model) -> tf.Module:
    """Return what TensorFlow finds the model's variables in; it does not look into Keras' own."""
    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    return module


def _held_stderr() -> AbstractContextManager[None]:
    """Hold back what the converters write to stderr, all but errors."""
    return holding_stderr(lambda line: _ERROR_LINE.search(line) is None)
