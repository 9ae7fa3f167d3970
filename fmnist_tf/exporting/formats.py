"""Write a classifier as SavedModel, LiteRT or ONNX, and read each back as a function.

The files need neither this package nor Keras and carry their class names.

Every conversion starts from one traced function that calls the classifier with `training=False`.

B batch, K classes, N images.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.model.preprocessing import take_bytes_only
from fmnist_tf.system.startup import holding_stderr

SIGNATURE = "serving_default"
"""The signature of SavedModel and LiteRT, under the name that servers look for."""
LABELS = "labels.txt"
"""One class name a line, by label: beside the model, as a SavedModel's asset, within a .tflite."""
ONNX_OPSET = 18  # the newest that tf2onnx 1.17 writes

_ERROR_LINE = re.compile(r"^E\d{4} |^\d{4}-.*: E |^ERROR")

Classify = Callable[[np.ndarray], np.ndarray]
"""(B, 28, 28) uint8 -> (B, K) float32 probabilities."""


@dataclass(frozen=True)
class Export:
    """One exported model."""

    path: Path  # file or folder
    precision: str  # "float32", or "int8" and how many images it was calibrated with
    classify: Classify


def write_exports(
    name: str,
    model: keras.Model,
    class_names: Sequence[str],
    calibration: np.ndarray,
    folder: Path,
    threads: int,
) -> list[Export]:
    """Write the model into a folder that exists, and read it back from there.

    Args:
        name: saved_model, litert (float32 and int8) or onnx; onnx needs the extra [onnx].
        model: (B, 28, 28) uint8 -> (B, K) float32.
        class_names: K names, by label.
        calibration: (N, 28, 28) uint8 training images, for int8.
        folder: for the files.
        threads: that LiteRT and onnxruntime use.

    Raises:
        FmnistError: LiteRT cannot run what was converted.
    """
    labels = folder / LABELS
    labels.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    if name == "saved_model":
        return [_write_saved_model(model, class_names, labels)]
    if name == "onnx":
        return [_write_onnx(model, class_names, folder / "model.onnx", threads)]
    exact = _write_litert(model, labels, folder / "model.tflite", None, threads)
    return [exact, _write_litert(model, labels, folder / "model-int8.tflite", calibration, threads)]


def _write_saved_model(model: keras.Model, class_names: Sequence[str], labels: Path) -> Export:
    """Write a SavedModel with one signature and the asset `labels` beside that file.

    `pixels` (B, 28, 28) uint8 -> `name` (B,) string, the most probable class; `probability` (B,)
    float32, of that class; `names` (B, K) string and `probabilities` (B, K) float32, by label.
    Each output has the batch dimension, as TensorFlow Serving's row format requires
    (https://www.tensorflow.org/tfx/serving/api_rest).
    """
    names = tf.constant(list(class_names))
    predict = _inference(model, None)

    @tf.function(input_signature=predict.input_signature, autograph=False)
    def serve(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = predict(pixels)["probabilities"]
        return {
            "name": tf.gather(names, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "names": tf.tile(names[tf.newaxis], [tf.shape(pixels)[0], 1]),
            "probabilities": probabilities,
        }

    # TensorFlow Serving looks for folders with numbers, the versions of a model.
    path = labels.parent / "1"
    module = _variables_of(model)
    module.labels = tf.saved_model.Asset(str(labels))
    with _errors_only():
        tf.saved_model.save(module, str(path), signatures={SIGNATURE: serve})
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures[SIGNATURE]

    def classify(pixels: np.ndarray) -> np.ndarray:
        _ = loaded  # owns the variables, which the signature does not keep alive
        return signature(pixels=tf.constant(pixels))["probabilities"].numpy()

    return Export(path, "float32", classify)


def _write_litert(
    model: keras.Model, labels: Path, path: Path, calibration: np.ndarray | None, threads: int
) -> Export:
    """Write a .tflite file: `pixels` (1, 28, 28) uint8 -> `probabilities` (1, K) float32.

    The batch size is 1: phones look at one picture, and their accelerators want fixed shapes. The
    labels are in a zip archive after the model, where TFLite Metadata keeps associated files.

    With `calibration`, weights and activations are int8 (Jacob et al. 2018, section 2; weights per
    channel) with the ranges that these images reach. The softmax stays in float: in int8 it has 256
    probabilities, of which small ones vanish and many are equal.
    """
    traced = model
    if calibration is not None:
        traced = take_bytes_only(model, is_binary=calibration.max() <= 1)
    function = _inference(traced, 1).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], _variables_of(model))
    with _errors_only():
        content = converter.convert() if calibration is None else _quantize(converter, calibration)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(labels, LABELS)
    try:
        with warnings.catch_warnings(), _errors_only():
            # TensorFlow plans to move it to another package; the version required here has it.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except RuntimeError as error:
        raise FmnistError(
            f"{path.name}: expected a file that LiteRT runs, found: {printable(str(error), 200)}. "
            "With int8 this happens if a layer's output hardly varies over the calibration "
            "images: name others with --data, or train the network further"
        ) from error
    run = interpreter.get_signature_runner(SIGNATURE)

    def classify(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([run(pixels=image[np.newaxis])["probabilities"] for image in pixels])

    precision = "float32" if calibration is None else f"int8, {len(calibration)} images"
    return Export(path, precision, classify)


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


def _write_onnx(model: keras.Model, class_names: Sequence[str], path: Path, threads: int) -> Export:
    """Write an ONNX file: `pixels` (N, 28, 28) uint8 -> `probabilities` (N, K) float32.

    The labels are a JSON list under `labels` in its metadata.
    """
    import onnx
    import onnxruntime
    import tf2onnx

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            # tf2onnx takes tensors for inputs of the model, and arrays for constants.
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    predict = _inference(model, None)
    with _errors_only():
        content, _ = tf2onnx.convert.from_function(
            predict, input_signature=predict.input_signature, opset=ONNX_OPSET
        )
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    content.metadata_props.add(key="labels", value=json.dumps(list(class_names)))
    onnx.checker.check_model(content)
    onnx.save(content, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def classify(pixels: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"pixels": pixels})[0]

    return Export(path, "float32", classify)


def _inference(model: keras.Model, batch: int | None) -> Any:
    """Return the traced function that every conversion starts from."""
    spec = tf.TensorSpec((batch, IMAGE_SIZE, IMAGE_SIZE), tf.uint8, "pixels")

    @tf.function(input_signature=[spec], autograph=False)
    def classify(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(pixels, training=False)}

    return classify


def _variables_of(model: keras.Model) -> tf.Module:
    """Return a module with the model's variables; TensorFlow does not look into Keras models."""
    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    return module


def _errors_only() -> AbstractContextManager[None]:
    """Drop what the converters write to stderr, except errors."""
    return holding_stderr(lambda line: _ERROR_LINE.search(line) is None)
