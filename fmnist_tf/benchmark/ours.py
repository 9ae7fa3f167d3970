"""Ours, through the very functions that `train` runs.

In: a `Job`. Out: the stage: the frozen part folded and stored by `training.features`, epochs by
`training.loop.Trainer` over what is stored. All that bench knows of this project's way of computing
stands in this module.
"""

from __future__ import annotations

import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmnist_tf.benchmark.plain_keras import load_weights
from fmnist_tf.benchmark.plan import (
    DROPOUT,
    IMAGES,
    N_CHECKED,
    N_CLASSES,
    N_IMAGES,
    SEED,
    UNITS,
    Job,
    plan_epoch,
)
from fmnist_tf.data.batches import ArrayRows, PickedRows
from fmnist_tf.model.backbones import find_backbone_spec
from fmnist_tf.model.classifier import build_classifier, find_backbone, split_classifier
from fmnist_tf.model.folding import choose_precision
from fmnist_tf.model.phases import apply_plan, plan_phase
from fmnist_tf.settings.config import DEFAULTS
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import features
from fmnist_tf.training.loop import Trainer, TrainingPlan
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.schedules import RatePlan


def choose_feature_batch(side: int) -> int:
    """Return the batch of the feature pass at this side, which all systems take."""
    return features.rows_per_batch(side)


class _Ours:
    """What both kinds of stage have: the classifier cut where the phase cuts it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._phase = "finetune" if job.stage == "finetune_epoch" else "frozen"
        with np.load(Path(job.folder) / IMAGES) as arrays:
            self._pixels = ArrayRows(arrays["images"].reshape(len(arrays["images"]), -1))
            self._labels = arrays["labels"]
        spec, side = find_backbone_spec(job.backbone, job.image_size)
        keras.utils.set_random_seed(SEED)
        self._classifier = build_classifier(
            spec.build(side),
            spec,
            head=job.head or "flatten",
            units=UNITS,
            dropout=DROPOUT,
            n_classes=N_CLASSES,
            seed=SEED,
        )
        load_weights(find_backbone(self._classifier), job.folder)
        plan = plan_phase(self._classifier, spec, self._phase)
        apply_plan(self._classifier, spec, plan)
        self._precision, _ = choose_precision(job.precision)
        self._split = split_classifier(self._classifier, spec, plan.lowest_stage, self._precision)
        self._row_shape = self._split.row_shape
        self._compute = features.build_feature_function(
            self._split.prefix, self._precision, pools=self._split.pools
        )

    def _store(self, rows: np.ndarray) -> features.FeatureStore:
        """Compute and store the frozen part's output, under a name of its own."""
        return features.cache_features(
            Path(self._job.folder),
            uuid.uuid4().hex,
            PickedRows(self._pixels, rows),
            self._compute,
            self._row_shape,
            self._job.image_size,
            progress=lambda done, total: None,
            say=lambda line: None,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell."""
        return {
            "precision": self._precision,
            "batch_size": self._job.batch_size,
            "stored_bytes_an_image": features.stored_bytes(1, self._row_shape),
        }

    def probe(self) -> float | None:
        """Return None: its products are TensorFlow's, as plain Keras' are."""
        return None


class FeaturePass(_Ours):
    """The frozen part below the head, computed and stored."""

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell."""
        batch_size = choose_feature_batch(self._job.image_size)
        return {**super().facts, "batch_size": batch_size}

    def outputs(self) -> np.ndarray:
        """Return the checked images' features as they are read back from the store, in a row."""
        store = self._store(np.arange(N_CHECKED))
        return store.take(np.arange(N_CHECKED)).reshape(N_CHECKED, -1)

    def measure(self, units: int) -> int:
        """Compute and store `units` batches in each stream."""
        batch_size = choose_feature_batch(self._job.image_size)
        rows = np.arange(units * features.STREAMS * batch_size) % N_IMAGES
        shutil.rmtree(self._store(rows).path)
        return len(rows)


class Epoch(_Ours):
    """Epochs over the stored output of the frozen part."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._source = self._store(np.arange(N_IMAGES))
        del self._compute
        release_memory()
        self._trainer = Trainer(self._classifier, self._split, build_optimizer("adam"))

    def outputs(self) -> np.ndarray:
        """Return the checked images' probabilities, from stored features."""
        return self._trainer.predict(self._source, np.arange(N_CHECKED), self._job.batch_size)

    def measure(self, units: int) -> int:
        """Train a short epoch and validate it."""
        train, val = plan_epoch(units, self._job.batch_size)
        steps = math.ceil(len(train) / self._job.batch_size)
        rates = RatePlan("constant", DEFAULTS[self._phase].learning_rate, steps, epochs=1)
        for _ in self._trainer.run_epochs(
            self._source,
            self._labels,
            train,
            val,
            TrainingPlan(rates, self._job.batch_size, SEED),
        ):
            pass
        return len(train) + len(val)


def open_stage(job: Job) -> FeaturePass | Epoch:
    """Return the job's stage as this project computes it."""
    return FeaturePass(job) if job.head is None else Epoch(job)
