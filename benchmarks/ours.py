"""This project, through the functions that `train` runs.

The folded backbone computes features once and caches them; epochs read the cache.
"""

from __future__ import annotations

import math
import shutil
import uuid
from typing import Any

import keras
import numpy as np

from benchmarks import plan
from benchmarks.plain_keras import set_weights
from benchmarks.plan import N_CHECKED, N_IMAGES, OURS_OPENVINO, SEED, Job
from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.model.backbones import build_backbone, find_backbone_spec
from fmnist_tf.model.classifier import build_classifier, split_classifier
from fmnist_tf.model.phases import apply_plan, plan_phase
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training.engine import OPENVINO, build_openvino_function, choose_engine
from fmnist_tf.training.feature_store import N_THREADS, FeatureStore
from fmnist_tf.training.features import build_feature_function, cache_features
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan


class _Ours:
    """The classifier, cut where the stage's phase cuts it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._images, self._labels = job.load_images()
        spec, side = find_backbone_spec(job.backbone, job.image_size)
        keras.utils.set_random_seed(SEED)
        backbone = build_backbone(spec, side)
        set_weights(backbone, job.load_weights())
        self._classifier = build_classifier(
            backbone,
            spec.value_range,
            head=job.task.head or "flatten",
            units=plan.UNITS,
            dropout=plan.DROPOUT,
            n_classes=plan.N_CLASSES,
            seed=SEED,
        )
        phase = "finetune" if job.task.stage == "finetune_epoch" else "frozen"
        trainable = plan_phase(self._classifier, phase)
        apply_plan(self._classifier, trainable)
        precision = job.system.precision
        self._split = split = split_classifier(self._classifier, trainable.lowest, precision)
        if job.system.name == OURS_OPENVINO:
            choose_engine(OPENVINO)  # says how to install it
            self._compute = build_openvino_function(
                split.feature_extractor,
                precision,
                pools=split.pools_features,
                batch_size=job.batch_size,
                examples=self._images[:N_CHECKED].reshape(N_CHECKED, -1),
            )
        else:
            self._compute = build_feature_function(
                split.feature_extractor, precision, pools=split.pools_features
            )
        self.facts: dict[str, Any] = {"stored_bytes_per_image": self._store(1).n_bytes}

    def _store(self, n_rows: int) -> FeatureStore:
        return FeatureStore(self._job.folder / uuid.uuid4().hex, n_rows, self._split.feature_shape)

    def _cache(self, rows: np.ndarray) -> FeatureStore:
        """Compute and cache the features of these images, in a new store."""
        store = self._store(len(rows))
        cache_features(
            [store],
            ArrayRows(self._images[rows].reshape(len(rows), -1)),
            self._compute,
            batch_size=self._job.batch_size,
            progress=lambda done, total: None,
            say=lambda line: None,
        )
        return store


class FeaturePass(_Ours):
    """The backbone features, computed and cached."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        rows = np.arange(N_CHECKED)
        self.outputs = self._cache(rows).take(rows).reshape(N_CHECKED, -1)

    def measure(self, units: int) -> int:
        """Compute and cache `units` batches in each of the streams."""
        rows = np.arange(units * N_THREADS * self._job.batch_size) % N_IMAGES
        shutil.rmtree(self._cache(rows).path)
        return len(rows)


class Epoch(_Ours):
    """Epochs over cached features."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._source = self._cache(np.arange(N_IMAGES))
        del self._compute
        release_memory()  # as `train` does before its epochs
        self._trainer = Trainer(self._classifier, self._split, build_optimizer("adam"))
        self.outputs = self._trainer.predict(self._source, np.arange(N_CHECKED), job.batch_size)

    def measure(self, units: int) -> int:
        """Train a short epoch and validate it."""
        train, val = self._job.plan_epoch(units)
        steps = math.ceil(len(train) / self._job.batch_size)
        rates = RatePlan("constant", plan.LEARNING_RATE, steps, epochs=1)
        one_epoch = TrainingPlan(rates, self._job.batch_size, SEED)
        list(self._trainer.run_epochs(self._source, self._labels, train, val, one_epoch))
        return len(train) + len(val)


def open_stage(job: Job) -> FeaturePass | Epoch:
    """Return the job's stage as this project computes it."""
    return FeaturePass(job) if job.task.head is None else Epoch(job)
