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
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.terminal import progress_bar, say, warn
from fmnist_tf.pipeline.run import Run
from fmnist_tf.settings.config import FLIP
from fmnist_tf.system.memory import release_memory

if TYPE_CHECKING:
    from fmnist_tf.data.batches import RowSource
    from fmnist_tf.model.classifier import SplitClassifier
    from fmnist_tf.training.features import FeatureStore
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
            least=config.min_learning_rate,
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
    """Return what the trainer reads: stored features, or raw pixels and the prefix to apply.

    A flip is a second view of every image: as many rows more.

    Args:
        run: its settings decide.
        plan: says how many views there are, and what no view can hold.
        split: the classifier, cut.
        pool: the rows of the train file that this run uses, ascending.
    """
    from fmnist_tf.data.batches import ArrayRows, FlippedRows, PickedRows, StackedRows
    from fmnist_tf.training import features

    pixels = PickedRows(ArrayRows(run.dataset.train.pixels), pool)
    both: tuple[RowSource, ...] = (pixels, FlippedRows(pixels))
    views = both[: plan.n_views]
    precision, why = run.precision
    say(f"arithmetic: {precision} ({why})")
    if not split.has_frozen_layers:
        say("the whole network trains: there is no frozen part to store")
        return StackedRows(views), None

    @functools.cache
    def build_compute() -> Callable[[Any], Any]:
        return features.build_feature_function(split.prefix, precision, pools=split.pools)

    if run.config.cache == "off" or plan.augment:
        if run.config.cache != "off":
            warn(
                f"--augment {','.join(plan.augment)} changes the images anew in each epoch: the "
                "frozen part is not stored but computed in every epoch, which takes far longer"
            )
        return StackedRows(views), build_compute()
    row_shape = split.row_shape
    n_bytes = features.stored_bytes(len(pool), row_shape)
    folder = run.cache_dir / "features"
    with run.clock.stage("features"):
        keys = [features.feature_key(view, split.prefix, precision) for view in views]
        names = [f"{key}-mean" if split.pools else key for key in keys]
        found = [features.read_features(folder, name, len(pool), row_shape) for name in names]
        for store in filter(None, found):
            say(f"frozen part: found its output for {len(pool):,} images in {store.path}")
        missing = found.count(None)
        if not missing:
            return StackedRows(tuple(filter(None, found))), None
        # Room for all views before hours go into the first.
        if not features.fits_on_disk(folder, names[found.index(None)], missing * n_bytes):
            there = features.bytes_there(folder)
            warn(
                f"frozen part: its output, {missing * n_bytes / 1e9:.3g} GB, does not fit on the "
                f"disk of {folder}; it is computed anew in every epoch. --cache DIR names another "
                f"disk; what is stored there, {there / 1e9:.3g} GB, may be deleted while nothing "
                "runs"
            )
            return StackedRows(views), build_compute()
        stores = []
        for key, name, view, known in zip(keys, names, views, found, strict=True):
            if known is None:
                maps = _find_maps(run, split, key, len(pool)) if split.pools else None
                # No variable holds what was built: its memory is given back below.
                known = (
                    _compute_features(run, name, maps, features.average_maps, row_shape)
                    if maps
                    else _compute_features(run, name, view, build_compute(), row_shape)
                )
            stores.append(known)
    del build_compute
    release_memory()
    return StackedRows(tuple(stores)), None


def _find_maps(run: Run, split: SplitClassifier, key: str, n_rows: int) -> FeatureStore | None:
    """Return the maps that a run with a Flatten head has stored, where a pooled head needs them."""
    from fmnist_tf.training import features

    folder, shape = run.cache_dir / "features", split.prefix.output_shape[1:]
    maps = features.read_features(folder, key, n_rows, shape)
    if maps:
        say(f"frozen part: found its feature maps in {maps.path}; they are to be averaged")
    return maps


def _compute_features(
    run: Run,
    key: str,
    pixels: RowSource,
    compute: Callable[[Any], Any],
    row_shape: tuple[int, ...],
) -> FeatureStore:
    """Compute and store one view's features, and say how long that took.

    Args:
        run: what is stored belongs to its data and network.
        key: names the features.
        pixels: of the view, or stored feature maps of it.
        compute: makes features of them.
        row_shape: of one image's features.
    """
    from fmnist_tf.training import features

    n_rows, n_bytes = pixels.n_rows, features.stored_bytes(pixels.n_rows, row_shape)
    say(f"frozen part: computing its output for {n_rows:,} images, {n_bytes / 1e9:.3g} GB")
    started = time.perf_counter()
    kept: list[int] = []  # the first thing heard: rows that an earlier run had stored
    with progress_bar("frozen part", "image") as show:

        def hear(done: int, total: int) -> None:
            if not kept:
                kept.append(done)
            show(done, total)

        store = features.cache_features(
            run.cache_dir / "features", key, pixels, compute, row_shape, run.network.side,
            progress=hear, say=say,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    rate = (n_rows - kept[0]) / seconds
    say(f"frozen part: {seconds:.1f} s, {rate:.1f} images/s, in {store.path}")
    return store
