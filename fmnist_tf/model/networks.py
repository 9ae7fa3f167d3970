"""Networks of our own, without top: for small images, and EfficientNet-Lite0.

The names of layers decide what their stages and blocks are called; see blocks.py.

Shape letters: B batch, S side of the input, H W C feature map.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


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
    x = _conv_norm_relu(inputs, widths[0], "stem")
    for stage, width in enumerate(widths, start=2):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            x = _basic_block(x, width, stride, f"conv{stage}_block{block}")
    return keras.Model(inputs, x, name=name)


def build_pooled_resnet(
    name: str, side: int, *, widths: tuple[int, ...], residual: frozenset[str]
) -> keras.Model:
    """Return a network that learns small images fast, (B, S, S, 1) -> (B, H, W, widths[-1]).

    After ResNet-9 of Page 2018 ("How to Train Your ResNet"), smaller: each stage is a convolution
    and, in some, a residual block; max pooling halves the side between them.

    Args:
        name: of the Keras model.
        side: S.
        widths: channels of the stages, which are called stem, conv2, conv3 and so on.
        residual: the stages that have a residual block.
    """
    inputs = x = keras.Input((side, side, 1), name="stem_input")
    for number, width in enumerate(widths, start=1):
        stage = "stem" if number == 1 else f"conv{number}"
        x = _conv_norm_relu(x, width, stage)
        if stage in residual:
            y = _conv_norm_relu(x, width, f"{stage}_1")
            y = _conv_norm_relu(y, width, f"{stage}_2")
            x = layers.Add(name=f"{stage}_add")([x, y])
        if number < len(widths):
            x = layers.MaxPooling2D(2, name=f"{stage}_pool")(x)
    return keras.Model(inputs, x, name=name)


# Tan and Le 2019, table 1: kernel, first stride, expansion, channels, repeats of each stage.
_LITE0_STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip


def build_efficientnet_lite0(side: int) -> keras.Model:
    """Return EfficientNet-Lite0, (B, S, S, 3) -> (B, H, W, 1280).

    EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in place of swish
    (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
    """

    def conv_norm(x: Any, width: int | None, kernel: int, stride: int, name: str, own: str) -> Any:
        options = {"padding": "same", "use_bias": False, "name": f"{name}_{own}"}
        if width is None:
            x = layers.DepthwiseConv2D(kernel, stride, **options)(x)
        else:
            x = layers.Conv2D(width, kernel, stride, **options)(x)
        norm = own.replace("dwconv", "bn").replace("conv", "bn")
        return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_{norm}")(x)

    def relu6(x: Any, name: str) -> Any:
        return layers.ReLU(6.0, name=name)(x)

    inputs = keras.Input((side, side, 3), name="stem_input")
    x = relu6(conv_norm(inputs, 32, 3, 2, "stem", "conv"), "stem_relu")
    for number, (kernel, stride, expansion, width, repeats) in enumerate(_LITE0_STAGES, start=1):
        for repeat in range(repeats):
            name, shortcut = f"block{number}{chr(ord('a') + repeat)}", x
            if expansion > 1:
                x = conv_norm(x, x.shape[-1] * expansion, 1, 1, name, "expand_conv")
                x = relu6(x, f"{name}_expand_relu")
            x = conv_norm(x, None, kernel, stride if repeat == 0 else 1, name, "dwconv")
            x = conv_norm(relu6(x, f"{name}_relu"), width, 1, 1, name, "project_conv")
            if repeat:
                x = layers.Add(name=f"{name}_add")([x, shortcut])
    x = relu6(conv_norm(x, 1280, 1, 1, "top", "conv"), "top_relu")
    return keras.Model(inputs, x, name="efficientnet-lite0")


def _basic_block(x: Any, width: int, stride: int, name: str) -> Any:
    y = _conv_norm_relu(x, width, f"{name}_1", stride)
    y = _conv_norm(y, width, 3, 1, f"{name}_2")
    if x.shape[1:] != y.shape[1:]:
        x = _conv_norm(x, width, 1, stride, f"{name}_0")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))


def _conv_norm_relu(x: Any, width: int, name: str, stride: int = 1) -> Any:
    return layers.ReLU(name=f"{name}_relu")(_conv_norm(x, width, 3, stride, name))


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
