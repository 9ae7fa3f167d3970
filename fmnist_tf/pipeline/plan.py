"""A run's settings -> what the training loop and the optimizer take."""

from __future__ import annotations

import math
from dataclasses import replace

import keras
import numpy as np

from fmnist_tf.cli.terminal import say, warn
from fmnist_tf.errors import FmnistError
from fmnist_tf.model.blocks import find_blocks, list_stages
from fmnist_tf.model.classifier import find_backbone
from fmnist_tf.reporting.curves import write_lr_finder
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.config import FLIP, RunConfig
from fmnist_tf.training.lr_finder import plan_rates, smooth_losses, suggest_rate
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan


def plan_training(
    config: RunConfig, train_labels: np.ndarray, n_classes: int, background: int
) -> TrainingPlan:
    """Return what the settings ask of the training loop.

    Args:
        config: complete.
        train_labels: (N,) int64, of the rows that train.
        n_classes: K.
        background: grey level, 0..255, beyond the border of an image.
    """
    epochs, batch_size, rate = config.epochs, config.batch_size, config.learning_rate
    if epochs is None or batch_size is None or (rate is None and not config.lr_finder):
        raise ValueError("the configuration is incomplete; see settings.complete")
    steps = math.ceil(len(train_labels) / batch_size)
    cycle_epochs = config.cycle_epochs or max(1.0, epochs / 2)
    weights = None
    if config.class_weights == "balanced":
        # A class without training rows has no loss to weight.
        counts = np.maximum(np.bincount(train_labels, minlength=n_classes), 1)
        weights = tuple((len(train_labels) / (n_classes * counts)).tolist())
    return TrainingPlan(
        rates=RatePlan(
            config.schedule,
            peak=rate or max(1.0, config.min_learning_rate),  # until the finder suggests one
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
        background=background,
        label_smoothing=config.label_smoothing,
        class_weights=weights,
        ema_decay=config.ema_decay,
    )


def plan_layer_decay(factor: float, classifier: keras.Model) -> dict[str, float]:
    """Return the factor on the learning rate of each trainable variable below the head, by path.

    That of a stage is `factor` times that of the stage above.
    """
    if factor == 1:
        return {}
    backbone = find_backbone(classifier)
    blocks = find_blocks(backbone)
    depth = {stage: n for n, stage in enumerate(reversed(list_stages(blocks)), start=1)}
    return {
        weight.path: factor ** depth[block.stage]
        for block in blocks
        for name in block.layers
        for weight in backbone.get_layer(name).trainable_weights
    }


def use_suggested_rate(
    plan: TrainingPlan,
    losses: list[float],
    given: float | None,
    directory: RunDir,
    heading: Heading,
) -> TrainingPlan:
    """Write what the learning-rate finder measured; return the plan with the rate to use.

    The losses are those of the steps at the rates of `plan_rates`; fewer if the loss diverged. The
    rate that the settings give, if any, has priority.

    Raises:
        FmnistError: there is no suggestion, and the settings name no rate.
    """
    rates = plan_rates()
    smoothed = smooth_losses(losses)
    suggestion = suggest_rate(rates, losses)
    lines = [f"{r!r},{loss!r},{s!r}" for r, loss, s in zip(rates, losses, smoothed, strict=False)]
    directory.write_text("lr_finder.csv", "\n".join(["rate,loss,smoothed", *lines]) + "\n")
    if losses:
        with directory.writing("lr_finder.png") as path:
            write_lr_finder(path, heading, rates, losses, smoothed, suggestion)
    if suggestion is None:
        found = (
            f"learning-rate finder: the loss fell at none of the rates from {rates[0]:g} to "
            f"{rates[max(len(losses) - 1, 0)]:.3g}, so there is no suggestion"
        )
        if given is None:
            raise FmnistError(f"{found}. Give a rate with --learning-rate")
        warn(f"{found}; the run uses {given:g}, as set")
        return plan
    if suggestion == rates[-1] / 10:
        warn(
            f"learning-rate finder: the loss still fell at the largest rate, {rates[-1]:g}: a "
            "larger --learning-rate than the suggestion may do better"
        )
    peak = given or max(suggestion, plan.rates.minimum)
    why = "as set" if given else "the --min-learning-rate"
    say(
        f"learning-rate finder: {len(losses)} steps suggest {suggestion:.3g}; the run uses "
        + ("it" if peak == suggestion else f"{peak:g}, {why}")
    )
    return replace(plan, rates=replace(plan.rates, peak=peak))
