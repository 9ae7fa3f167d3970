"""Fold BatchNorm and zero padding into convolutions: the same function, cheaper to compute.

`fold_model` returns a twin of a Keras model that reads the same variables:

- A frozen BatchNorm is fused into the convolution before it (Jacob et al. 2018, section 3.2): with
  s = gamma / sqrt(variance + epsilon), BN(conv(x, w) + b) = conv(x, w * s) + (b - mean) * s + beta.
  Keras computes BatchNorm in inference as four float32 operations, whatever the model's dtype.
- Zero padding is fused into the frozen convolution after it.
- Every layer computes in the requested precision; variables stay float32.
- Frozen weights are folded once, by default into constants, so that kernels can keep their own
  layout of them. Trainable weights are folded in each step, so that gradients reach them.

Shape letters: B batch, H W C feature map.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import keras
import tensorflow as tf


def fold_model(
    model: keras.Model, precision: str, *, frozen: bool = False, constant: bool = True
) -> keras.Model:
    """Return the folded twin of `model`, which stays as it is.

    Args:
        model: functional, with one input, and calls each layer once; nested models are folded too.
        precision: float32 or bfloat16, the compute dtype. Layers with weights that this module does
            not know compute in float32, and so does the conversion of a uint8 input to floats.
        frozen: nothing trains, whatever the layers' `trainable` flags say.
        constant: frozen weights become constants of the graph that calls the twin; TensorFlow
            copies them several times before the first batch. Otherwise the graph reads them and
            the kernels lay them out again in each batch, which is faster for few batches.

    Returns:
        A model of the same input and output shapes. Trainable variables are the model's own. Of
        frozen convolutions, BatchNorms and cast dense layers it holds copies of the weights.
    """
    takes_integers = not keras.backend.is_float_dtype(model.inputs[0].dtype)
    own_precision = "float32" if takes_integers else precision
    norm_of, padding_of = _fusable_pairs(model, frozen)
    fused = {id(layer) for layer in (*norm_of.values(), *padding_of.values())}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return fold_model(layer, precision, frozen=frozen, constant=constant)
        if id(layer) in fused:
            return keras.layers.Identity(name=layer.name)
        trains = layer.trainable and not frozen
        if _is_convolution(layer):
            norm, padding = norm_of.get(layer.name), padding_of.get(layer.name)
            return _FoldedConvolution(layer, own_precision, trains, constant, norm, padding)
        if type(layer) is keras.layers.Dense and own_precision != layer.compute_dtype:
            return _FoldedDense(layer, own_precision, trains, constant)
        if type(layer) is keras.layers.BatchNormalization:
            folded_norm = _TrainableNorm if trains else _FrozenNorm
            return folded_norm(layer, own_precision, trains, constant)
        if layer.weights:
            return layer  # in float32; Keras casts its input
        return type(layer).from_config({**layer.get_config(), "dtype": own_precision})

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        if isinstance(layer, keras.layers.Identity):
            return inputs[0]  # a fused layer leaves no operation
        if isinstance(layer, _Folded):
            options.pop("mask", None)  # BatchNorm's; images have none
        return layer(*inputs, **options)

    inputs = keras.Input(
        batch_shape=model.input_shape,
        dtype=model.inputs[0].dtype if takes_integers else own_precision,
    )
    return keras.models.clone_model(
        model, input_tensors=inputs, clone_function=clone, call_function=call
    )


def _is_full(layer: Any) -> bool:
    """Return whether each filter convolves all input channels."""
    return type(layer) is keras.layers.Conv2D and layer.groups == 1


def _is_convolution(layer: Any) -> bool:
    """Return whether the layer is a convolution that is folded."""
    return _is_full(layer) or type(layer) is keras.layers.DepthwiseConv2D


def _fusable_pairs(
    model: keras.Model, frozen: bool
) -> tuple[dict[str, keras.layers.BatchNormalization], dict[str, keras.layers.ZeroPadding2D]]:
    """Return which layers can be fused.

    Returns:
        Convolution's name -> the frozen BatchNorm that is the only consumer of its output, and
        convolution's name -> the padding whose only consumer it is.
    """
    norm_of, padding_of = {}, {}
    sole_consumer = _sole_consumers(model)
    for layer in model.layers:
        after = sole_consumer.get(layer.name)
        if after is None or (after.trainable and not frozen):
            continue
        if (
            _is_convolution(layer)
            and layer.activation is keras.activations.linear
            and type(after) is keras.layers.BatchNormalization
        ):
            norm_of[layer.name] = after
        # With explicit padding TensorFlow 2.21 has oneDNN kernels for the forward pass of a full
        # convolution only: none for gradients or pooling, and a depthwise one aborts.
        if (
            type(layer) is keras.layers.ZeroPadding2D
            and _is_full(after)
            and after.padding == "valid"
        ):
            padding_of[after.name] = layer
    return norm_of, padding_of


def _sole_consumers(model: keras.Model) -> dict[str, Any]:
    """Return a layer's name -> the only consumer of its output."""
    consumers: dict[str, list[Any]] = {}
    for node in chain.from_iterable(model._nodes_by_depth.values()):
        # Not `operation.input`: a nested model's is its own input, not what it is called on here.
        for tensor in node.input_tensors:
            consumers.setdefault(tensor._keras_history.operation.name, []).append(node.operation)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    return {
        name: following[0]
        for name, following in consumers.items()
        if len(following) == 1 and name not in ends
    }


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
    """Computes what another layer computes, from its weights; read once unless they train."""

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
        self._frozen_weights: list[Any] | None = None
        if not trains:
            # Copies, folded in float64: a later change of the source does not reach the twin.
            weights = [tf.cast(weight, self.compute_dtype) for weight in self._fold(tf.float64)]
            # In a graph arrays become constants, and tensors become inputs.
            self._frozen_weights = [weight.numpy() for weight in weights] if constant else weights

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Return the weights in `dtype`, here the kernel and, if there is one, the bias."""
        source = self._source
        variables = [source.kernel, *([source.bias] if source.use_bias else [])]
        return [tf.cast(variable.value, dtype) for variable in variables]

    def _weights_now(self) -> list[tf.Tensor]:
        if self._frozen_weights is not None:
            return [tf.convert_to_tensor(weight) for weight in self._frozen_weights]
        return [tf.cast(weight, self.compute_dtype) for weight in self._fold(tf.float32)]

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self._zero_padding is not None:
            input_shape = self._zero_padding.compute_output_shape(input_shape)
        return self._source.compute_output_shape(input_shape)


class _FoldedConvolution(_Folded):
    """Padding, convolution and frozen BatchNorm as one convolution with a bias."""

    @property
    def _padding(self) -> Any:
        if self._zero_padding is None:
            return self._source.padding.upper()
        return [[0, 0], *map(list, self._zero_padding.padding), [0, 0]]

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        kernel, *bias = super()._fold(dtype)
        if self._norm is None:
            return [kernel, *bias]
        scale, shift = _scale_and_shift(self._norm, dtype)
        # A depthwise kernel is (h, w, C, multiplier); its outputs are the last two axes.
        by_channel = scale if _is_full(self._source) else tf.reshape(scale, kernel.shape[2:])
        return [kernel * by_channel, bias[0] * scale + shift if bias else shift]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, *bias = self._weights_now()
        source, trains = self._source, self._frozen_weights is None
        strides, padding, dilations = source.strides, self._padding, source.dilation_rate
        if _is_full(source):
            if trains and _is_faster_by_product(inputs, source):
                outputs = _convolve_by_product(inputs, kernel, strides, padding)
            else:
                outputs = tf.nn.conv2d(inputs, kernel, strides, padding, dilations=dilations)
        elif trains and _is_faster_by_forward(inputs, kernel, source):
            outputs = _convolve_depthwise(inputs, kernel)
        else:
            strides = (1, *strides, 1)
            outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, padding, dilations=dilations)
        if bias:
            # TensorFlow fuses this with the convolution, and with an activation or addition after.
            outputs = tf.nn.bias_add(outputs, bias[0])
        return source.activation(outputs)


# Measured in float32 with AVX2 (runs/LOG.md, 2026-11-25): from so many input channels to so small a
# map, oneDNN's kernel gradient takes up to six times as long as one matrix product.
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
    inputs: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    """Return `tf.nn.conv2d`, whose kernel gradient is one matrix product."""
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


def _is_faster_by_forward(inputs: tf.Tensor, kernel: tf.Tensor, source: Any) -> bool:
    """Return whether `_convolve_depthwise` trains this convolution faster than TensorFlow does.

    Measured (runs/LOG.md, 2026-11-27): oneDNN has no bfloat16 gradient of kernels over 3x3.
    """
    return (
        inputs.dtype == tf.bfloat16
        and min(kernel.shape[:2]) > 3
        and kernel.shape[3] == source.strides[0] == source.strides[1] == 1
        and source.dilation_rate == (1, 1)
        and source.padding == "same"
        and not tf.config.list_physical_devices("GPU")
    )


def _convolve_depthwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return `tf.nn.depthwise_conv2d`, whose kernel gradient is a depthwise convolution too.

    Strides are 1, the padding is `same`.

    The gradient of image b and channel c is its map convolved with the gradient of its output, so
    a batch is one image of B*C channels, whose results are summed over B.
    """
    strides = (1, 1, 1, 1)
    height, width = inputs.shape[1:3]
    rows, columns, n_channels, _ = kernel.shape
    border = [[0, 0], [(rows - 1) // 2, rows // 2], [(columns - 1) // 2, columns // 2], [0, 0]]

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(of_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_x = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(x), kernel, of_outputs, strides, "SAME"
            )
            maps = tf.transpose(tf.pad(x, border), (1, 2, 0, 3))
            maps = tf.reshape(maps, (1, height + rows - 1, width + columns - 1, -1))
            kernels = tf.reshape(tf.transpose(of_outputs, (1, 2, 0, 3)), (height, width, -1, 1))
            of_images = tf.nn.depthwise_conv2d(maps, kernels, strides, "VALID")
            of_images = tf.reshape(of_images, (rows, columns, -1, n_channels))
            of_kernel = tf.reduce_sum(tf.cast(of_images, tf.float32), axis=2)
            return of_x, tf.cast(of_kernel[..., None], kernel.dtype)

        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME"), gradients

    outputs: tf.Tensor = convolve(inputs, kernel)
    return outputs


class _FoldedDense(_Folded):
    """A dense layer whose float32 weights are cast where they are used."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, *bias = self._weights_now()
        outputs = keras.ops.matmul(inputs, kernel)
        if bias:
            outputs = tf.nn.bias_add(outputs, bias[0])
        return self._source.activation(outputs)


class _FrozenNorm(_Folded):
    """A frozen BatchNorm that is not fused: one product and one addition."""

    def _fold(self, dtype: tf.DType) -> list[tf.Tensor]:
        return list(_scale_and_shift(self._source, dtype))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        scale, shift = self._weights_now()
        return inputs * scale + shift


class _TrainableNorm(_Folded):
    """A trainable BatchNorm as TensorFlow's one fused operation; statistics in float32."""

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
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            images = tf.cast(inputs, tf.float32)
            batch_mean, batch_variance = _moments_of_all(images)
            outputs = tf.nn.batch_normalization(
                images, batch_mean, batch_variance, beta, gamma, source.epsilon
            )
            outputs = tf.cast(outputs, inputs.dtype)
        else:
            outputs, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, epsilon=source.epsilon, is_training=True
            )
            # The operation returns the unbiased variance; Keras keeps the biased one.
            n = tf.cast(tf.size(inputs) // n_channels, tf.float32)
            batch_variance *= (n - 1) / n
        for statistic, new in ((mean, batch_mean), (variance, batch_variance)):
            statistic.assign_sub((statistic - new) * (1 - source.momentum))
        return outputs


def _moments_of_all(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean and biased variance of each channel over the images of all replicas.

    A replica may have none.
    """
    replica, add = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.SUM
    axes = list(range(len(x.shape) - 1))
    n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    totals = replica.all_reduce(add, tf.concat([tf.reduce_sum(x, axes), [n]], axis=0))
    mean = totals[:-1] / totals[-1]
    squares = replica.all_reduce(add, tf.reduce_sum((x - mean) ** 2, axes))
    return mean, squares / totals[-1]
