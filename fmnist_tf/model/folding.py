"""A network -> the same function, cheaper to compute.

In: a functional Keras model, the precision to compute in. Out: its folded twin, a Keras model of
the same inputs and outputs that reads the very same variables. A BatchNorm that stands still is
folded into the convolution before it, zero padding into the still convolution behind it, and
everything computes in the asked precision, while the variables stay float32. What does not train is
computed once and, unless told otherwise, stands in the graph as a constant, which lets the kernels
keep their own layout of it; what trains is folded anew in each step, so that gradients reach it,
and the gradient for a wide kernel on a small map is one product. Where grey images are enlarged for
a wide convolution and nothing trains, both are one small convolution. This module must not know
which network it is given.

Keras' BatchNorm in inference is four unfused operations in float32, whatever the model's dtype.
Folding (Jacob et al. 2018, section 3.2): with s = gamma / sqrt(variance + epsilon),
`BN(conv(x, w) + b) = conv(x, w * s) + (b - mean) * s + beta`.

Shape letters: B batch, H W C feature map.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.model.stem import N_CHANNELS, axis_weights, channel_masks, compose_kernel
from fmnist_tf.system.cpu import read_cpu_features


def choose_precision(setting: str) -> tuple[str, str]:
    """Return the compute dtype for `--precision`, and why in one clause."""
    if setting != "auto":
        return setting, "as asked"
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
    model: keras.Model, precision: str, *, frozen: bool = False, constant: bool = True
) -> keras.Model:
    """Return the folded twin of `model`.

    Args:
        model: functional or sequential, with one input; models nested in it are folded too. It is
            left as it is.
        precision: float32 or bfloat16, of the arithmetic. Layers with weights that this module
            does not know keep to float32, and so does what turns a model's uint8 input into floats,
            unless it becomes one with the network's first convolution.
        frozen: nothing trains, whatever the layers' `trainable` flags say.
        constant: what does not train stands in the graph that calls the twin, where TensorFlow
            copies it several times before the first batch. Otherwise the graph reads it, and the
            kernels lay it out anew in every batch: for few batches that is sooner done.

    Returns:
        A model of the same input and output shapes. A variable that trains is the model's own; of
        one that does not, the twin holds a copy of its value now, if a convolution, a BatchNorm or
        a cast dense layer has it.
    """
    return _fold_graph(model, precision, frozen, constant, None)


def _fold_graph(
    model: keras.Model, precision: str, frozen: bool, constant: bool, stem: _Stem | None
) -> keras.Model:
    """Return the folded twin; it takes the grey image if it is a stem's backbone."""
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    takes_integers = not keras.backend.is_float_dtype(model.inputs[0].dtype)
    own_precision = "float32" if takes_integers else precision
    norm_of, padding_of = _foldable_pairs(model, frozen)
    gone = [*norm_of.values(), *padding_of.values()]
    if stem and stem.relu:
        gone.append(stem.relu)
    inner_stem = _find_stem(model) if frozen else None
    if inner_stem:
        gone += [inner_stem.resize, inner_stem.value_range]
    dissolved = {id(layer) for layer in gone}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            of_layer = inner_stem if inner_stem and layer is inner_stem.backbone else None
            return _fold_graph(layer, precision, frozen, constant, of_layer)
        trains = layer.trainable and not frozen
        if id(layer) in dissolved:
            return keras.layers.Identity(name=layer.name)
        norm, padding = norm_of.get(layer.name), padding_of.get(layer.name)
        if stem and layer is stem.convolution:
            return _GreyConvolution(stem, own_precision, constant, norm)
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
        batch_shape=stem.source_shape if stem else model.input_shape,
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
    model: keras.Model, frozen: bool
) -> tuple[dict[str, keras.layers.BatchNormalization], dict[str, keras.layers.ZeroPadding2D]]:
    """Return which layers take in another.

    Returns:
        Convolution's name -> the still BatchNorm that alone consumes its output, and convolution's
        name -> the padding that it alone consumes.
    """
    sole_consumer = _sole_consumers(model)
    norm_of, padding_of = {}, {}
    for layer in model.layers:
        after = sole_consumer.get(layer.name)
        if after is None:
            continue
        is_frozen = frozen or not after.trainable
        if (
            _is_plain_convolution(layer)
            and layer.activation is keras.activations.linear
            and type(after) is keras.layers.BatchNormalization
            and is_frozen
        ):
            norm_of[layer.name] = after
        # With explicit padding TensorFlow 2.21 has oneDNN's kernels for the forward pass of a full
        # convolution alone: not for gradients, not for pooling, and a depthwise one aborts.
        if (
            type(layer) is keras.layers.ZeroPadding2D
            and _is_full(after)
            and after.padding == "valid"
            and is_frozen
        ):
            padding_of[after.name] = layer
    return norm_of, padding_of


def _calls(model: keras.Model) -> Iterable[Any]:
    """Return each call of a layer in this model: Keras' nodes."""
    return chain.from_iterable(model._nodes_by_depth.values())


def _sole_consumers(model: keras.Model) -> dict[str, Any]:
    """Return a layer's name -> the layer that alone takes what it gives, and takes nothing else."""
    consumers: dict[str, list[Any]] = {}
    n_calls: Counter[str] = Counter()
    for node in _calls(model):
        n_calls[node.operation.name] += 1
        # The `input` of a model in this one is its own, not what it is called on here.
        for tensor in node.input_tensors:
            consumers.setdefault(tensor._keras_history.operation.name, []).append(node.operation)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    return {
        name: following[0]
        for name, following in consumers.items()
        if len(following) == 1 and name not in ends and n_calls[following[0].name] == 1
    }


@dataclass(frozen=True)
class _Stem:
    """What one convolution of the grey image can stand for.

    Attributes:
        resize: (B, H, W, 1) -> (B, S, S, 1), bilinear, by a whole factor.
        value_range: what follows, a 1x1 convolution to C colours.
        backbone: what follows; it begins with what is below.
        convolution: wide; zero padding may stand before it.
        relu: what alone follows it and its still BatchNorm, or None.
        source_shape: (None, H, W, 1).
        axes: `axis_weights` of rows and of columns.
    """

    resize: Any
    value_range: Any
    backbone: keras.Model
    convolution: Any
    relu: Any
    source_shape: tuple[Any, ...]
    axes: tuple[np.ndarray, np.ndarray]


def _find_stem(model: keras.Model) -> _Stem | None:
    """Return what of a model that stands still is cheaper as one convolution of the grey image."""
    following = _sole_consumers(model)
    resize: Any = next(filter(_is_bilinear, model.layers), None)
    value_range: Any = resize and following.get(resize.name)
    backbone: Any = value_range and following.get(value_range.name)
    if not (
        isinstance(backbone, keras.Model)
        and not isinstance(backbone, keras.Sequential)
        and _is_full(value_range)
        and value_range.kernel.shape[:3] == (1, 1, 1)
        and value_range.strides == (1, 1)
        and value_range.use_bias
        and value_range.activation is keras.activations.linear
    ):
        return None
    following = _sole_consumers(backbone)
    convolution: Any = following.get(backbone.inputs[0]._keras_history.operation.name)
    zeros, padded_shape = [0, 0], backbone.input_shape
    if type(convolution) is keras.layers.ZeroPadding2D:
        zeros = [first for first, _ in convolution.padding]
        padded_shape = convolution.compute_output_shape(padded_shape)
        convolution = following.get(convolution.name)
    if not (
        _is_full(convolution)
        and convolution.padding == "valid"
        and convolution.dilation_rate == (1, 1)
        # Each output alone; others, softmax for one, would see a whole row of them.
        and convolution.activation in (keras.activations.linear, keras.activations.relu)
        # As many multiplications in an output, or fewer.
        and 9 * N_CHANNELS <= math.prod(convolution.kernel.shape[:3])
    ):
        return None
    # Not `resize.input`, which may be of a call in another model.
    source_shape = next(
        call.input_tensors[0].shape for call in _calls(model) if call.operation is resize
    )
    output_shape = convolution.compute_output_shape(padded_shape)
    axes = []
    for axis, (stride, size) in enumerate(
        zip(convolution.strides, convolution.kernel_size, strict=True)
    ):
        source, side = source_shape[1 + axis], backbone.input_shape[1 + axis]
        if source is None or side % source or side // source % stride:
            return None
        if output_shape[1 + axis] != side // stride:
            return None
        weights = axis_weights(side // source, stride, size, zeros[axis])
        if weights is None:
            return None
        axes.append(weights)
    rows, columns = axes
    norm_of, _ = _foldable_pairs(backbone, frozen=True)
    relu: Any = following.get(norm_of.get(convolution.name, convolution).name)
    if not (type(relu) is keras.layers.Activation and relu.activation is keras.activations.relu):
        relu = None
    return _Stem(resize, value_range, backbone, convolution, relu, source_shape, (rows, columns))


def _is_bilinear(layer: Any) -> bool:
    """Return whether the layer is bilinear resizing and nothing else."""
    return (
        type(layer) is keras.layers.Resizing
        and layer.interpolation == "bilinear"
        and not (layer.antialias or layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio)
    )


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


class _GreyConvolution(_FoldedConvolution):
    """Resize, value range, padding, convolution, still BatchNorm and ReLU, of the grey image."""

    def __init__(
        self,
        stem: _Stem,
        precision: str,
        constant: bool,
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        self._stem = stem  # before the weights are folded, which happens there
        super().__init__(stem.convolution, precision, False, constant, norm)
        _, height, width, _ = stem.source_shape
        # In bfloat16 too these and the grey values, whole numbers to 255, are exact.
        self._masks = [
            tf.cast(mask, self.compute_dtype).numpy() for mask in channel_masks(height, width)
        ]

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Return a kernel for each row of a source pixel's outputs, and the bias of each."""
        stem = self._stem
        kernel, *biases = super()._fold(dtype)
        bias = biases[0] if biases else tf.zeros(stem.convolution.filters, dtype)
        scale, offset = (weight.numpy().reshape(-1) for weight in stem.value_range.weights)
        kernels = compose_kernel(kernel.numpy(), scale, offset, *stem.axes)
        n_rows, n_columns = (weights.shape[1] for weights in stem.axes)
        by_row = kernels.reshape(n_rows, 1, 1, 9 * N_CHANNELS, -1)
        return [*map(tf.constant, by_row), tf.tile(bias, [n_columns])]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        *kernels, bias = self._weights_now()
        activation = (self._stem.relu or self._source).activation
        continued = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        of_grey, of_ones = self._masks
        channels = continued * of_grey + of_ones
        _, height, width, _ = inputs.shape
        # Each pixel's neighbourhood as channels: for so few of them oneDNN's wide kernels are slow.
        patches = tf.concat(
            [channels[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], -1
        )
        # Activated before they lie side by side: TensorFlow fuses it with the convolution.
        rows = [
            activation(tf.nn.bias_add(tf.nn.conv2d(patches, kernel, 1, "VALID"), bias))
            for kernel in kernels
        ]  # (B, H, W, a pixel's outputs in one row)
        outputs = tf.stack(rows, axis=2)  # (B, H, P, W, Q * F)
        return tf.reshape(outputs, (-1, *self.compute_output_shape(inputs.shape)[1:]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        n_rows, n_columns = (weights.shape[1] for weights in self._stem.axes)
        batch, height, width, _ = input_shape
        return (batch, height * n_rows, width * n_columns, self._source.filters)


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
