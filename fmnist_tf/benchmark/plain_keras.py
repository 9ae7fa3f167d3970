"""The plain Keras way, as a user would write it: every epoch goes through everything.

In: a `Job`. Out: the stage, measured through `predict` and `fit` of an ordinary Sequential fed by
tf.data, in float32 or under Keras' `mixed_bfloat16` policy. This is the yardstick: it must not know
this project's classifier, folding, store or training loop. It gets oneDNN's kernels, which
TensorFlow leaves off on many processors, as ours does.

Shape letters: B batch, S side of the resized image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.benchmark.bounds import Conv, MatMul, find_fastest
from fmnist_tf.benchmark.plan import (
    DROPOUT,
    IMAGES,
    N_CHECKED,
    N_CLASSES,
    N_IMAGES,
    SEED,
    UNITS,
    WEIGHTS,
    Job,
    plan_epoch,
)
from fmnist_tf.model.backbones import BackboneSpec, find_backbone_spec
from fmnist_tf.settings.config import DEFAULTS


def to_rgb(images: Any) -> Any:
    """Return (B, 28, 28) uint8 as (B, 28, 28, 3) uint8."""
    return tf.image.grayscale_to_rgb(tf.convert_to_tensor(images)[..., tf.newaxis])


def build_preprocessing(side: int) -> list[keras.Layer]:
    """Return the layers from (B, 28, 28, 3) uint8 to what ResNet50 was trained on."""
    return [
        keras.Input((28, 28, 3), dtype="uint8"),
        keras.layers.Resizing(side, side),
        keras.layers.Lambda(keras.applications.resnet50.preprocess_input),
    ]


def build_features(backbone: keras.Model, side: int) -> keras.Sequential:
    """Return the network of the feature pass, (B, 28, 28, 3) uint8 -> (B, H*W*C)."""
    return keras.Sequential([*build_preprocessing(side), backbone, keras.layers.Flatten()])


def build_classifier(
    backbone: keras.Model, spec: BackboneSpec, side: int, head: str, *, finetune: bool
) -> keras.Sequential:
    """Return the compiled classifier; the backbone is frozen, its deepest stage perhaps not."""
    backbone.trainable = finetune
    if finetune:
        prefixes = list(spec.stages.values())[-1]
        for layer in backbone.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = layer.name.startswith(prefixes) and not is_norm
    pooling = keras.layers.Flatten if head == "flatten" else keras.layers.GlobalAveragePooling2D
    glorot = keras.initializers.GlorotUniform  # with the seeds that ours has, to compare outputs
    model = keras.Sequential(
        [
            *build_preprocessing(side),
            backbone,
            pooling(),
            keras.layers.Dense(UNITS, activation="relu", kernel_initializer=glorot(SEED)),
            keras.layers.Dropout(DROPOUT),
            keras.layers.Dense(
                N_CLASSES,
                activation="softmax",
                kernel_initializer=glorot(SEED + 1),
                dtype="float32",
            ),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(
            DEFAULTS["finetune" if finetune else "frozen"].learning_rate
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def make_dataset(
    images: np.ndarray, labels: np.ndarray, batch_size: int, *, shuffled: bool
) -> tf.data.Dataset:
    """Return batches of (B, 28, 28, 3) uint8 images and (B,) labels."""
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if shuffled:
        dataset = dataset.shuffle(len(labels))
    return (
        dataset.batch(batch_size)
        .map(lambda x, y: (to_rgb(x), y), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


class Stage:
    """One stage in plain Keras."""

    def __init__(self, job: Job) -> None:
        policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
        keras.config.set_dtype_policy(policies[job.precision])
        keras.utils.set_random_seed(SEED)
        self._job = job
        with np.load(Path(job.folder) / IMAGES) as arrays:
            self._images, self._labels = arrays["images"], arrays["labels"]
        spec, side = find_backbone_spec(job.backbone, job.image_size)
        backbone = spec.build(side)  # keras.applications.ResNet50(include_top=False, weights=None)
        load_weights(backbone, job.folder)
        if job.head is None:
            self._model = build_features(backbone, side)
        else:
            finetune = job.stage == "finetune_epoch"
            self._model = build_classifier(backbone, spec, side, job.head, finetune=finetune)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell."""
        return {"precision": self._job.precision, "batch_size": self._job.batch_size}

    def outputs(self) -> np.ndarray:
        """Return the features or probabilities of the checked images."""
        return self._predict(np.arange(N_CHECKED))

    def measure(self, units: int) -> int:
        """Predict batches, or fit a short epoch and validate it."""
        batch_size = self._job.batch_size
        if self._job.head is None:
            return len(self._predict(np.arange(units * batch_size) % N_IMAGES))
        train, val = plan_epoch(units, batch_size)
        self._model.fit(
            make_dataset(self._images[train], self._labels[train], batch_size, shuffled=True),
            validation_data=make_dataset(
                self._images[val], self._labels[val], batch_size, shuffled=False
            ),
            epochs=1,
            shuffle=False,  # tf.data does
            verbose=0,
        )
        return len(train) + len(val)

    def probe(self) -> float | None:
        """Return the highest rate of one large product, through TensorFlow."""
        return find_fastest(lambda product: _build_product(product, self._job.precision))

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        dataset = make_dataset(
            self._images[rows], self._labels[rows], self._job.batch_size, shuffled=False
        )
        return np.asarray(self._model.predict(dataset, verbose=0))


def open_stage(job: Job) -> Stage:
    """Return the job's stage in plain Keras."""
    return Stage(job)


def load_weights(backbone: keras.Model, folder: str) -> None:
    """Put the common weights into a fresh backbone."""
    with np.load(Path(folder) / WEIGHTS) as arrays:
        for layer in backbone.layers:
            layer.set_weights(
                [arrays[f"{layer.name}/{number}"] for number in range(len(layer.weights))]
            )


def _build_product(product: MatMul | Conv, precision: str) -> Callable[[], None]:
    if isinstance(product, MatMul):
        shapes: list[tuple[int, ...]] = [(product.side, product.side)] * 2
        operation: Callable[..., Any] = tf.matmul
    else:
        shapes = [
            (product.batch_size, product.side, product.side, product.channels),
            (product.kernel, product.kernel, product.channels, product.filters),
        ]

        def operation(x: Any, kernel: Any) -> Any:
            return tf.nn.conv2d(x, kernel, strides=1, padding="SAME")

    first, second = (tf.cast(tf.random.normal(shape), precision) for shape in shapes)
    compute = tf.function(operation, autograph=False)

    def run() -> None:
        # One number is fetched: a GPU has to finish first.
        tf.reshape(compute(first, second), [-1])[0].numpy()

    return run
