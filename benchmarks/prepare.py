"""What all systems share: images, one set of weights, and the forward pass as a SavedModel."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf

from benchmarks import plain_keras
from benchmarks.plan import IMAGES, N_CHECKED, N_CLASSES, N_IMAGES, SAVED_MODEL, SEED, WEIGHTS, Job
from fmnist_tf.model.precision import choose_precision
from fmnist_tf.results.provenance import describe_versions
from fmnist_tf.training.features import rows_per_batch

PACKAGES = ("fmnist-tf", "tensorflow", "keras", "numpy", "openvino", "torch")


def make_images() -> tuple[np.ndarray, np.ndarray]:
    """Return random pictures of 7x7 blocks, (N, 28, 28) uint8, and random labels, (N,) int64."""
    rng = np.random.default_rng(SEED)
    blocks = rng.integers(0, 256, (N_IMAGES, 7, 7), np.uint8)
    return np.kron(blocks, np.ones((1, 4, 4), np.uint8)), rng.integers(0, N_CLASSES, N_IMAGES)


def open_stage(job: Job) -> SimpleNamespace:
    """Write the common files into the job's folder; the facts describe the machine."""
    images, labels = make_images()
    np.savez(job.folder / IMAGES, images=images, labels=labels)
    keras.utils.set_random_seed(SEED)
    network = plain_keras.build_network(job.image_size, None)
    _randomize(network, images[:N_CHECKED])
    weights = {
        f"{layer.name}/{number}": array
        for layer in network.layers
        for number, array in enumerate(layer.get_weights())
    }
    np.savez(job.folder / WEIGHTS, **weights)
    if find_spec("openvino"):
        network.export(str(job.folder / SAVED_MODEL), verbose=False)
    precision, why = choose_precision("auto")
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    facts = {
        "precision": precision,
        "why": why,
        "gpus": gpus,
        "feature_batch": rows_per_batch(job.image_size),
        "versions": describe_versions(PACKAGES),
    }
    return SimpleNamespace(facts=facts, outputs=())  # there is nothing to measure


def _randomize(network: keras.Model, images: np.ndarray) -> None:
    """Give the BatchNorm layers the statistics of these images, and random scales and shifts.

    Then activations stay in range through fifty layers, as in a trained network, and a system that
    folded or skipped a BatchNorm wrongly would be found out.
    """
    rng = np.random.default_rng(SEED)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-0.5, 0.5, layer.beta.shape))
    network(plain_keras.to_rgb(images), training=True)
