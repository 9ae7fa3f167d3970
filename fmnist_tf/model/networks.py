"""Networks without top: our own, and those of keras.applications rebuilt from plain named layers.

Some networks of keras.applications name their layers by a counter of the process, contain operators
(`x + y`) and nested models, and draw random numbers. A rebuilt network consists of layers only, and
their names depend on nothing but its graph.

Shape letters: B batch, S side of the input, H W C feature map.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import layers

Label = Callable[[Sequence[str]], Iterator[tuple[str, str]]]
"""Names of a network's operations, in order -> block and own name; "" if Keras made the name."""


def build_mlp(side: int) -> keras.Model:
    """Return (B, S, S, 1) -> (B, S*S): the pixels; the head is the network."""
    inputs = keras.Input((side, side, 1), name="stem_input")
    return keras.Model(inputs, layers.Flatten(name="stem_flatten")(inputs), name="mlp")


def build_small_resnet(
    name: str, side: int, *, widths: tuple[int, ...], blocks: int
) -> keras.Model:
    """Return a residual network for small images, (B, S, S, 1) -> (B, H, W, widths[-1]).

    He et al. 2016, section 4.2 and table 6: a 3x3 stem, then stages of basic blocks of two 3x3
    convolutions; each stage halves the side. Where the shape changes, the shortcut is a 1x1
    convolution (option B of section 3.3). Layers are named as ResNet50's.

    Args:
        name: of the Keras model.
        side: S.
        widths: channels of each stage; the first is the stem's too.
        blocks: basic blocks in each stage.
    """
    inputs = keras.Input((side, side, 1), name="stem_input")
    x = _conv_norm_relu(inputs, widths[0], 3, 1, "stem")
    for stage, width in enumerate(widths, start=2):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            x = _basic_block(x, width, stride, f"conv{stage}_block{block}")
    return keras.Model(inputs, x, name=name)


def build_resnet6(side: int) -> keras.Model:
    """Return a network that learns small images fast, (B, S, S, 1) -> (B, H, W, 128).

    A small version of ResNet-9 of Page 2018 ("How to Train Your ResNet"), which has one stage and
    one residual block more and twice the width: each convolution outside the residual block doubles
    the width, and max pooling halves the side.
    """
    inputs = x = keras.Input((side, side, 1), name="stem_input")
    for name, width in (("stem", 32), ("conv2", 64)):
        x = _conv_norm_relu(x, width, 3, 1, name)
        x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)
    x = _conv_norm_relu(x, 128, 3, 1, "conv3")
    y = _conv_norm_relu(x, 128, 3, 1, "conv3_1")
    y = _conv_norm_relu(y, 128, 3, 1, "conv3_2")
    return keras.Model(inputs, layers.Add(name="conv3_add")([x, y]), name="resnet6")


def _basic_block(x: Any, width: int, stride: int, name: str) -> Any:
    y = _conv_norm_relu(x, width, 3, stride, f"{name}_1")
    y = _conv_norm(y, width, 3, 1, f"{name}_2")
    if x.shape[1:] != y.shape[1:]:
        x = _conv_norm(x, width, 1, stride, f"{name}_0")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))


def _conv_norm_relu(x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
    return layers.ReLU(name=f"{name}_relu")(_conv_norm(x, width, kernel, stride, name))


def _conv_norm(x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(
        width,
        kernel,
        stride,
        padding="same",
        use_bias=False,  # BatchNorm would subtract it
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    # Keras' momentum of 0.99 needs hundreds of steps; few images give tens of steps an epoch.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def applications_builder(
    application: Callable[..., keras.Model], name: str, **options: Any
) -> Callable[[int], keras.Model]:
    """Return S -> a network of keras.applications, (B, S, S, 3) -> (B, H, W, C)."""

    def build(side: int) -> keras.Model:
        return application(
            include_top=False, weights=None, input_shape=(side, side, 3), name=name, **options
        )

    return build


def rebuild(network: keras.Model, label: Label) -> keras.Model:
    """Return the same function of plain, labelled layers, with random weights.

    Operators become layers, and nested models become their layers. Dropout is left out, so training
    draws no random numbers that the loop does not seed; the networks train without stochastic
    depth. A convolution with a group for each channel, and ConvNeXt's factor for each channel,
    become depthwise convolutions, which are 50 times as fast on a processor.

    A layer's name is `block_name` if its label has a name, else `block_kind_number`.

    Args:
        network: functional; each of its layers is called once.
        label: labels the operations in the order of `network.operations`.
    """
    operations = network.operations
    names = [operation.name for operation in operations]
    label_of = dict(zip(names, label(names), strict=True))
    counts: Counter[str] = Counter()

    def call(operation: Any, *inputs: Any, **options: Any) -> Any:
        block, name = label_of[operation.name]
        for kind, settings in _plain_layers(operation, inputs):
            prefix = f"{block}_{kind.__name__.lower()}"
            counts[prefix] += not name
            own = f"{block}_{name}" if name else f"{prefix}_{counts[prefix]}"
            layer = kind.from_config({**settings, "name": own})
            # An operator takes several tensors, a layer takes a list.
            tensors = [x for x in inputs if isinstance(x, keras.KerasTensor)]
            inputs = (layer(tensors if len(tensors) > 1 else inputs[0]),)
        return inputs[0]

    return keras.models.clone_model(
        network,
        input_tensors=keras.Input(network.input_shape[1:], name="stem_input"),
        clone_function=lambda operation: operation,
        call_function=call,
    )


def _plain_layers(
    operation: Any, inputs: tuple[Any, ...]
) -> list[tuple[type[keras.Layer], dict[str, Any]]]:
    """Return class and settings of the layers that replace one operation."""
    if isinstance(operation, keras.Model):
        return [(type(layer), layer.get_config()) for layer in operation.layers]
    if isinstance(operation, layers.Dropout):
        return []
    if isinstance(operation, layers.Conv2D) and operation.groups > 1:
        return [(layers.DepthwiseConv2D, _depthwise_settings(operation))]
    if type(operation).__name__ == "LayerScale":  # no public class, and its weight is numbered
        initial = keras.initializers.Constant(operation.get_config()["init_values"])
        settings = {"kernel_size": 1, "use_bias": False, "depthwise_initializer": initial}
        return [(layers.DepthwiseConv2D, settings)]
    if isinstance(operation, keras.Layer):
        return [(type(operation), operation.get_config())]
    kind = type(operation).__name__  # an operator of keras.ops
    *_, operand = inputs
    if isinstance(operand, keras.KerasTensor):
        return [({"Add": layers.Add, "Multiply": layers.Multiply}[kind], {})]
    scale, offset = {"Add": (1.0, operand), "Multiply": (operand, 0.0)}[kind]
    return [(layers.Rescaling, {"scale": scale, "offset": offset})]


def _depthwise_settings(conv: layers.Conv2D) -> dict[str, Any]:
    config = conv.get_config()
    n_channels = conv.input.shape[-1]
    if not config["groups"] == config["filters"] == n_channels:
        raise NotImplementedError(f"{conv.name}: groups of more than one channel")
    shared = ("kernel_size", "strides", "padding", "activation", "use_bias", "bias_initializer")
    return {
        **{key: config[key] for key in shared},
        "depthwise_initializer": config["kernel_initializer"],
    }


def copy_weights(network: keras.Model, rebuilt: keras.Model) -> None:
    """Give a rebuilt network the weights of the original."""
    # The order is the same. A depthwise kernel (h, w, C, 1) holds the numbers of a grouped one
    # (h, w, 1, C), and with h = w = 1 those of a factor (C,).
    rebuilt.set_weights(
        [
            weight.numpy().reshape(own.shape)
            for weight, own in zip(network.weights, rebuilt.weights, strict=True)
        ]
    )


def label_efficientnet(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Label stem, block1a, ..., block6h, top; each name is in Keras' name."""
    for name in names:
        block, _, own = name.partition("_")
        yield block, own


def label_mobilenet(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Label stem, block0, ..., block10, top; activations and operators have no names."""
    block = "stem"
    for name in names:
        if match := re.fullmatch(r"expanded_conv_(?:(\d+)_)?(.+)", name):
            block = f"block{match[1] or 0}"
            yield block, match[2]
        elif match := re.fullmatch(r"(conv_1|conv)(_bn)?", name):
            block = "top" if match[1] == "conv_1" else "stem"
            yield block, f"conv{match[2] or ''}"
        else:
            yield block, ""


def label_inception(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Label stem, mixed0, ..., mixed10; each block ends with the concatenation of its name."""
    block, n_pools = "stem", 0
    for name in names:
        yield block, ""
        n_pools += name.startswith("max_pooling")
        if block == "stem" and n_pools == 2:
            block = "mixed0"
        elif match := re.fullmatch(r"mixed(\d+)", name):
            block = f"mixed{int(match[1]) + 1}"


def label_convnext(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Label stem, stage0, ..., stage3; downsampling belongs to the stage after it."""
    block = "stem"
    for name in names:
        if match := re.fullmatch(r".+_stage_(\d)_(.+)", name):
            block = f"stage{match[1]}"
            yield block, match[2]
            continue
        if match := re.fullmatch(r".+_downsampling_block_(\d)", name):
            block = f"stage{int(match[1]) + 1}"
        yield block, ""
