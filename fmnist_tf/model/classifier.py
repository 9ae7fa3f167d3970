"""Preprocessing, backbone and head as one plain Keras model, and its two parts.

`split_classifier` cuts it below the lowest trainable block: the output of the frozen layers can be
cached, and the trained layers are folded. Both parts read the classifier's variables.

Shape letters: B batch, H W C feature map, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.errors import UsageError
from fmnist_tf.model.blocks import block_output, find_blocks
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.preprocessing import ValueRange, preprocess

HEAD = "head"
"""The stage above the backbone's own stages."""
_VARIANCE_FLOOR = 1e-4
"""Of the mean variance: a feature that hardly ever moves is not blown up where it does."""


def build_classifier(
    backbone: keras.Model,
    value_range: ValueRange,
    *,
    head: str,
    units: int,
    dropout: float,
    n_classes: int,
    seed: int,
    standardize: bool = False,
    name: str = "classifier",
) -> keras.Model:
    """Return the whole network, (B, 28, 28) uint8 -> (B, K) float32 probabilities.

    Floats are taken too, of 0..255 or of 0..1; see `preprocess`.

    Args:
        backbone: (B, S, S, channels of `value_range`) -> (B, H, W, C) or (B, F).
        value_range: of its input.
        head: flatten or gap (global average pooling; Lin et al. 2013, section 3.2).
        units: width of the hidden layer; 0 for none.
        dropout: rate in 0..1, before the last layer.
        n_classes: K.
        seed: of the head's initial weights and of dropout.
        standardize: put a `Normalization` layer before the dense layers; see `set_statistics`.
        name: of the Keras model.

    Raises:
        UsageError: the head is gap and the backbone has no feature map.
    """
    if head == "gap" and len(backbone.output_shape) != 4:
        raise UsageError(
            f"--head gap: expected flatten, since {backbone.name} has no feature map to average"
        )
    layers, glorot = keras.layers, keras.initializers.GlorotUniform
    pooling = layers.Flatten if head == "flatten" else layers.GlobalAveragePooling2D
    hidden = {"kernel_initializer": glorot(seed), "name": "hidden"}
    last = {"kernel_initializer": glorot(seed + 1), "dtype": "float32", "name": "probabilities"}
    # Keras casts images to the dtype of the input: of a uint8 one, floats of 0..1 would be black.
    pixels = keras.Input((IMAGE_SIZE, IMAGE_SIZE), dtype="float32", name="pixels")
    x = preprocess(pixels, value_range, backbone.input_shape[1])  # (B, S, S, 1 or 3)
    x = pooling(name=head)(backbone(x))  # (B, H, W, C) -> (B, H*W*C) or (B, C)
    if standardize:
        x = layers.Normalization(name="standardize")(x)
    if units:
        x = layers.Dense(units, "relu", **hidden)(x)  # (B, units)
    x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    return keras.Model(pixels, layers.Dense(n_classes, "softmax", **last)(x), name=name)  # (B, K)


def find_backbone(classifier: keras.Model) -> keras.Model:
    """Return the classifier's one nested model."""
    return next(layer for layer in classifier.layers if isinstance(layer, keras.Model))


def find_standardization(classifier: keras.Model) -> keras.layers.Normalization | None:
    """Return the layer that standardizes the features, if there is one."""
    found = (la for la in classifier.layers if isinstance(la, keras.layers.Normalization))
    return next(found, None)


def set_statistics(
    layer: keras.layers.Normalization, mean: np.ndarray, variance: np.ndarray
) -> None:
    """Make the layer standardize features of this mean and variance, each (F,) float64."""
    variance = np.maximum(variance, _VARIANCE_FLOOR * variance.mean())
    layer.set_weights([mean.astype("float32"), variance.astype("float32"), np.int32(1)])
    layer.finalize_state()


def use_statistics(classifier: keras.Model) -> None:
    """Make a `Normalization` layer use weights that were assigned and not loaded."""
    if (layer := find_standardization(classifier)) is not None:
        layer.finalize_state()


def divide_logits(classifier: keras.Model, temperature: float) -> None:
    """Change the last layer so that its logits are divided by the temperature."""
    layer = classifier.layers[-1]
    layer.set_weights([weight / temperature for weight in layer.get_weights()])


@dataclass(frozen=True)
class SplitClassifier:
    """A classifier cut below its lowest trainable block.

    Attributes:
        feature_extractor: the frozen layers: (B, 28, 28) uint8 -> (B, H, W, C), or (B, F) of a
            backbone without a feature map.
        pools_features: whether the features are the mean over H and W of the feature extractor's
            output: (B, C), so much smaller that the mean is cached.
        has_frozen_layers: whether the feature extractor has layers of the backbone, so that its
            output is worth caching; else it is the preprocessing only.
        trained_layers: features -> (B, units) in the compute dtype, up to the last layer; the
            folded twin.
        output_layer: the last layer; its kernel and bias give the logits.
    """

    feature_extractor: keras.Model
    pools_features: bool
    has_frozen_layers: bool
    trained_layers: keras.Model
    output_layer: keras.layers.Dense

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one image's features."""
        return tuple(self.trained_layers.inputs[0].shape[1:])

    def logits(self, features: Any, *, training: bool) -> Any:
        """Return (B, K) float32 logits; their softmax is the classifier's output.

        The loss is computed from logits: the logarithm of a rounded probability is not exact.
        """
        hidden = keras.ops.cast(self.trained_layers(features, training=training), "float32")
        return keras.ops.matmul(hidden, self.output_layer.kernel) + self.output_layer.bias


def split_classifier(
    classifier: keras.Model, lowest: str, precision: str = "float32"
) -> SplitClassifier:
    """Cut `classifier` below `lowest`.

    Args:
        classifier: its phase's plan is applied; the folding depends on its trainable flags.
        lowest: the label of the lowest trainable block, or `HEAD`.
        precision: float32 or bfloat16, the compute dtype of the trained layers.
    """
    backbone = find_backbone(classifier)
    above = classifier.layers[classifier.layers.index(backbone) + 1 : -1]
    is_lowest = lowest == find_blocks(backbone)[0].label
    has_frozen_layers = bool(backbone.weights) and not is_lowest
    is_pooled = isinstance(above[0], keras.layers.GlobalAveragePooling2D)
    pools_features = has_frozen_layers and lowest == HEAD and is_pooled
    extractor = build_extractor(classifier, lowest)
    if pools_features:
        above = above[1:]
    elif is_lowest:
        above = [backbone, *above]
    elif lowest != HEAD:
        entry = _entry_of(backbone, lowest)
        above = [keras.Model(entry, backbone.output, name="trained_blocks"), *above]
    feature_shape = extractor.output_shape[3:] if pools_features else extractor.output_shape[1:]
    tensor = features = keras.Input(feature_shape, dtype="float32")
    for layer in above:
        tensor = layer(tensor)
    trained_layers = keras.Model(features, tensor, name="trained_layers")
    return SplitClassifier(
        extractor,
        pools_features,
        has_frozen_layers,
        fold_model(trained_layers, precision),
        classifier.layers[-1],
    )


def build_extractor(classifier: keras.Model, *lowest: str) -> keras.Model:
    """Return (B, 28, 28) uint8 -> what enters the block with this label, or `HEAD`.

    Several labels give as many outputs, computed in one pass.
    """
    backbone = find_backbone(classifier)
    below = classifier.layers[classifier.layers.index(backbone) - 1]
    # The layers themselves, called on an input of bytes.
    preprocessing = keras.models.clone_model(
        keras.Model(classifier.input, below.output),
        input_tensors=keras.Input((IMAGE_SIZE, IMAGE_SIZE), dtype="uint8"),
        clone_function=lambda layer: layer,
    )
    outputs = preprocessing.output
    if lowest == (HEAD,):
        outputs = backbone(outputs)
    elif lowest != (find_blocks(backbone)[0].label,):
        entries = [_entry_of(backbone, label) for label in lowest]
        outputs = keras.Model(backbone.input, entries if entries[1:] else entries[0])(outputs)
    return keras.Model(preprocessing.input, outputs, name="feature_extractor")


def _entry_of(backbone: keras.Model, lowest: str) -> keras.KerasTensor:
    """Return the tensor that enters the block with this label, not the first, or the head."""
    if lowest == HEAD:
        return backbone.output
    blocks = find_blocks(backbone)
    number = [block.label for block in blocks].index(lowest)
    return block_output(backbone, blocks[number - 1])
