"""A run's settings -> what the training loop takes.

In: a `Run`. Out: the rows to read, the plan of every step, each variable's share of the learning
rate. Nothing is trained here, but the frozen part's output is computed where no run has stored it
yet. This module must not know the order of things in a run, or what becomes of epochs.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.terminal import progress_bar, say, warn
from fmnist_tf.pipeline.run import Run
from fmnist_tf.settings.config import FLIP
from fmnist_tf.system.memory import release_memory

if TYPE_CHECKING:
    from fmnist_tf.data.batches import RowSource
    from fmnist_tf.model.classifier import SplitClassifier
    from fmnist_tf.training.feature_store import FeatureStore
    from fmnist_tf.training.loop import TrainingPlan


def plan_training(run: Run, train_labels: np.ndarray) -> TrainingPlan:
    """Return what the settings ask of the loop.

    Args:
        run: its settings are complete.
        train_labels: (N,) int64, of the rows that train.
    """
    from fmnist_tf.training.loop import TrainingPlan
    from fmnist_tf.training.schedules import RatePlan

    config = run.config
    epochs, batch_size, rate = config.epochs, config.batch_size, config.learning_rate
    if epochs is None or batch_size is None or (rate is None and not config.lr_finder):
        raise ValueError("the configuration is incomplete; see config.complete_config")
    steps = math.ceil(len(train_labels) / batch_size)
    cycle_epochs = config.cycle_epochs or max(1.0, epochs / 2)
    weights = None
    if config.class_weights == "balanced":
        n_classes = len(run.dataset.train.class_names)
        counts = np.bincount(train_labels, minlength=n_classes)
        # A class without training rows has no loss to weigh.
        weights = tuple((len(train_labels) / (n_classes * np.maximum(counts, 1))).tolist())
    return TrainingPlan(
        rates=RatePlan(
            config.schedule,
            peak=rate or max(1.0, config.min_learning_rate),  # until the range test has its own
            steps_per_epoch=steps,
            epochs=epochs,
            minimum=config.min_learning_rate,
            warmup_steps=round(config.warmup_epochs * steps),
            cycle_steps=max(2, round(cycle_epochs * steps)),
            patience=config.plateau_patience,
            factor=config.plateau_factor,
        ),
        batch_size=batch_size,
        seed=config.seed,
        n_views=2 if FLIP in config.augment else 1,
        augment=tuple(kind for kind in config.augment if kind != FLIP),
        background=run.background,
        label_smoothing=config.label_smoothing,
        class_weights=weights,
        ema_decay=config.ema_decay,
    )


def plan_rate_factors(run: Run) -> dict[str, float]:
    """Return the factor on the learning rate of each trained variable below the head."""
    factor = run.config.layer_decay
    if factor == 1:
        return {}
    from fmnist_tf.model.classifier import find_backbone

    spec = run.network.spec
    depth = {stage: number for number, stage in enumerate(reversed(spec.stages), start=1)}
    backbone = find_backbone(run.network.classifier)
    return {
        weight.path: factor ** depth[spec.stage_of(layer.name)]
        for layer in backbone.layers
        for weight in layer.trainable_weights
    }


def open_source(
    run: Run, plan: TrainingPlan, split: SplitClassifier, pool: np.ndarray
) -> tuple[RowSource, Callable[[Any], Any] | None]:
    """Return what the trainer reads: cached features, or raw pixels and the feature function.

    A flip is a second view of every image: as many rows more.

    Args:
        run: its settings decide.
        plan: says how many views there are, and what no view can hold.
        split: the classifier, cut.
        pool: the rows of the train file that this run uses, ascending.
    """
    from fmnist_tf.data.batches import ArrayRows, FlippedRows, PickedRows, StackedRows
    from fmnist_tf.training import feature_store, features

    train = run.dataset.train
    pixels = PickedRows(ArrayRows(train.pixels, train.digest), pool)
    both: tuple[RowSource, ...] = (pixels, FlippedRows(pixels))
    views = both[: plan.n_views]
    precision, why = run.precision
    say(f"compute precision: {precision} ({why})")
    if not split.has_frozen_layers:
        say("the whole network trains: there are no backbone features to cache")
        return StackedRows(views), None

    @functools.cache
    def build_compute() -> Callable[[Any], Any]:
        return features.build_feature_function(
            split.feature_extractor, precision, pools=split.pools_features
        )

    if run.config.cache == "off" or plan.augment:
        if run.config.cache != "off":
            warn(
                f"--augment {','.join(plan.augment)} changes the images in each epoch: backbone "
                "features are not cached but computed in every epoch, which takes far longer"
            )
        return StackedRows(views), build_compute()
    folder, n_rows = run.cache_dir / "features", len(pool)
    with run.clock.stage("features"):
        keys = [features.feature_key(view, split.feature_extractor, precision) for view in views]
        suffix = "-mean" if split.pools_features else ""
        stores = [
            feature_store.FeatureStore(folder / f"{key}{suffix}", n_rows, split.feature_shape)
            for key in keys
        ]
        missing = [store for store in stores if not store.is_complete()]
        for store in stores:
            if store not in missing:
                say(f"backbone features: found those of {n_rows:,} images in {store.path}")
        # Room for all views before hours go into the first.
        if missing and not feature_store.fits_on_disk(missing):
            n_bytes, cached = len(missing) * missing[0].n_bytes, feature_store.bytes_on_disk(folder)
            warn(
                f"backbone features: {n_bytes / 1e9:.3g} GB do not fit on the disk of {folder}; "
                "they are computed in every epoch. --cache DIR names another disk; the cached "
                f"features there, {cached / 1e9:.3g} GB, may be deleted while nothing runs"
            )
            return StackedRows(views), build_compute()
        for key, store, view in zip(keys, stores, views, strict=True):
            if store in missing:
                maps = _find_maps(folder / key, split, n_rows)
                # No variable holds the built function: its memory is released below.
                if maps:
                    _compute_features(run, store, maps, features.average_feature_maps)
                else:
                    _compute_features(run, store, view, build_compute())
    del build_compute
    release_memory()
    return StackedRows(tuple(stores)), None


def _find_maps(path: Path, split: SplitClassifier, n_rows: int) -> FeatureStore | None:
    """Return the feature maps cached by a run with a Flatten head, if the head pools them."""
    from fmnist_tf.training.feature_store import FeatureStore

    maps = FeatureStore(path, n_rows, split.feature_extractor.output_shape[1:])
    if not split.pools_features or not maps.is_complete():
        return None
    say(f"backbone features: averaging the feature maps in {path}")
    return maps


def _compute_features(
    run: Run, store: FeatureStore, source: RowSource, compute: Callable[[Any], Any]
) -> None:
    """Compute and cache one view's features, and say how long that took.

    Args:
        run: of the network.
        store: of the features.
        source: pixels of the view, or its cached feature maps.
        compute: rows of `source` -> features.
    """
    from fmnist_tf.training.features import cache_features, rows_per_batch

    say(f"backbone features: computing {store.n_rows:,} images, {store.n_bytes / 1e9:.3g} GB")
    started = time.perf_counter()
    kept: list[int] = []  # the first progress: rows that an earlier run stored
    with progress_bar("backbone features", "image") as show:

        def on_progress(done: int, total: int) -> None:
            if not kept:
                kept.append(done)
            show(done, total)

        batch_size = rows_per_batch(run.network.side)
        cache_features(store, source, compute, batch_size=batch_size, progress=on_progress, say=say)
    seconds = time.perf_counter() - started
    rate = (store.n_rows - kept[0]) / seconds
    say(f"backbone features: {seconds:.1f} s, {rate:.1f} images/s, in {store.path}")
