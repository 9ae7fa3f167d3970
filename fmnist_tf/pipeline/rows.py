"""What the training loop reads: cached backbone features, or raw pixels."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmnist_tf.cli.terminal import progress_bar, say, warn
from fmnist_tf.data.batches import FlippedRows, RowSource, StackedRows
from fmnist_tf.model.classifier import SplitClassifier
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system.clock import StageClock
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import features
from fmnist_tf.training.features import FeatureStore
from fmnist_tf.training.loop import TrainingPlan

ComputeFeatures = Callable[[Any], Any]
"""Pixel rows (B, 784) uint8, or cached feature maps -> backbone features (B, ...) bfloat16."""


def open_rows(
    config: RunConfig,
    pixels: RowSource,
    split: SplitClassifier,
    plan: TrainingPlan,
    precision: str,
    cache_dir: Path,
    clock: StageClock,
) -> tuple[RowSource, ComputeFeatures | None]:
    """Return the rows that the trainer reads, and what it computes of them first, if anything.

    A flip is a second view of every image: twice the rows. Backbone features are cached, unless the
    whole network trains, the settings forbid it, an augmentation is random, or the disk is too
    small.

    Args:
        config: complete.
        pixels: (N, 784) uint8, the train and val images.
        split: the classifier, cut below its lowest trainable layer.
        plan: gives the number of views and the random augmentations.
        precision: compute dtype of the frozen layers.
        cache_dir: cached features lie in its folder `features`.
        clock: counts the seconds.
    """
    views = (pixels, FlippedRows(pixels))[: plan.n_views]
    if not split.has_frozen_layers:
        say("the whole network trains: there are no backbone features to cache")
        return StackedRows(views), None
    cached = None
    if plan.augment and config.cache != "off":
        warn(
            f"--augment {','.join(plan.augment)} changes the images in each epoch: backbone "
            "features are computed in each epoch instead of once, which takes far longer"
        )
    elif config.cache != "off":
        with clock.stage("features"):
            cached = _cache_views(views, split, precision, cache_dir / "features")
        release_memory()
    if cached is not None:
        return StackedRows(cached), None
    compute = features.build_feature_function(split.prefix, precision, pools=split.pools)
    return StackedRows(views), compute


def _cache_views(
    views: tuple[RowSource, ...], split: SplitClassifier, precision: str, folder: Path
) -> tuple[FeatureStore, ...] | None:
    """Find or compute the features of each view; None where the disk has no room for them."""
    n_rows, row_shape = views[0].n_rows, split.row_shape
    keys = [features.feature_key(view, split.prefix, precision) for view in views]
    names = [f"{key}-mean" if split.pools else key for key in keys]
    found = [features.read_features(folder, name, n_rows, row_shape) for name in names]
    for store in filter(None, found):
        say(f"backbone features: found {n_rows:,} images in {store.path}")
    if None not in found:
        return tuple(filter(None, found))
    # Room for all views is checked before hours go into the first.
    n_bytes = found.count(None) * features.stored_bytes(n_rows, row_shape)
    if not features.fits_on_disk(folder, names[found.index(None)], n_bytes):
        warn(
            f"backbone features: {n_bytes / 1e9:.3g} GB do not fit on the disk of {folder}; they "
            "are computed in each epoch instead. --cache DIR names another disk; the "
            f"{features.bytes_there(folder) / 1e9:.3g} GB cached there may be deleted while "
            "nothing runs"
        )
        return None

    # This function holds the only reference, so that its graph is freed when it returns.
    @functools.cache
    def build_compute() -> ComputeFeatures:
        return features.build_feature_function(split.prefix, precision, pools=split.pools)

    stores = []
    for key, name, view, known in zip(keys, names, views, found, strict=True):
        if known is None:
            # A pooled head averages the feature maps that a run with a Flatten head has cached.
            map_shape = split.prefix.output_shape[1:]
            maps = features.read_features(folder, key, n_rows, map_shape) if split.pools else None
            if maps:
                say(f"backbone features: averaging the feature maps in {maps.path}")
            rows: RowSource = maps or view
            compute = features.average_maps if maps else build_compute()
            size = split.prefix.input_shape[1]
            known = _compute(FeatureStore(folder / name, n_rows, row_shape), rows, compute, size)
        stores.append(known)
    return tuple(stores)


def _compute(
    store: FeatureStore, rows: RowSource, compute: ComputeFeatures, image_size: int
) -> FeatureStore:
    """Compute and cache the features of one view, and print how long that took."""
    n_bytes = features.stored_bytes(store.n_rows, store.row_shape)
    say(f"backbone features: computing {store.n_rows:,} images, {n_bytes / 1e9:.3g} GB")
    started = time.perf_counter()
    already_cached: int | None = None
    with progress_bar("backbone features", "image") as show:

        def on_progress(done: int, total: int) -> None:
            nonlocal already_cached
            if already_cached is None:
                already_cached = done
            show(done, total)

        features.cache_features(
            store.path.parent, store.path.name, rows, compute, store.row_shape, image_size,
            progress=on_progress, say=say,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    rate = (store.n_rows - (already_cached or 0)) / seconds
    say(f"backbone features: {seconds:.1f} s, {rate:.1f} images/s, in {store.path}")
    return store
