"""Plain Keras, as a user would write it: every epoch computes everything. The reference.

`predict` and `fit` of an ordinary model fed by tf.data, in float32 or under Keras'
`mixed_bfloat16` policy, with oneDNN's kernels as ours.

Shape letters: N images, B batch, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import plan
from benchmarks.bounds import count_multiplications
from benchmarks.plan import N_CHECKED, N_CLASSES, N_IMAGES, SEED, Job
from fmnist_tf.model.backbones import build_backbone, find_backbone_spec
from fmnist_tf.model.blocks import find_blocks
from fmnist_tf.model.precision import choose_precision, preferred_precision
from fmnist_tf.results.provenance import describe_versions
from fmnist_tf.system.cpu import read_cpu_features
from fmnist_tf.training.features import rows_per_batch

PACKAGES = ("fmnist-tf", "tensorflow", "keras", "numpy", "openvino", "torch")


def build_network(job: Job) -> keras.Model:
    """Return (B, 28, 28, C) uint8 -> features (B, H*W*C), or probabilities (B, K) of a head.

    In finetune the deepest stage trains too, except for its BatchNorm.
    """
    spec, side = find_backbone_spec(job.backbone, job.image_size)
    backbone, grey = build_backbone(spec, side), spec.value_range
    blocks = find_blocks(backbone)
    trained = {name for b in blocks if b.stage == blocks[-1].stage for name in b.layers}
    for layer in backbone.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        is_trained = job.task.stage == "finetune_epoch" and layer.name in trained
        layer.trainable = is_trained and not is_norm
    inputs = keras.Input((28, 28, len(grey.scale)), dtype="uint8")
    x = keras.layers.Rescaling(grey.scale, grey.offset)(inputs)
    x = keras.layers.Resizing(side, side)(x)
    features = backbone.call(x)  # its layers, no nested model
    x = keras.layers.Flatten()(features)
    if job.task.head is None:
        return keras.models.clone_model(keras.Model(inputs, x))  # each layer is called once in it
    if job.task.head == "gap":
        x = keras.layers.GlobalAveragePooling2D()(features)
    glorot = keras.initializers.GlorotUniform  # with our seeds, so that outputs can be compared
    x = keras.layers.Dense(plan.UNITS, "relu", kernel_initializer=glorot(SEED))(x)
    x = keras.layers.Dropout(plan.DROPOUT)(x)
    last = {"kernel_initializer": glorot(SEED + 1), "dtype": "float32"}
    x = keras.layers.Dense(N_CLASSES, "softmax", **last)(x)
    model = keras.models.clone_model(keras.Model(inputs, x))
    model.compile(
        optimizer=keras.optimizers.Adam(plan.LEARNING_RATE),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def set_weights(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Set the weights of the layers whose names are in `weights`; see `Job.load_weights`."""
    for layer in model.layers:
        if f"{layer.name}/0" in weights:
            count = len(layer.weights)
            layer.set_weights([weights[f"{layer.name}/{number}"] for number in range(count)])


class KerasStage:
    """One stage in plain Keras."""

    def __init__(self, job: Job) -> None:
        policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
        keras.config.set_dtype_policy(policies[job.system.precision])
        keras.utils.set_random_seed(SEED)
        self._job = job
        self._images, self._labels = job.load_images()
        self._model = build_network(job)
        set_weights(self._model, job.load_weights())
        self.facts: dict[str, Any] = {"multiplications": count_multiplications(self._model)}
        self.outputs = self._predict(np.arange(N_CHECKED))

    def measure(self, units: int) -> int:
        """Predict `units` batches, or fit a short epoch and validate it."""
        if self._job.task.head is None:
            return len(self._predict(np.arange(units * self._job.batch_size) % N_IMAGES))
        train, val = self._job.plan_epoch(units)
        self._model.fit(
            self._make_dataset(train, shuffled=True),
            validation_data=self._make_dataset(val),
            shuffle=False,  # the dataset shuffles
            verbose=0,
        )
        return len(train) + len(val)

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(self._make_dataset(rows), verbose=0))

    def _make_dataset(self, rows: np.ndarray, *, shuffled: bool = False) -> tf.data.Dataset:
        """Return batches of (B, 28, 28, C) uint8 images and (B,) labels."""
        channels = self._model.input_shape[-1]
        dataset = tf.data.Dataset.from_tensor_slices((self._images[rows], self._labels[rows]))
        if shuffled:
            dataset = dataset.shuffle(len(rows))
        return (
            dataset.batch(self._job.batch_size)
            .map(
                lambda x, y: (tf.repeat(x[..., tf.newaxis], channels, axis=-1), y),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .prefetch(tf.data.AUTOTUNE)
        )


def prepare(job: Job) -> SimpleNamespace:
    """Write what all systems share into the job's folder; the facts describe the machine.

    That is images of random 7x7 blocks, (N, 28, 28) uint8, with random labels, (N,) int64; one set
    of weights; and the feature pass as a SavedModel and as a list of layers.
    """
    rng = np.random.default_rng(SEED)
    blocks = rng.integers(0, 256, (N_IMAGES, 7, 7), np.uint8)
    images = np.kron(blocks, np.ones((1, 4, 4), np.uint8))
    np.savez(job.folder / plan.IMAGES, images=images, labels=rng.integers(0, N_CLASSES, N_IMAGES))
    keras.utils.set_random_seed(SEED)
    network = build_network(job)
    _randomize(network, images[:N_CHECKED])
    weights = {
        f"{layer.name}/{number}": array
        for layer in network.layers
        for number, array in enumerate(layer.get_weights())
    }
    np.savez(job.folder / plan.WEIGHTS, **weights)
    layers = [
        {
            "kind": type(layer).__name__,
            "name": layer.name,
            "inputs": [x._keras_history.operation.name for x in tf.nest.flatten(layer.input)],
            "settings": layer.get_config(),
        }
        for layer in network.layers[1:]
    ]
    (job.folder / plan.LAYERS).write_text(json.dumps(layers))
    if find_spec("openvino"):
        network.export(str(job.folder / plan.SAVED_MODEL), verbose=False)
    precision, why = choose_precision("auto")
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    facts = {
        "precision": precision,
        "precision_why": why,
        "cpu_precision": preferred_precision(None, read_cpu_features(), os.environ)[0],
        "gpus": gpus,
        "feature_batch": rows_per_batch(job.image_size),
        "versions": describe_versions(PACKAGES),
    }
    return SimpleNamespace(facts=facts, outputs=())  # there is nothing to measure


def _randomize(network: keras.Model, images: np.ndarray) -> None:
    """Give the BatchNorm layers about the statistics of these images, and random scales and shifts.

    Then activations stay in range through fifty layers, as in a trained network, and a system that
    folded or skipped a BatchNorm wrongly would be found out. Variances a little larger keep
    rounding errors from growing.
    """
    rng = np.random.default_rng(SEED)
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0  # frozen, they would keep their statistics
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-0.5, 0.5, norm.beta.shape))
    network(images[..., None].repeat(network.input_shape[-1], axis=-1), training=True)
    for norm in norms:
        norm.trainable = False
        norm.moving_variance.assign(norm.moving_variance * rng.uniform(1.0, 1.8, norm.gamma.shape))
