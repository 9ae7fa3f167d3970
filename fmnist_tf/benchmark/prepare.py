"""The common ground of all systems: images, weights, and what the network costs to compute.

In: a `Job` of kind prepare. Out: files in its folder, images and one set of weights for every
system, the forward pass as a SavedModel where OpenVINO wants it; and facts of network and machine.
This module must not know how any system computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.benchmark import ours, plain_keras
from fmnist_tf.benchmark.plan import (
    IMAGES,
    N_CHECKED,
    N_CLASSES,
    N_IMAGES,
    SAVED_MODEL,
    SEED,
    UNITS,
    WEIGHTS,
    Job,
)
from fmnist_tf.data.sample import load_sample
from fmnist_tf.model.backbones import BackboneSpec, find_backbone_spec
from fmnist_tf.model.folding import choose_precision
from fmnist_tf.model.preprocessing import SOURCE_SIDE
from fmnist_tf.results.provenance import describe_versions


@dataclass(frozen=True)
class Prepared:
    """What was found while preparing; nothing is left to measure."""

    facts: dict[str, Any]


def open_stage(job: Job) -> Prepared:
    """Write the common files into the job's folder and return the facts."""
    folder = Path(job.folder)
    digits, classes, _, _ = load_sample()
    pixels = np.resize(digits, (N_IMAGES, digits.shape[1]))  # repeated
    labels = np.resize(classes, N_IMAGES)
    images = pixels.reshape(-1, SOURCE_SIDE, SOURCE_SIDE)
    np.savez(folder / IMAGES, images=images, labels=labels)
    spec, side = find_backbone_spec(job.backbone, job.image_size)
    keras.utils.set_random_seed(SEED)
    backbone = spec.build(side)
    _settle(backbone, images[:N_CHECKED])
    np.savez(
        folder / WEIGHTS,
        **{
            f"{layer.name}/{number}": array
            for layer in backbone.layers
            for number, array in enumerate(layer.get_weights())
        },
    )
    if find_spec("openvino"):
        _save_forward(plain_keras.build_features(backbone, side), folder / SAVED_MODEL)
    precision, why = choose_precision("auto")
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return Prepared(
        {
            "precision": precision,
            "why": why,
            "gpus": gpus,
            "feature_batch": ours.choose_feature_batch(side),
            "multiplications": count_multiplications(backbone, spec),
            "versions": describe_versions(
                ("fmnist-tf", "tensorflow", "keras", "numpy", "openvino", "torch")
            ),
        }
    )


def _settle(backbone: keras.Model, images: np.ndarray) -> None:
    """Give fresh random weights the statistics of a trained network.

    Unlike fresh ones, these BatchNorm layers keep the numbers in range through fifty layers, and a
    system that folded or skipped one of them wrongly would be found out.
    """
    rng = np.random.default_rng(SEED)
    norms = [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        for weight, low, high in ((norm.gamma, 0.5, 1.5), (norm.beta, -0.5, 0.5)):
            if weight is not None:
                weight.assign(rng.uniform(low, high, weight.shape))
    preprocessing = keras.Sequential(plain_keras.build_preprocessing(backbone.input_shape[1]))
    backbone(preprocessing(plain_keras.to_rgb(images)), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def count_multiplications(backbone: keras.Model, spec: BackboneSpec) -> dict[str, dict[str, int]]:
    """Return how many multiplications one image costs, by what trains.

    Returns:
        For feature_pass, flatten, gap (the heads) and finetune (the deepest stage and the flatten
        head): `frozen` and `trained`, the forward pass of either part, and `backward`. Backward, a
        trained layer costs its forward pass once for the weights' gradient and once for its
        input's; the lowest trained layers need none for their input.
    """
    deepest = list(spec.stages)[-1]
    lower = [x for x in backbone.layers if spec.stage_of(x.name) != deepest]
    boundary = {id(tensor) for layer in lower for tensor in _outputs(layer)}
    of_layer = {
        layer.name: math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        for layer in backbone.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
    }
    upper = [layer for layer in backbone.layers if layer not in lower and layer.name in of_layer]
    lowest = sum(of_layer[layer.name] for layer in upper if id(layer.input) in boundary)
    tail = sum(of_layer[layer.name] for layer in upper)
    whole = sum(of_layer.values())
    height, width, channels = backbone.output_shape[1:]
    counts = {"feature_pass": {"frozen": whole, "trained": 0, "backward": 0}}
    for head, width_in in (("flatten", height * width * channels), ("gap", channels)):
        hidden, output = width_in * UNITS, UNITS * N_CLASSES
        counts[head] = {
            "frozen": whole, "trained": hidden + output, "backward": hidden + 2 * output,
        }  # fmt: skip
    head_trained = counts["flatten"]["trained"]
    counts["finetune"] = {
        "frozen": whole - tail,
        "trained": tail + head_trained,
        "backward": 2 * (tail + head_trained) - lowest,
    }
    return counts


def _outputs(layer: Any) -> list[Any]:
    return layer.output if isinstance(layer.output, list) else [layer.output]


def _save_forward(features: keras.Model, path: Path) -> None:
    """Write (B, 28, 28, 3) uint8 -> features as a SavedModel."""
    module = tf.Module()
    module.kept = [variable.value for variable in features.variables]
    # Keras' own exporter leaves `training` to the model; see fmnist_tf.exporting.formats.
    module.serve = tf.function(
        lambda pixels: features(pixels, training=False),
        input_signature=[tf.TensorSpec((None, SOURCE_SIDE, SOURCE_SIDE, 3), tf.uint8)],
        autograph=False,
    )
    tf.saved_model.save(module, str(path), signatures=module.serve)
