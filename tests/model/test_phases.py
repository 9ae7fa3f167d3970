"""Which weights train in a phase, compared with what one step changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.errors import UsageError
from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.model.phases import (
    PlanBrokenError,
    apply_plan,
    digest_weights,
    plan_phase,
    verify_plan,
)
from fmnist_tf.training.feature_store import FEATURE_DTYPE
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan

HEAD = {"hidden/kernel", "hidden/bias", "probabilities/kernel", "probabilities/bias"}
STEM = {"stem_conv/kernel"}
STEM_NORM = {"stem_bn/gamma", "stem_bn/beta"}
STEM_STATISTICS = {"stem_bn/moving_mean", "stem_bn/moving_variance"}
DEEP = {"conv2_conv/kernel", "conv2_conv/bias", "conv2_side_conv/kernel", "conv2_side_conv/bias"}
DEEP_NORM = {"conv2_bn/beta", "conv2_side_bn/gamma"}
DEEP_STATISTICS = {
    f"{layer}/{name}"
    for layer in ("conv2_bn", "conv2_side_bn")
    for name in ("moving_mean", "moving_variance")
}
VALUE_RANGE = {"value_range/kernel", "value_range/bias"}
EVERYTHING = (
    HEAD | STEM | STEM_NORM | STEM_STATISTICS | DEEP | DEEP_NORM | DEEP_STATISTICS | VALUE_RANGE
)

CASES = {
    "frozen": ("frozen", (), False, HEAD, set()),
    "finetune": ("finetune", (), False, HEAD | DEEP, set()),
    "finetune with BatchNorm": (
        "finetune", ("conv2",), True, HEAD | DEEP | DEEP_NORM, DEEP_STATISTICS,
    ),
    "finetune the stem alone": ("finetune", ("stem",), False, HEAD | STEM, set()),
    "finetune all": ("finetune", ("all",), False, HEAD | DEEP | STEM, set()),
    "scratch": (
        "scratch", (), False,
        HEAD | DEEP | DEEP_NORM | STEM | STEM_NORM, DEEP_STATISTICS | STEM_STATISTICS,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def test_one_step_changes_exactly_the_planned_weights(case, toy_classifier) -> None:
    phase, unfreeze, train_batch_norm, trained, updated = case
    plan = plan_phase(toy_classifier, phase, unfreeze, train_batch_norm=train_batch_norm)
    planned = {"trained": trained, "updated": updated, "frozen": EVERYTHING - trained - updated}
    for status, paths in planned.items():
        assert {weight.path for weight in plan.weights if weight.status == status} == paths
    assert len(plan.weights) == len(EVERYTHING)
    # The hardest order for Keras' recursive flags: all on, then the plan.
    toy_classifier.trainable = True
    apply_plan(toy_classifier, plan)
    split = split_classifier(toy_classifier, plan.lowest)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 784), np.uint8)
    source = pixels
    if split.has_frozen_layers:
        source = split.feature_extractor(pixels.reshape(-1, 28, 28), training=False).numpy()
        source = source.astype(FEATURE_DTYPE)
    before = digest_weights(toy_classifier)
    trainer = Trainer(toy_classifier, split, build_optimizer("sgd"))
    labels = np.arange(16) % 3
    one_step = trainer.run_epochs(
        ArrayRows(source), labels, np.arange(16), np.arange(16),
        TrainingPlan(RatePlan("constant", 1e-3, 1, 1), 16, seed=0),
    )  # fmt: skip
    next(one_step)
    after = digest_weights(toy_classifier)
    assert {path for path in before if before[path] != after[path]} == trained | updated
    assert verify_plan(plan, before, after) == []


def test_a_changed_frozen_weight_is_an_error(toy_classifier) -> None:
    plan = plan_phase(toy_classifier, "frozen")
    before = digest_weights(toy_classifier)
    kernel = toy_classifier.get_layer("toy").get_layer("stem_conv").kernel
    kernel.assign(kernel + 1)
    with pytest.raises(PlanBrokenError, match="stem_conv/kernel"):
        verify_plan(plan, before, digest_weights(toy_classifier))


def test_a_plan_that_keras_cannot_follow_is_an_error(toy_classifier) -> None:
    plan = plan_phase(toy_classifier, "frozen")
    # Keras has one flag for a layer: its kernel cannot train while its bias is frozen.
    weights = tuple(
        replace(weight, status="frozen") if weight.path == "hidden/bias" else weight
        for weight in plan.weights
    )
    with pytest.raises(PlanBrokenError, match="hidden/bias"):
        apply_plan(toy_classifier, replace(plan, weights=weights))


def test_trainable_weights_without_change_are_named(toy_classifier) -> None:
    plan = plan_phase(toy_classifier, "frozen")
    digests = digest_weights(toy_classifier)
    assert set(verify_plan(plan, digests, digests)) == HEAD


def test_a_snapshot_holds_trained_weights_and_moving_statistics(toy_classifier) -> None:
    plan = plan_phase(toy_classifier, "scratch")
    apply_plan(toy_classifier, plan)
    trainer = Trainer(
        toy_classifier, split_classifier(toy_classifier, "stem/1"), build_optimizer("adam")
    )
    before, snapshot = digest_weights(toy_classifier), trainer.snapshot()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 784), np.uint8)
    next(
        trainer.run_epochs(
            ArrayRows(pixels), np.arange(8) % 3, np.arange(8), np.arange(8),
            TrainingPlan(RatePlan("constant", 0.1, 2, 1), 4, seed=0),
        )
    )  # fmt: skip
    assert digest_weights(toy_classifier) != before
    trainer.restore(snapshot)
    assert digest_weights(toy_classifier) == before


def test_text_lists_every_weight_with_its_rule(toy_classifier) -> None:
    text = plan_phase(toy_classifier, "finetune").to_text("a title")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    assert {row[0] for row in rows} == EVERYTHING
    assert ["stem_conv/kernel", "3x3x3x4", "frozen", "stage stem is frozen"] in rows
    assert text.startswith("# a title\n")


def test_an_unknown_stage_is_refused(toy_classifier) -> None:
    with pytest.raises(UsageError, match="--unfreeze conv2,conv9"):
        plan_phase(toy_classifier, "finetune", ("conv2", "conv9"))
