"""The networks of keras.applications, without top, rebuilt from plain layers with fixed names.

Some name their layers by a counter of the process, contain operators (`x + y`) and nested models,
and draw random numbers. A rebuilt network consists of layers only, and their names depend on
nothing but its graph.
"""

from __future__ import annotations

import inspect
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.model.preprocessing import TORCH, UNIT_SIGNED, ValueRange

_TIMEOUT = 15.0  # seconds without a byte from the server

# Input sides in pixels of the papers and of Keras' model pages; all others have 224.
_SIDES = {
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
    "InceptionResNetV2": 299, "InceptionV3": 299, "Xception": 299, "NASNetLarge": 331,
}  # fmt: skip
# These have their preprocessing in the network, where `to_plain_layers` takes it out.
_INNER_RANGES = {
    "ConvNeXt": TORCH,
    "EfficientNetB": TORCH,
    "EfficientNetV2B": TORCH,
    "EfficientNetV2": ValueRange(scale=(1 / 128,) * 3, offset=(-1.0,) * 3),
    "MobileNetV3": UNIT_SIGNED,
}


def list_applications() -> dict[str, str]:
    """Return lower-case names -> the names of the constructors."""
    members = vars(keras.applications).items()
    names = [name for name, member in members if inspect.isfunction(member)]
    return {name.lower(): name for name in names}


def default_side(constructor: str) -> int:
    """Return the side in pixels that the published weights were trained at."""
    return _SIDES.get(constructor, 224)


def find_value_range(constructor: str) -> ValueRange:
    """Return what `preprocess_input` of the network's module does to grey 0..255."""
    for prefix, inner in _INNER_RANGES.items():
        if constructor.startswith(prefix):
            return inner
    modules = (m for m in vars(keras.applications).values() if isinstance(m, ModuleType))
    module = next(m for m in modules if hasattr(m, constructor))
    black, white = (
        module.preprocess_input(np.full((1, 1, 1, 3), grey, np.float64)).ravel()
        for grey in (0.0, 255.0)
    )
    return ValueRange(tuple((white - black) / 255), tuple(black))


def build_application(constructor: str, side: int, weights: str | None = None) -> keras.Model:
    """Build a network as Keras does, (B, S, S, 3) -> (B, H, W, C), S the side.

    Weights "imagenet" are downloaded, or found in Keras' cache; None are random.

    Raises:
        ValueError: Keras refuses the side.
        DownloadError: the weights are neither in Keras' cache nor to be downloaded.
    """
    build: Callable[..., keras.Model] = getattr(keras.applications, constructor)
    if weights is None:
        return build(include_top=False, weights=None, input_shape=(side, side, 3))
    with limited_wait():
        try:
            return build(include_top=False, weights=weights, input_shape=(side, side, 3))
        except Exception as error:  # the only class that keras.utils.get_file raises
            reason = " ".join(str(error).split())[:200]
            message = f"Keras' weights of {constructor} cannot be had: {reason}"
            raise DownloadError(message) from error


@contextmanager
def limited_wait() -> Iterator[None]:
    """Let a library inside wait only seconds for each answer of a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def to_plain_layers(network: keras.Model, name: str) -> keras.Model:
    """Return the same function of plain layers with fixed names and the same weights.

    Operators become layers, and nested models become their layers. Dropout is left out, so training
    draws no random numbers that the loop does not seed; the networks train without stochastic
    depth. A convolution with a group for each channel, and ConvNeXt's factor for each channel,
    become depthwise convolutions, which are 50 times as fast on a processor; a separable
    convolution becomes two that can be folded. Layers before the first convolution that only
    rescale are left out: the classifier does that.

    The network is functional and calls each of its layers once; the result is called `name`.
    """
    counts: Counter[str] = Counter()
    sources: list[tuple[keras.Layer, list[Any]]] = []

    def add(part: _Part, inputs: Any) -> Any:
        own = part.name.removeprefix(f"{network.name}_")
        base = re.sub(r"_?\d*$", "", own)
        if base.replace("_", "") == re.sub(r"\d*$", "", part.kind.__name__.lower()):
            counts[base] += 1  # Keras numbers such names
            own = f"{base}_{counts[base]}"
        layer = part.kind(**part.settings, name=own)
        sources.append((layer, part.weights))
        return layer(inputs)

    def call(operation: Any, *inputs: Any, **options: Any) -> Any:
        if not sources and _only_rescales(operation):
            return inputs[0]
        if type(operation).__name__ == "CustomScaleLayer":  # InceptionResNet's x + scale * y
            x, y = inputs[0]
            y = add(_Part(layers.Rescaling, {"scale": operation.scale}, "rescaling"), y)
            return add(_Part(layers.Add, {}, "add"), [x, y])
        # An operator takes several tensors, a layer takes a list.
        tensors = [x for x in inputs if isinstance(x, keras.KerasTensor)]
        result = tensors if len(tensors) > 1 else inputs[0]
        for part in _find_parts(operation, inputs):
            result = add(part, result)
        return result

    plain = keras.models.clone_model(
        network,
        input_tensors=keras.Input(network.input_shape[1:], name="pixels"),
        clone_function=lambda operation: operation,
        call_function=call,
    )
    for layer, weights in sources:
        # A depthwise kernel (h, w, C, 1) holds the numbers of a grouped one (h, w, 1, C), and with
        # h = w = 1 those of a factor (C,).
        own = [weight.shape for weight in layer.weights]
        layer.set_weights([w.numpy().reshape(s) for w, s in zip(weights, own, strict=True)])
    return keras.Model(plain.input, plain.output, name=name)


class _Part(NamedTuple):
    """A layer to make: its class and settings, the name it had, and its weights."""

    kind: type[keras.Layer]
    settings: dict[str, Any]
    name: str
    weights: list[Any] = []  # noqa: RUF012  # never changed


def _only_rescales(operation: Any) -> bool:
    inner = operation.layers if isinstance(operation, keras.Model) else [operation]
    rescaling = layers.InputLayer | layers.Rescaling | layers.Normalization
    return all(isinstance(layer, rescaling) for layer in inner)


def _find_parts(operation: Any, inputs: tuple[Any, ...]) -> list[_Part]:
    """Return the layers that replace one operation, in order."""
    if isinstance(operation, keras.Model):
        return [part for layer in operation.layers for part in _find_parts(layer, inputs)]
    if isinstance(operation, layers.InputLayer | layers.Dropout):
        return []
    if isinstance(operation, keras.Layer):
        name, weights = operation.name, operation.weights
        config = {k: v for k, v in operation.get_config().items() if k != "name"}
    else:  # an operator of keras.ops
        kind, (*_, operand) = type(operation).__name__, inputs
        if isinstance(operand, keras.KerasTensor):
            return [_Part({"Add": layers.Add, "Multiply": layers.Multiply}[kind], {}, kind.lower())]
        scale, offset = {"Add": (1.0, operand), "Multiply": (operand, 0.0)}[kind]
        return [_Part(layers.Rescaling, {"scale": scale, "offset": offset}, "rescaling")]
    if isinstance(operation, layers.Conv2D) and operation.groups > 1:
        if not operation.groups == operation.filters == operation.input.shape[-1]:
            raise NotImplementedError(f"{name}: groups of more than one channel")
        shared = ("kernel_size", "strides", "padding", "activation", "use_bias")
        settings = {key: config[key] for key in shared}
        settings["depthwise_initializer"] = config["kernel_initializer"]
        return [_Part(layers.DepthwiseConv2D, settings, name, weights)]
    if isinstance(operation, layers.SeparableConv2D):
        shared = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
        settings = {key: config[key] for key in shared} | {"use_bias": False}
        pointwise = {key: config[key] for key in ("filters", "use_bias", "activation")}
        return [
            _Part(layers.DepthwiseConv2D, settings, f"{name}_depthwise", weights[:1]),
            _Part(layers.Conv2D, {**pointwise, "kernel_size": 1}, name, weights[1:]),
        ]
    if type(operation).__name__ == "LayerScale":  # no public class
        initial = keras.initializers.Constant(operation.get_config()["init_values"])
        settings = {"kernel_size": 1, "use_bias": False, "depthwise_initializer": initial}
        return [_Part(layers.DepthwiseConv2D, settings, name, weights)]
    return [_Part(type(operation), config, name, weights)]
