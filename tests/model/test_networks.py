"""Our own networks have the published sizes."""

from __future__ import annotations

import numpy as np
import pytest
from keras import layers

from fmnist_tf.model.networks import build_efficientnet_lite0, build_small_resnet


@pytest.mark.parametrize(
    ("widths", "blocks", "weighted", "trained"),
    [
        # MLPerf Tiny's has 78,666 with three channels, ten classes, moving statistics, biases
        # before BatchNorm, and shortcuts with a bias in place of BatchNorm.
        ((16, 32, 64), 1, 7, 78_666 - 2 * 9 * 16 - 650 - 480 - 240 - 96 + 192),
        # The usual CIFAR version of ResNet-18 has 11,173,962 with three channels and ten classes.
        ((64, 128, 256, 512), 2, 17, 11_173_962 - 2 * 9 * 64 - 512 * 10 - 10),
    ],
)
def test_small_resnets_have_the_published_size(widths, blocks, weighted, trained) -> None:
    network = build_small_resnet("small", 8, widths=widths, blocks=blocks)
    convolutions = [layer for layer in network.layers if isinstance(layer, layers.Conv2D)]
    shortcuts = [layer for layer in convolutions if layer.kernel_size == (1, 1)]
    assert len(convolutions) - len(shortcuts) == weighted
    assert len(shortcuts) == len(widths) - 1
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == trained


def test_small_resnet_halves_the_side_from_stage_to_stage() -> None:
    network = build_small_resnet("small", 28, widths=(4, 8, 16, 32), blocks=2)
    shapes = [network.get_layer(f"conv{n}_block2_out").output.shape[1:] for n in (2, 3, 4, 5)]
    assert shapes == [(28, 28, 4), (14, 14, 8), (7, 7, 16), (4, 4, 32)]


def test_lite0_has_the_published_size() -> None:
    # 4,652,008 with the classifier of 1,000 classes, without moving statistics.
    network = build_efficientnet_lite0(32)
    trained = sum(int(np.prod(w.shape)) for w in network.trainable_weights)
    assert trained == 4_652_008 - 1280 * 1000 - 1000
    assert build_efficientnet_lite0(224).output_shape == (None, 7, 7, 1280)
