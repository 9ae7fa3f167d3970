"""Preprocessing, backbone and head as one plain Keras Sequential; and the same cut in two.

In: a backbone with its spec, and the head's settings. Out: the classifier that is saved, and a
`SplitClassifier` that reads its variables, so that what never trains can be computed once and what
trains is computed fast. This
module must not know phases, data or training.

Shape letters: B batch, H W C feature map, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BackboneSpec
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.preprocessing import SOURCE_SIDE, build_preprocessing

HEAD = "head"
"""The name of the part above the backbone, where a stage is asked for."""


def build_classifier(
    backbone: keras.Model,
    spec: BackboneSpec,
    *,
    head: str,
    units: int,
    dropout: float,
    n_classes: int,
    seed: int,
    name: str = "classifier",
) -> keras.Sequential:
    """Return the whole network, (B, 28, 28) uint8 -> (B, K) float32 probabilities.

    Args:
        backbone: as `spec.build` returned it.
        spec: its spec; gives the value range.
        head: flatten or gap (global average pooling; Lin et al. 2013, section 3.2).
        units: width of the hidden layer; 0 for none.
        dropout: rate in 0..1, before the last layer.
        n_classes: K.
        seed: of the head's initial weights and of dropout.
        name: of the Keras model.

    Raises:
        UsageError: a backbone without a feature map is asked for one.
    """
    if head == "gap" and len(backbone.output_shape) != 4:
        raise UsageError(
            f"--head gap: expected flatten, for {spec.name} has no feature map to average over"
        )
    side = backbone.input_shape[1]
    pooling = {
        "flatten": keras.layers.Flatten(name="flatten"),
        "gap": keras.layers.GlobalAveragePooling2D(name="gap"),
    }[head]
    glorot = keras.initializers.GlorotUniform
    return keras.Sequential(
        [
            keras.Input((SOURCE_SIDE, SOURCE_SIDE), dtype="uint8", name="pixels"),
            *build_preprocessing(spec.value_range, side),  # (B, S, S, 3), or of one channel
            backbone,  # (B, H, W, C)
            pooling,  # (B, H*W*C) or (B, C)
            *(
                [keras.layers.Dense(units, "relu", kernel_initializer=glorot(seed), name="hidden")]
                if units
                else []
            ),  # (B, units)
            keras.layers.Dropout(dropout, seed=seed, name="dropout"),
            keras.layers.Dense(
                n_classes,
                "softmax",
                kernel_initializer=glorot(seed + 1),
                dtype="float32",
                name="probabilities",
            ),  # (B, K)
        ],
        name=name,
    )


def find_backbone(classifier: keras.Sequential) -> keras.Model:
    """Return the classifier's one nested model."""
    return next(layer for layer in classifier.layers if isinstance(layer, keras.Model))


@dataclass(frozen=True)
class SplitClassifier:
    """A classifier cut below its lowest trained layer; both parts read its variables.

    Attributes:
        prefix: (B, 28, 28) uint8 -> (B, H, W, C), or (B, F) of a backbone without a feature map;
            nothing in it trains.
        pools: whether the body takes the mean over H and W, (B, C), in place of the map: so much
            smaller that the mean is what is stored.
        has_frozen_layers: whether the prefix reaches into the backbone, so that its output is worth
            storing; else it is the preprocessing alone.
        body: what the prefix gives, or its mean -> (B, units) in the compute dtype, up to the last
            layer; the folded twin.
        output: the last layer; its kernel and bias give the logits.
    """

    prefix: keras.Model
    pools: bool
    has_frozen_layers: bool
    body: keras.Model
    output: keras.layers.Dense

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of what the body takes of one image."""
        return tuple(self.body.inputs[0].shape[1:])

    def logits(self, features: Any, *, training: bool) -> Any:
        """Return (B, K) float32 logits; their softmax is the classifier's output.

        Loss is computed from these: the logarithm of a rounded probability is not exact.
        """
        hidden = keras.ops.cast(self.body(features, training=training), "float32")
        return keras.ops.matmul(hidden, self.output.kernel) + self.output.bias


def split_classifier(
    classifier: keras.Sequential,
    spec: BackboneSpec,
    lowest_stage: str,
    precision: str = "float32",
) -> SplitClassifier:
    """Cut `classifier` below `lowest_stage` (a stage's name or `HEAD`).

    Everything below the cut is the prefix.

    Args:
        classifier: its phase's plan is applied: what trains and what does not shapes the body.
        spec: its backbone's spec.
        lowest_stage: the lowest that trains.
        precision: float32 or bfloat16, in which the body computes; its variables stay float32.

    Raises:
        ValueError: more than one tensor crosses the cut.
    """
    backbone = find_backbone(classifier)
    position = classifier.layers.index(backbone)
    below, above = classifier.layers[:position], classifier.layers[position + 1 : -1]

    def chain(layers: list[Any], shape: tuple[int, ...], dtype: str, name: str) -> keras.Model:
        inputs = keras.Input(shape, dtype=dtype)
        tensor = inputs
        for layer in layers:
            tensor = layer(tensor)
        return keras.Model(inputs, tensor, name=name)

    first_trained = list(spec.stages).index(lowest_stage) if lowest_stage != HEAD else None
    has_frozen_layers = bool(backbone.weights) and first_trained != 0
    pools = False
    if first_trained is None:
        pools = has_frozen_layers and isinstance(above[0], keras.layers.GlobalAveragePooling2D)
        layers_below, layers_above = [*below, backbone], above[1:] if pools else above
    elif first_trained == 0:
        layers_below, layers_above = below, [backbone, *above]
    else:
        boundary = _boundary(backbone, spec, first_trained)
        lower = keras.Model(backbone.input, boundary, name=f"below_{lowest_stage}")
        upper = keras.Model(boundary, backbone.output, name=f"from_{lowest_stage}")
        layers_below, layers_above = [*below, lower], [upper, *above]
    prefix = chain(layers_below, (SOURCE_SIDE, SOURCE_SIDE), "uint8", "prefix")
    row_shape = prefix.output_shape[3:] if pools else prefix.output_shape[1:]
    body = chain(layers_above, row_shape, "float32", "body")
    return SplitClassifier(
        prefix,
        pools,
        has_frozen_layers,
        fold_model(body, precision),
        classifier.layers[-1],
    )


def _boundary(backbone: keras.Model, spec: BackboneSpec, first_upper: int) -> Any:
    """Return the one tensor that passes from the lower stages to the upper ones."""
    rank = {stage: number for number, stage in enumerate(spec.stages)}

    def is_upper(layer: Any) -> bool:
        return rank[spec.stage_of(layer.name)] >= first_upper

    crossing = {}
    for layer in filter(is_upper, backbone.layers):
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        for tensor in inputs:
            producer = tensor._keras_history.operation
            if not is_upper(producer):
                crossing[producer.name] = tensor
    if len(crossing) != 1:
        raise ValueError(
            f"{spec.name} cannot be cut below {list(spec.stages)[first_upper]}: expected one "
            f"tensor to cross, found {sorted(crossing)}"
        )
    return next(iter(crossing.values()))
