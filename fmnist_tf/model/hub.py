"""Backbones of KerasHub presets, `--backbone hub:PRESET`: https://keras.io/keras_hub/presets/.

KerasHub is asked for the architecture, the weights and the range of the input. What is trained and
saved consists of Keras' own layers, so that the saved model needs no KerasHub.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.model.applications import limited_wait
from fmnist_tf.model.preprocessing import ValueRange

PREFIX = "hub:"


def read_preset(preset: str) -> tuple[ValueRange, int]:
    """Return what a preset does to grey 0..255, and the side of its images in pixels.

    It is a folder, or a name or handle that KerasHub knows.

    Raises:
        UsageError: KerasHub is not installed, or knows no such preset for images.
        DownloadError: the preset cannot be downloaded.
    """
    try:
        converter = _read(preset, "layers", "ImageConverter")
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--backbone {PREFIX}{preset}: expected a preset: {reason}") from error
    scale, offset = (
        tuple(value) if isinstance(value, Sequence) else (default if value is None else value,) * 3
        for value, default in ((converter.scale, 1.0), (converter.offset, 0.0))
    )
    return ValueRange(scale, offset), (converter.image_size or (224,))[0]


def build_preset(preset: str, side: int, *, load_weights: bool) -> keras.Model:
    """Return the backbone of a preset, (B, S, S, 3) -> (B, H, W, C), as KerasHub builds it.

    Raises:
        UsageError: as `read_preset`; or the network has layers of KerasHub's own.
        DownloadError: as `read_preset`.
        ValueError: the side is too small.
    """
    shape = (side, side, 3)
    network = _read(preset, "models", "Backbone", load_weights=load_weights, image_shape=shape)
    if strange := {type(step).__name__ for step in network.operations} - vars(keras.layers).keys():
        raise UsageError(
            f"--backbone {PREFIX}{preset}: expected a network of Keras' own layers, such as a "
            f"ResNet, VGG, DenseNet or Xception, found {', '.join(sorted(strange))}"
        )
    return keras.Model(network.input, network.output, name=network.name)


def _read(preset: str, module: str, kind: str, **options: Any) -> Any:
    try:
        import keras_hub
    except ImportError:
        raise UsageError(
            f"--backbone {PREFIX}{preset}: expected the package keras-hub, found none; install it "
            "with `python -m pip install -e '.[hub]'` in the checkout"
        ) from None
    with limited_wait():
        try:
            return getattr(getattr(keras_hub, module), kind).from_preset(preset, **options)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise DownloadError(f"the preset {preset} cannot be had: {reason}") from error
