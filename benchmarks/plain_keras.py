"""Plain Keras, as a user would write it: every epoch computes everything. The reference.

`predict` and `fit` of an ordinary model fed by tf.data, in float32 or under Keras'
`mixed_bfloat16` policy, with oneDNN's kernels as ours.

Shape letters: N images, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.bounds import count_multiplications
from benchmarks.plan import (
    DROPOUT,
    LEARNING_RATE,
    N_CHECKED,
    N_CLASSES,
    N_IMAGES,
    SEED,
    UNITS,
    Job,
)


def build_network(side: int, head: str | None, *, finetune: bool = False) -> keras.Model:
    """Return (B, 28, 28, 3) uint8 -> features (B, H*W*C), or probabilities (B, K) of a head.

    Args:
        side: in pixels, that images are resized to.
        head: flatten or gap; None for the features alone.
        finetune: whether the deepest stage trains, its BatchNorm excepted, or the head alone.
    """
    inputs = keras.Input((28, 28, 3), dtype="uint8")
    # Resizing would round integers, and preprocessing would wrap them around.
    x = keras.ops.cast(inputs, "float32")
    x = keras.layers.Resizing(side, side)(x)
    x = keras.layers.Lambda(keras.applications.resnet50.preprocess_input)(x)
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x)
    for layer in backbone.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = finetune and layer.name.startswith("conv5") and not is_norm
    x = backbone.output
    if head is None:
        return keras.Model(inputs, keras.layers.Flatten()(x))
    pooling = keras.layers.Flatten if head == "flatten" else keras.layers.GlobalAveragePooling2D
    glorot = keras.initializers.GlorotUniform  # with our seeds, so that outputs can be compared
    x = keras.layers.Dense(UNITS, "relu", kernel_initializer=glorot(SEED))(pooling()(x))
    x = keras.layers.Dropout(DROPOUT)(x)
    last = keras.layers.Dense(
        N_CLASSES, "softmax", kernel_initializer=glorot(SEED + 1), dtype="float32"
    )
    model = keras.Model(inputs, last(x))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
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


def to_rgb(images: Any) -> Any:
    """Return (B, 28, 28) uint8 as (B, 28, 28, 3) uint8."""
    return tf.image.grayscale_to_rgb(tf.convert_to_tensor(images)[..., tf.newaxis])


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


class KerasStage:
    """One stage in plain Keras."""

    def __init__(self, job: Job) -> None:
        policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
        keras.config.set_dtype_policy(policies[job.system.precision])
        keras.utils.set_random_seed(SEED)
        self._job = job
        self._images, self._labels = job.load_images()
        finetune = job.task.stage == "finetune_epoch"
        self._model = build_network(job.image_size, job.task.head, finetune=finetune)
        set_weights(self._model, job.load_weights())
        self.facts: dict[str, Any] = {"multiplications": count_multiplications(self._model)}
        self.outputs = self._predict(np.arange(N_CHECKED))

    def measure(self, units: int) -> int:
        """Predict `units` batches, or fit a short epoch and validate it."""
        batch_size = self._job.batch_size
        if self._job.task.head is None:
            return len(self._predict(np.arange(units * batch_size) % N_IMAGES))
        train, val = self._job.plan_epoch(units)
        self._model.fit(
            make_dataset(self._images[train], self._labels[train], batch_size, shuffled=True),
            validation_data=make_dataset(
                self._images[val], self._labels[val], batch_size, shuffled=False
            ),
            shuffle=False,  # the dataset shuffles
            verbose=0,
        )
        return len(train) + len(val)

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        dataset = make_dataset(
            self._images[rows], self._labels[rows], self._job.batch_size, shuffled=False
        )
        return np.asarray(self._model.predict(dataset, verbose=0))


def open_stage(job: Job) -> KerasStage:
    """Return the job's stage in plain Keras."""
    return KerasStage(job)
