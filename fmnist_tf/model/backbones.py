"""One `BackboneSpec` per backbone: its network, input, stages and published weights.

Shape letters: B batch, S side of the input, H W C feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from fmnist_tf.errors import UsageError
from fmnist_tf.model.networks import (
    applications_builder,
    build_mlp,
    build_resnet6,
    build_small_resnet,
    label_convnext,
    label_efficientnet,
    label_inception,
    label_mobilenet,
    rebuild,
)
from fmnist_tf.model.preprocessing import CAFFE, TORCH, UNIT, UNIT_SIGNED, ValueRange


@dataclass(frozen=True)
class PretrainedWeights:
    """A published weights file in Keras' layout, without top.

    Attributes:
        url: its address.
        digest: SHA-256, or MD5 with the prefix `md5:`, as its publisher states it.
        trained_on: the name of the training data.
        licence: its licence.
    """

    url: str
    digest: str
    trained_on: str
    licence: str


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone.

    Attributes:
        name: what `--backbone` calls it.
        build: S -> Keras model without top, (B, S, S, channels of `value_range`) float32 ->
            (B, H, W, C) float32, with random weights. The names of its layers with weights do not
            depend on the models built before.
        min_size: smallest S that the network accepts, in pixels.
        default_size: the S it was trained at, in pixels.
        value_range: grey 0..255 -> the input that its weights expect.
        stages: stage name -> prefixes of its layers' names, from input to output; one tensor
            passes from each stage to the next.
        pretrained: the published weights, or None.
        build_published: S -> the network in the layout of its weights file, where `build` rebuilds
            it from plain layers; else None.
    """

    name: str
    build: Callable[[int], keras.Model]
    min_size: int
    default_size: int
    value_range: ValueRange
    stages: dict[str, tuple[str, ...]]
    pretrained: PretrainedWeights | None
    build_published: Callable[[int], keras.Model] | None = None

    def stage_of(self, layer_name: str) -> str:
        """Return the stage of one of the backbone's layers; the input belongs to the stem."""
        for stage, prefixes in self.stages.items():
            if layer_name.startswith(prefixes):
                return stage
        return next(iter(self.stages))


# Digests as keras.applications states them, MD5 where it states no SHA-256.
_PUBLISHED = "https://storage.googleapis.com/tensorflow/keras-applications"

RESNET50 = BackboneSpec(
    name="resnet50",
    build=applications_builder(keras.applications.ResNet50, "resnet50"),
    min_size=32,
    default_size=224,
    value_range=CAFFE,
    stages={
        "stem": ("conv1_", "pool1_"),
        "conv2": ("conv2_",),
        "conv3": ("conv3_",),
        "conv4": ("conv4_",),
        "conv5": ("conv5_",),
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        digest="md5:4d473c1dd8becc155b73f8504c6f6626",
        trained_on="ImageNet",
        licence="MIT (He et al., https://github.com/KaimingHe/deep-residual-networks)",
    ),
)

VGG16 = BackboneSpec(
    name="vgg16",
    build=applications_builder(keras.applications.VGG16, "vgg16"),
    min_size=32,
    default_size=224,
    value_range=CAFFE,
    stages={
        "stem": ("block1_",),  # the first two convolutions; the paper names no stem
        "block2": ("block2_",),
        "block3": ("block3_",),
        "block4": ("block4_",),
        "block5": ("block5_",),
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        digest="md5:6d6bbae143d832006294945121d1f1fc",
        trained_on="ImageNet",
        licence="CC BY (VGG, Oxford, https://www.robots.ox.ac.uk/~vgg/research/very_deep/)",
    ),
)

_build_efficientnet = applications_builder(
    keras.applications.EfficientNetV2B0, "efficientnetv2-b0", include_preprocessing=False
)
EFFICIENTNETV2_B0 = BackboneSpec(
    name="efficientnetv2-b0",
    build=lambda side: rebuild(_build_efficientnet(side), label_efficientnet),
    build_published=_build_efficientnet,
    min_size=32,
    default_size=224,
    value_range=TORCH,
    stages={
        "stem": ("stem_",),
        "block1": ("block1",),
        "block2": ("block2",),
        "block3": ("block3",),
        "block4": ("block4",),
        "block5": ("block5",),
        "block6": ("block6", "top_"),  # the top alone is one 1x1 convolution
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        digest="md5:893217f2bb855e2983157299931e43ff",
        trained_on="ImageNet",
        licence="Apache-2.0 (Tan and Le, https://github.com/google/automl)",
    ),
)

_build_inception = applications_builder(keras.applications.InceptionV3, "inceptionv3")
INCEPTIONV3 = BackboneSpec(
    name="inceptionv3",
    build=lambda side: rebuild(_build_inception(side), label_inception),
    build_published=_build_inception,
    min_size=75,
    default_size=299,
    value_range=UNIT_SIGNED,
    # One stage for each size of the feature map: 35, 17 and 8 pixels at the default size.
    stages={
        "stem": ("stem_",),
        "mixed0-2": ("mixed0_", "mixed1_", "mixed2_"),
        "mixed3-7": ("mixed3_", "mixed4_", "mixed5_", "mixed6_", "mixed7_"),
        "mixed8-10": ("mixed8_", "mixed9_", "mixed10_"),
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        digest="md5:bcbd6486424b2319ff4ef7d526e38f63",
        trained_on="ImageNet",
        licence="Apache-2.0 (Szegedy et al., https://github.com/tensorflow/models)",
    ),
)

# MobileNetV3-Small: a quarter of the operations of MobileNetV3-Large.
_build_mobilenet = applications_builder(
    keras.applications.MobileNetV3Small, "mobilenetv3", include_preprocessing=False
)
MOBILENETV3 = BackboneSpec(
    name="mobilenetv3",
    build=lambda side: rebuild(_build_mobilenet(side), label_mobilenet),
    build_published=_build_mobilenet,
    min_size=32,
    default_size=224,
    value_range=UNIT_SIGNED,
    # One stage for each size of the feature map.
    stages={
        "stem": ("stem_",),
        "block0": ("block0_",),
        "block1-2": ("block1_", "block2_"),
        "block3-7": ("block3_", "block4_", "block5_", "block6_", "block7_"),
        "block8-10": ("block8_", "block9_", "block10_", "top_"),
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        digest="md5:d3e8ec802a04aa4fc771ee12a9a9b836",
        trained_on="ImageNet",
        licence="Apache-2.0 (Howard et al., https://github.com/tensorflow/models)",
    ),
)

_build_convnext = applications_builder(
    keras.applications.ConvNeXtTiny, "convnext-tiny", include_preprocessing=False
)
CONVNEXT_TINY = BackboneSpec(
    name="convnext-tiny",
    build=lambda side: rebuild(_build_convnext(side), label_convnext),
    build_published=_build_convnext,
    min_size=32,
    default_size=224,
    value_range=TORCH,
    stages={
        "stem": ("stem_",),
        "stage0": ("stage0_",),
        "stage1": ("stage1_",),
        "stage2": ("stage2_",),
        "stage3": ("stage3_",),
    },
    pretrained=PretrainedWeights(
        url=f"{_PUBLISHED}/convnext/convnext_tiny_notop.h5",
        digest="d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        trained_on="ImageNet",
        licence="MIT (Liu et al., https://github.com/facebookresearch/ConvNeXt)",
    ),
)

# Networks to train from scratch on 28x28 grey images; none has published weights.

RESNET8 = BackboneSpec(
    name="resnet8",
    # He et al. 2016, section 4.2, with n = 1; MLPerf Tiny's image classifier has the same widths
    # (Banbury et al. 2021, arXiv:2106.07597).
    build=lambda side: build_small_resnet("resnet8", side, widths=(16, 32, 64), blocks=1),
    min_size=4,
    default_size=28,
    value_range=UNIT,
    stages={
        "stem": ("stem_",),
        "conv2": ("conv2_",),
        "conv3": ("conv3_",),
        "conv4": ("conv4_",),
    },
    pretrained=None,
)

RESNET18 = BackboneSpec(
    name="resnet18",
    # Depth of He et al. 2016, table 1, at half its widths, with the stem of its section 4.2.
    build=lambda side: build_small_resnet("resnet18", side, widths=(32, 64, 128, 256), blocks=2),
    min_size=8,
    default_size=28,
    value_range=UNIT,
    stages={
        "stem": ("stem_",),
        "conv2": ("conv2_",),
        "conv3": ("conv3_",),
        "conv4": ("conv4_",),
        "conv5": ("conv5_",),
    },
    pretrained=None,
)

RESNET6 = BackboneSpec(
    name="resnet6",
    build=build_resnet6,
    min_size=8,
    default_size=28,
    value_range=UNIT,
    stages={"stem": ("stem_",), "conv2": ("conv2_",), "conv3": ("conv3_",)},
    pretrained=None,
)

MLP = BackboneSpec(
    name="mlp",
    # No weights and no feature map: the head is the network, and `flatten` its only choice.
    build=build_mlp,
    min_size=1,
    default_size=28,
    value_range=UNIT,
    stages={"stem": ("stem_",)},
    pretrained=None,
)

BACKBONES = {
    spec.name: spec
    for spec in (
        RESNET50,
        VGG16,
        EFFICIENTNETV2_B0,
        INCEPTIONV3,
        MOBILENETV3,
        CONVNEXT_TINY,
        RESNET8,
        RESNET6,
        RESNET18,
        MLP,
    )
}


def find_backbone_spec(name: str, side: int | None) -> tuple[BackboneSpec, int]:
    """Return a backbone's spec, and the side in pixels to use (None: its default).

    Raises:
        UsageError: the name is unknown, or the side is below `min_size`.
    """
    spec = BACKBONES.get(name)
    if spec is None:
        raise UsageError(f"--backbone {name}: expected one of {', '.join(BACKBONES)}")
    side = spec.default_size if side is None else side
    if side < spec.min_size:
        raise UsageError(
            f"--image-size {side}: {name} needs at least {spec.min_size} pixels a side"
        )
    return spec, side
