"""A network -> the same function, cheaper to compute.

In: a functional Keras model, the precision to compute in. Out: its folded twin, a Keras model of
the same inputs and outputs that reads the very same variables. A BatchNorm that stands still is
folded into the convolution before it, zero padding into the still convolution behind it, and
everything computes in the asked precision, while the variables stay float32. What does not train is
computed once and, unless told otherwise, stands in the graph as a constant, which lets the kernels
keep their own layout of it; what trains is folded anew in each step, so that gradients reach it,
and the gradient for a wide kernel on a small map is one product. This module must not know which
network it is given.

Keras' BatchNorm in inference is four unfused operations in float32, whatever the model's dtype.
Folding (Jacob et al. 2018, section 3.2): with s = gamma / sqrt(variance + epsilon),
`BN(conv(x, w) + b) = conv(x, w * s) + (b - mean) * s + beta`.

Shape letters: B batch, H W C feature map.
"""

from __future__ import annotations

import math
import os
from typing import Any

import keras
import tensorflow as tf

from fmnist_tf.machine import read_cpu_features


def choose_precision(knob: str) -> tuple[str, str]:
    """Return the compute dtype for `--precision`, and why in one clause."""
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
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":  # with which bfloat16 is computed
        return "float32", "TF_ENABLE_ONEDNN_OPTS is 0"
    features = read_cpu_features()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in features:
            return "bfloat16", f"the processor has {flag}"
    return "float32", "the processor has no bfloat16 units"


def fold_model(
    model: keras.Model, precision: str, *, still: bool = False, constant: bool = True
) -> keras.Model:
    """Return the folded twin of `model`.

    Args:
        model: functional or sequential, with one input; models nested in it are folded too. It is
            left as it is.
        precision: float32 or bfloat16, of the arithmetic. Layers with weights that this module
            does not know, and what turns a model's uint8 input into floats, keep to float32.
        still: nothing trains, whatever the layers' `trainable` flags say.
        constant: what does not train stands in the graph that calls the twin, where TensorFlow
            copies it several times before the first batch. Otherwise the graph reads it, and the
            kernels lay it out anew in every batch: for few batches that is sooner done.

    Returns:
        A model of the same input and output shapes. A variable that trains is the model's own; of
        one that does not, the twin holds a copy of its value now, if a convolution, a BatchNorm or
        a cast dense layer has it.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    takes_integers = not keras.backend.is_float_dtype(model.inputs[0].dtype)
    own_precision = "float32" if takes_integers else precision
    norm_of, padding_of = _foldable_pairs(model, still)
    dissolved = {id(layer) for layer in (*norm_of.values(), *padding_of.values())}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return fold_model(layer, precision, still=still, constant=constant)
        trains = layer.trainable and not still
        if id(layer) in dissolved:
            return keras.layers.Identity(name=layer.name)
        norm, padding = norm_of.get(layer.name), padding_of.get(layer.name)
        if _is_plain_convolution(layer):
            return _FoldedConvolution(layer, own_precision, trains, constant, norm, padding)
        if type(layer) is keras.layers.Dense and own_precision != layer.compute_dtype:
            return _FoldedDense(layer, own_precision, trains, constant)
        if type(layer) is keras.layers.BatchNormalization:
            fold_norm = _FusedNorm if trains else _FoldedNorm
            return fold_norm(layer, own_precision, trains, constant)
        if layer.weights:
            return layer  # in float32; Keras casts its input
        return type(layer).from_config({**layer.get_config(), "dtype": own_precision})

    def call(layer: Any, *inputs: Any, **words: Any) -> Any:
        if isinstance(layer, keras.layers.Identity):
            return inputs[0]  # what was folded away leaves no trace in the graph
        if isinstance(layer, _Folded):
            words.pop("mask", None)  # BatchNorm's; images have none
        return layer(*inputs, **words)

    inputs = keras.Input(
        batch_shape=model.input_shape,
        dtype=model.inputs[0].dtype if takes_integers else own_precision,
    )
    return keras.models.clone_model(
        model, input_tensors=inputs, clone_function=clone, call_function=call
    )


def _is_depthwise(layer: Any) -> bool:
    """Return whether each input channel is convolved alone."""
    if type(layer) is keras.layers.DepthwiseConv2D:
        return True
    # So does a Conv2D of as many groups as filters, whose kernel is (h, w, 1, C).
    return (
        type(layer) is keras.layers.Conv2D
        and layer.groups == layer.filters > 1
        and layer.kernel.shape[2] == 1
    )


def _is_full(layer: Any) -> bool:
    """Return whether each filter convolves all input channels."""
    return type(layer) is keras.layers.Conv2D and layer.groups == 1


def _is_plain_convolution(layer: Any) -> bool:
    """Return whether `_FoldedConvolution` can stand for the layer."""
    return _is_depthwise(layer) or _is_full(layer)


def _foldable_pairs(
    model: keras.Model, still: bool
) -> tuple[dict[str, keras.layers.BatchNormalization], dict[str, keras.layers.ZeroPadding2D]]:
    """Return which layers take in another.

    Returns:
        Convolution's name -> the still BatchNorm that alone consumes its output, and convolution's
        name -> the padding that it alone consumes.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    consumers: dict[str, list[Any]] = {}
    for layer in layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        for tensor in inputs:
            consumers.setdefault(tensor._keras_history.operation.name, []).append(layer)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    norm_of, padding_of = {}, {}
    for layer in layers:
        following = consumers.get(layer.name, [])
        if layer.name in ends or len(following) != 1:
            continue
        after = following[0]
        stands_still = still or not after.trainable
        if (
            _is_plain_convolution(layer)
            and layer.activation is keras.activations.linear
            and type(after) is keras.layers.BatchNormalization
            and stands_still
        ):
            norm_of[layer.name] = after
        # With explicit padding TensorFlow 2.21 has oneDNN's kernels for the forward pass of a full
        # convolution alone: not for gradients, not for pooling, and a depthwise one aborts.
        if (
            type(layer) is keras.layers.ZeroPadding2D
            and _is_full(after)
            and after.padding == "valid"
            and stands_still
        ):
            padding_of[after.name] = layer
    return norm_of, padding_of


def _scale_and_shift(
    norm: keras.layers.BatchNormalization, dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return s and t of `BN(x) = x * s + t`, each (C,)."""
    scale = tf.math.rsqrt(tf.cast(norm.moving_variance.value, dtype) + norm.epsilon)
    if norm.scale:
        scale *= tf.cast(norm.gamma.value, dtype)
    shift = -tf.cast(norm.moving_mean.value, dtype) * scale
    if norm.center:
        shift += tf.cast(norm.beta.value, dtype)
    return scale, shift


class _Folded(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Stands for a layer, and reads its weights; once, unless they train."""

    def __init__(
        self,
        source: keras.layers.Layer,
        precision: str,
        trains: bool,
        constant: bool,
        norm: keras.layers.BatchNormalization | None = None,
        padding: keras.layers.ZeroPadding2D | None = None,
    ) -> None:
        super().__init__(name=source.name, dtype=precision)
        self._source, self._norm, self._zero_padding = source, norm, padding
        self._still_weights: list[Any] | None = None
        if not trains:
            # Folded once, in float64; copies, so that the twin stands when the source moves.
            weights = [tf.cast(weight, self.compute_dtype) for weight in self._fold(tf.float64)]
            # A graph takes arrays in, as constants, and keeps tensors outside, as inputs.
            self._still_weights = [weight.numpy() for weight in weights] if constant else weights

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Return the weights to compute with, in `dtype`."""
        raise NotImplementedError

    def _weights_now(self) -> list[tf.Tensor]:
        if self._still_weights is not None:
            return [tf.convert_to_tensor(weight) for weight in self._still_weights]
        return [tf.cast(weight, self.compute_dtype) for weight in self._fold(tf.float32)]

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self._zero_padding is not None:
            input_shape = self._zero_padding.compute_output_shape(input_shape)
        return self._source.compute_output_shape(input_shape)


class _FoldedConvolution(_Folded):
    """Padding, convolution, still BatchNorm: one convolution and one addition per channel."""

    @property
    def _padding(self) -> Any:
        if self._zero_padding is None:
            return self._source.padding.upper()
        return [[0, 0], *map(list, self._zero_padding.padding), [0, 0]]

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        source = self._source
        kernel = tf.cast(source.kernel.value, dtype)
        if _is_depthwise(source) and isinstance(source, keras.layers.Conv2D):
            kernel = tf.transpose(kernel, (0, 1, 3, 2))
        weights = [kernel]
        if source.use_bias:
            weights.append(tf.cast(source.bias.value, dtype))
        if self._norm is not None:
            scale, shift = _scale_and_shift(self._norm, dtype)
            # A depthwise kernel is (h, w, C, multiplier); its outputs are the last two axes.
            by_channel = tf.reshape(scale, kernel.shape[2:]) if _is_depthwise(source) else scale
            bias = weights[1] * scale + shift if source.use_bias else shift
            weights = [kernel * by_channel, bias]
        return weights

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, *bias = self._weights_now()
        source = self._source
        if _is_depthwise(source):
            convolve, strides = tf.nn.depthwise_conv2d, (1, *source.strides, 1)
        else:
            convolve, strides = tf.nn.conv2d, source.strides
            if self._still_weights is None and _is_faster_by_product(inputs, source):
                convolve = _convolve_by_product
        outputs = convolve(inputs, kernel, strides, self._padding, dilations=source.dilation_rate)
        if bias:
            # TensorFlow fuses this form with the convolution, and an activation and addition after.
            outputs = tf.nn.bias_add(outputs, bias[0])
        return source.activation(outputs)


# Measured in float32 on a processor with AVX2 alone (runs/LOG.md, 2026-11-25): where a kernel reads
# so many channels and makes so small a map, oneDNN's gradient for it takes up to six times as long
# as one product of matrices.
_WIDE_CHANNELS, _SMALL_MAP = 256, 7 * 7


def _is_faster_by_product(inputs: tf.Tensor, source: keras.layers.Conv2D) -> bool:
    """Return whether `_convolve_by_product` trains this convolution faster than TensorFlow does."""
    n_outputs = math.prod(source.compute_output_shape(inputs.shape)[1:3])
    return (
        inputs.dtype == tf.float32
        and inputs.shape[-1] >= _WIDE_CHANNELS
        and n_outputs <= _SMALL_MAP
        and source.dilation_rate == (1, 1)
        and not tf.config.list_physical_devices("GPU")
    )


def _convolve_by_product(
    inputs: tf.Tensor, kernel: tf.Tensor, strides: Any, padding: str, dilations: Any
) -> tf.Tensor:
    """Return `tf.nn.conv2d` of undilated kernels, whose gradient for the kernel is one product."""
    del dilations
    height, width, n_in, n_out = kernel.shape

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(of_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            patches = tf.image.extract_patches(
                x, (1, height, width, 1), (1, *strides, 1), (1, 1, 1, 1), padding
            )
            of_kernel = tf.matmul(
                tf.reshape(patches, (-1, height * width * n_in)),
                tf.reshape(of_outputs, (-1, n_out)),
                transpose_a=True,
            )
            of_x = tf.nn.conv2d_transpose(of_outputs, kernel, tf.shape(x), strides, padding)
            return of_x, tf.reshape(of_kernel, kernel.shape)

        return tf.nn.conv2d(x, kernel, strides, padding), gradients

    outputs: tf.Tensor = convolve(inputs, kernel)
    return outputs


class _FoldedDense(_Folded):
    """A dense layer whose float32 weights are cast where they are used."""

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        source = self._source
        variables = [source.kernel, *([source.bias] if source.use_bias else [])]
        return [tf.cast(variable.value, dtype) for variable in variables]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, *bias = self._weights_now()
        outputs = keras.ops.matmul(inputs, kernel)
        if bias:
            outputs = tf.nn.bias_add(outputs, bias[0])
        return self._source.activation(outputs)


class _FoldedNorm(_Folded):
    """A still BatchNorm that no convolution takes in: one product and one addition."""

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        return list(_scale_and_shift(self._source, dtype))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        scale, shift = self._weights_now()
        return inputs * scale + shift


class _FusedNorm(_Folded):
    """A BatchNorm that trains, by TensorFlow's one fused operation; statistics in float32."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        source = self._source
        mean, variance = source.moving_mean.value, source.moving_variance.value
        n_channels = inputs.shape[-1]
        gamma = source.gamma.value if source.scale else tf.ones(n_channels)
        beta = source.beta.value if source.center else tf.zeros(n_channels)
        if not training:
            return tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, mean, variance, source.epsilon, is_training=False
            )[0]
        outputs, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, gamma, beta, epsilon=source.epsilon, is_training=True
        )
        # The operation returns the unbiased variance; Keras keeps the biased one.
        n = tf.cast(tf.size(inputs) // n_channels, tf.float32)
        batch_variance *= (n - 1) / n
        for statistic, new in ((mean, batch_mean), (variance, batch_variance)):
            statistic.assign_sub((statistic - new) * (1 - source.momentum))
        return outputs
