"""A frozen network -> the same function, cheaper to compute.

In: the frozen prefix of a classifier. Out: a Keras model with every BatchNorm that follows a
convolution folded into it, in the precision that the processor computes fast. Keras' BatchNorm in
inference is four unfused operations in float32; folded, it costs nothing. This module must not
know which network it is given.

Folding (Jacob et al. 2018, section 3.2): with s = gamma / sqrt(variance + epsilon),
`BN(conv(x, w) + b) = conv(x, w * s) + (b - mean) * s + beta`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def choose_precision(knob: str) -> tuple[str, str]:
    """Return the prefix's compute dtype for `--precision`, and why in one clause."""
    if knob != "auto":
        return knob, "as asked"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get(
            "compute_capability", (0, 0)
        )
        if capability >= (8, 0):
            return "bfloat16", f"GPU of compute capability {capability[0]}.{capability[1]}"
        return "float32", "the GPU has no bfloat16 units"
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.is_file() else set()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return "bfloat16", f"the processor has {flag}"
    return "float32", "the processor has no bfloat16 units"


def fold_prefix(prefix: keras.Model, precision: str) -> keras.Model:
    """Return a model that computes what `prefix` computes, folded and in `precision`.

    Args:
        prefix: a functional model used in inference; models nested in it are folded too. It and
            its variables are left as they are.
        precision: float32 or bfloat16, of weights and arithmetic. What stands before the first
            convolution of a nested model stays in float32.

    Returns:
        A model of the same input and output shape that shares no variable with `prefix`.
    """
    return _fold(prefix, "float32", precision)


def _fold(model: keras.Model, precision: str, nested_precision: str) -> keras.Model:
    norm_of = _foldable_pairs(model)
    folded_norms = {id(norm) for norm in norm_of.values()}
    new_weights: dict[str, list[np.ndarray]] = {}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return _fold(layer, nested_precision, nested_precision)
        if id(layer) in folded_norms:
            return keras.layers.Identity(name=layer.name)
        config = {**layer.get_config(), "dtype": precision}
        if layer.name in norm_of:
            config["use_bias"] = True
            new_weights[layer.name] = _fold_weights(layer, norm_of[layer.name])
        elif isinstance(layer, keras.layers.BatchNormalization):
            # Its arithmetic is in float32 whatever its dtype, and so are its weights.
            config["dtype"] = "float32"
        if layer.weights and layer.name not in norm_of:
            new_weights[layer.name] = layer.get_weights()
        return type(layer).from_config(config)

    def call(layer: Any, *inputs: Any, **words: Any) -> Any:
        if isinstance(layer, keras.layers.Identity):
            return inputs[0]  # a folded BatchNorm leaves no trace in the graph
        return layer(*inputs, **words)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for name, weights in new_weights.items():
        folded.get_layer(name).set_weights(weights)
    return folded


def _foldable_pairs(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """Return convolution's name -> the BatchNorm that alone consumes its output."""
    consumers: dict[str, list[Any]] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        for tensor in inputs:
            consumers.setdefault(tensor._keras_history.operation.name, []).append(layer)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    pairs = {}
    for layer in model.layers:
        if type(layer) not in FOLDABLE or layer.name in ends:
            continue
        if layer.activation is not keras.activations.linear:
            continue
        following = consumers.get(layer.name, [])
        if len(following) == 1 and isinstance(following[0], keras.layers.BatchNormalization):
            pairs[layer.name] = following[0]
    return pairs


def _fold_weights(
    conv: keras.layers.Conv2D | keras.layers.DepthwiseConv2D,
    norm: keras.layers.BatchNormalization,
) -> list[np.ndarray]:
    """Return [kernel, bias] of the convolution that does both, computed in float64."""
    n_channels = norm.moving_mean.shape[0]
    mean = np.asarray(norm.moving_mean, np.float64)
    variance = np.asarray(norm.moving_variance, np.float64)
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(n_channels)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(n_channels)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    kernel = np.asarray(conv.kernel, np.float64)
    bias = np.asarray(conv.bias, np.float64) if conv.use_bias else np.zeros(n_channels)
    # A depthwise kernel is (h, w, inputs, multiplier); its output channels are the last two axes.
    is_depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)
    by_channel = scale.reshape(kernel.shape[2:]) if is_depthwise else scale
    return [
        (kernel * by_channel).astype(np.float32),
        ((bias - mean) * scale + beta).astype(np.float32),
    ]
