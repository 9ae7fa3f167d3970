"""Rounding costs no accuracy: bfloat16 features beside plain float32 Keras, on real images."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data import official
from fmnist_tf.data.arrays import read_array
from fmnist_tf.data.batches import ArrayRows, order_rows
from fmnist_tf.data.splits import plan_splits
from fmnist_tf.model.backbones import find_backbone_spec
from fmnist_tf.model.classifier import build_classifier, split_classifier
from fmnist_tf.model.inference import compile_model, run_all
from fmnist_tf.model.phases import apply_plan, plan_phase
from fmnist_tf.model.weights import read_backbone
from fmnist_tf.training.features import build_feature_function
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan

SIDE, ROWS, EPOCHS, BATCH, RATE = 64, 3000, 6, 128, 1e-4


def compute(function, pixels: np.ndarray) -> np.ndarray:
    parts = [function(pixels[first : first + 128]) for first in range(0, len(pixels), 128)]
    return np.concatenate([np.asarray(part) for part in parts])


def evaluate(classifier: keras.Model, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of the ordinary float32 head on plain float32 features."""
    tensor = features
    for layer in classifier.layers[classifier.layers.index(classifier.get_layer("flatten")) :]:
        tensor = layer(tensor, training=False)
    return float((np.asarray(tensor).argmax(axis=1) == labels).mean())


@pytest.mark.slow
@pytest.mark.real
def test_bfloat16_and_the_store_cost_no_accuracy(
    keras_home_with_data: Path, resnet50_weights: Path, bfloat16_kernels: None
) -> None:
    folder = keras_home_with_data / "datasets/fashion-mnist"

    def read(images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = read_array(folder / images)
        return pixels.reshape(-1, 784), read_array(folder / labels)

    pixels, labels = read(official.TRAIN_IMAGES, official.TRAIN_LABELS)
    test_pixels, test_labels = read(official.TEST_IMAGES, official.TEST_LABELS)
    rows = plan_splits(labels, val_fraction=0.1, seed=0, limit=ROWS).train
    pixels, labels = pixels[rows], labels[rows].astype(np.int64)
    spec, side = find_backbone_spec("resnet50", SIDE)
    backbone, _ = read_backbone(spec, side, str(resnet50_weights))
    plain_features: dict[str, np.ndarray] = {}
    fast_features = None
    differences = []
    for seed in range(3):
        accuracy = {}
        for way in ("plain", "fast"):
            classifier = build_classifier(
                backbone,
                spec.value_range,
                head="flatten",
                units=512,
                dropout=0.0,
                n_classes=10,
                seed=seed,
            )
            apply_plan(classifier, plan_phase(classifier, "frozen"))
            if way == "plain":
                if not plain_features:
                    extractor = split_classifier(classifier, "head").feature_extractor
                    step = tf.function(lambda x, model=extractor: model(x, training=False))
                    for name, some in (("train", pixels), ("test", test_pixels)):
                        images = some.reshape(-1, 28, 28)
                        plain_features[name] = compute(step, images)
                head = keras.Sequential([keras.Input((2, 2, 2048)), *classifier.layers[-4:]])
                head.compile(keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy")
                for epoch in range(1, EPOCHS + 1):
                    order = order_rows(np.arange(len(rows)), seed, epoch)
                    head.fit(
                        plain_features["train"][order], labels[order],
                        batch_size=BATCH, shuffle=False, verbose=0,
                    )  # fmt: skip
            else:
                split = split_classifier(classifier, "head", "bfloat16")
                assert split.trained_layers.get_layer("hidden").compute_dtype == "bfloat16"
                if fast_features is None:
                    extract = build_feature_function(split.feature_extractor, "bfloat16")
                    fast_features = compute(extract, pixels)
                trainer = Trainer(classifier, split, build_optimizer("adam"))
                steps = -(-len(rows) // BATCH)
                plan = TrainingPlan(RatePlan("constant", RATE, steps, EPOCHS), BATCH, seed)
                every = np.arange(len(rows))
                list(trainer.run_epochs(ArrayRows(fast_features), labels, every, every[:100], plan))
            accuracy[way] = evaluate(classifier, plain_features["test"], test_labels)
        print(f"seed {seed}: plain {accuracy['plain']:.4f}, fast {accuracy['fast']:.4f}")
        differences.append(accuracy["fast"] - accuracy["plain"])
    assert min(accuracy.values()) > 0.8
    assert abs(np.mean(differences)) <= 0.003
    # The trainer and the saved network predict the same classes.
    (found,) = run_all(compile_model(classifier), test_pixels[:500])
    test_features = compute(extract, test_pixels[:500])
    own = trainer.predict(ArrayRows(test_features), np.arange(500), BATCH)
    agree = int((found.argmax(axis=1) == own.argmax(axis=1)).sum())
    print(f"the loop in bfloat16 and the float32 network agree on {agree} of 500")
    assert agree >= 490
