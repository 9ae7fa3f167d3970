"""Backbones by name: those of keras.applications, of KerasHub, and of networks.py.

Shape letters: B batch, S side of the input, H W C feature map.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras

from fmnist_tf.errors import UsageError
from fmnist_tf.model.applications import (
    build_application,
    default_side,
    find_value_range,
    list_applications,
    to_plain_layers,
)
from fmnist_tf.model.hub import PREFIX, build_preset, read_preset
from fmnist_tf.model.networks import (
    build_efficientnet_lite0,
    build_mlp,
    build_pooled_resnet,
    build_small_resnet,
)
from fmnist_tf.model.preprocessing import UNIT, ValueRange
from fmnist_tf.model.pretrained import load_efficientnet_lite0
from fmnist_tf.settings.backbones import find_name


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone.

    Attributes:
        name: what `--backbone` calls it.
        build: S -> Keras model without top, (B, S, S, channels of `value_range`) float32 ->
            (B, H, W, C) float32, with random weights in the layout of published weights.
            Raises ValueError where S is too small.
        default_size: the S it was trained at, in pixels.
        value_range: grey 0..255 -> the input that its weights expect.
        load_pretrained: S -> the same with the published ImageNet weights, and their file if it is
            known; or None. Raises `DownloadError` where they cannot be had.
        trained_on: what the published weights are from.
        is_plain: whether `build` makes plain layers with fixed names; see `to_plain_layers`.
    """

    name: str
    build: Callable[[int], keras.Model]
    default_size: int
    value_range: ValueRange
    load_pretrained: Callable[[int], tuple[keras.Model, Path | None]] | None = None
    trained_on: str = "ImageNet"
    is_plain: bool = True

    def simplify(self, network: keras.Model) -> keras.Model:
        """Return the result of `build` or `load_pretrained` as the package uses it."""
        # Keras takes no name with the slashes of a preset's.
        name = re.sub(r"[^\w-]+", "_", self.name)
        return network if self.is_plain else to_plain_layers(network, name)


# He et al. 2016, section 4.2, with n = 1; MLPerf Tiny's image classifier has the same widths
# (Banbury et al. 2021, arXiv:2106.07597).
_build_resnet8 = partial(build_small_resnet, "resnet8", widths=(16, 32, 64), blocks=1)
# Depth of He et al. 2016, table 1, at half its widths, with the stem of its section 4.2.
_build_resnet18 = partial(build_small_resnet, "resnet18", widths=(32, 64, 128, 256), blocks=2)
_build_resnet6 = partial(
    build_pooled_resnet, "resnet6", widths=(32, 64, 128), residual=frozenset({"conv3"})
)
_build_resnet8p = partial(
    build_pooled_resnet, "resnet8p", widths=(48, 96, 192), residual=frozenset({"conv2", "conv3"})
)

BACKBONES = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            "efficientnet-lite0",
            build_efficientnet_lite0,
            224,
            # As the reference implementation, which subtracts 127 and divides by 128.
            ValueRange(scale=(1 / 128,) * 3, offset=(-127 / 128,) * 3),
            load_efficientnet_lite0,
        ),
        # To be trained from scratch on 28x28 grey images.
        BackboneSpec("resnet8", _build_resnet8, 28, UNIT),
        BackboneSpec("resnet6", _build_resnet6, 28, UNIT),
        BackboneSpec("resnet8p", _build_resnet8p, 28, UNIT),
        BackboneSpec("resnet18", _build_resnet18, 28, UNIT),
        # No weights and no feature map: the head is the network, and `flatten` its only choice.
        BackboneSpec("mlp", build_mlp, 28, UNIT),
    )
}
"""Our own; `find_backbone_spec` finds the others too."""


def find_backbone_spec(name: str, side: int | None) -> tuple[BackboneSpec, int]:
    """Return a backbone's spec, and the side in pixels to use (None: its default).

    Args:
        name: one of `BACKBONES`; of keras.applications in any case, with or without hyphens; or
            `hub:` and a preset of KerasHub.
        side: S.

    Raises:
        UsageError: the name is unknown.
        DownloadError: KerasHub cannot have the preset.
    """
    spec = BACKBONES.get(name)
    if spec is None and name.startswith(PREFIX):
        preset = name.removeprefix(PREFIX)
        value_range, default_size = read_preset(preset)
        build = partial(build_preset, preset, load_weights=False)
        load = partial(build_preset, preset, load_weights=True)
        spec = BackboneSpec(
            name,
            build,
            default_size,
            value_range,
            lambda side: (load(side), None),
            trained_on=f"KerasHub's preset {preset}",
            is_plain=False,
        )
    elif spec is None:
        key = find_name(name)
        constructor = list_applications()[key]
        build = partial(build_application, constructor)
        spec = BackboneSpec(
            key,
            build,
            default_side(constructor),
            find_value_range(constructor),
            lambda side: (build(side, weights="imagenet"), None),
            is_plain=False,
        )
    return spec, spec.default_size if side is None else side


def build_backbone(spec: BackboneSpec, side: int) -> keras.Model:
    """Return the backbone of plain layers, with random weights.

    Raises:
        UsageError: the network cannot be built at this side.
    """
    return spec.simplify(build_published(spec, side))


def build_published(spec: BackboneSpec, side: int) -> keras.Model:
    """Return the backbone in the layout of published weights, with random weights.

    Raises:
        UsageError: the network cannot be built at this side.
    """
    try:
        return spec.build(side)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--image-size {side}: {spec.name} cannot be built at this size; choose a larger one, "
            f"such as {spec.default_size} ({reason})"
        ) from error
