"""Which weights train in a phase: planned for every weight, applied to the model, verified.

Setting `backbone.trainable` is not enough in Keras 3: a parent's flag overrides its children's or
is ignored, depending on the order, and a BatchNorm layer left trainable updates its statistics even
if its model is called with `training=False`. So every layer's flag is set, and Keras' resulting
trainable weights are compared with the plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_tf.errors import FmnistError
from fmnist_tf.model.blocks import find_blocks, list_stages, pick_blocks
from fmnist_tf.model.classifier import HEAD, find_backbone

TRAINED, UPDATED, FROZEN = "trained", "updated", "frozen"


class PlanBrokenError(FmnistError):
    """A frozen weight has changed, or Keras does not follow the plan."""


@dataclass(frozen=True, eq=False)
class PlannedWeight:
    """One weight of the classifier.

    Attributes:
        path: `layer/weight`, e.g. `conv5_block1_1_conv/kernel`.
        variable: of Keras.
        layer: whose weight it is.
        stage: of the backbone, `head` or `preprocessing`.
        status: trained (by gradient), updated (a moving statistic) or frozen.
        rule: the reason for the status.
    """

    path: str
    variable: Any
    layer: keras.Layer
    stage: str
    status: str
    rule: str

    @property
    def size(self) -> int:
        """The number of its parameters."""
        return math.prod(self.variable.shape)


@dataclass(frozen=True, eq=False)
class TrainablePlan:
    """Every weight of the classifier, once each.

    Attributes:
        weights: in the order of the network.
        lowest: the label of the lowest block that trains, or `HEAD`.
        stages: the stages of which a block trains.
    """

    weights: tuple[PlannedWeight, ...]
    lowest: str
    stages: tuple[str, ...]

    def count(self, status: str) -> int:
        """Return the number of parameters with this status."""
        return sum(weight.size for weight in self.weights if weight.status == status)

    def count_stages(self) -> dict[str, dict[str, int]]:
        """Return the number of trained, updated and frozen parameters of each stage."""
        counts: dict[str, dict[str, int]] = {}
        for weight in self.weights:
            of_stage = counts.setdefault(weight.stage, {TRAINED: 0, UPDATED: 0, FROZEN: 0})
            of_stage[weight.status] += weight.size
        return counts

    def to_text(self, title: str) -> str:
        """Return the content of trainable.txt, one weight a line."""
        counts = [f"# {status}: {self.count(status):,}" for status in (TRAINED, UPDATED, FROZEN)]
        lines = [f"# {title}", *counts, "# path\tshape\tstatus\trule"]
        for weight in self.weights:
            shape = "x".join(map(str, weight.variable.shape)) or "scalar"
            lines.append(f"{weight.path}\t{shape}\t{weight.status}\t{weight.rule}")
        return "\n".join(lines) + "\n"


def find_kept_block(classifier: keras.Model, setting: str) -> str | None:
    """Return the label of the lowest block that finetune will train, if layers are below it.

    `setting` is the stage or block that `--keep-for-finetune` names, or auto: finetune's default.

    Raises:
        UsageError: there is no such stage or block.
    """
    blocks = find_blocks(find_backbone(classifier))
    name = list_stages(blocks)[-1] if setting == "auto" else setting
    lowest = pick_blocks("--keep-for-finetune", (name,), blocks)[0]
    return None if lowest is blocks[0] else lowest.label


def plan_phase(
    classifier: keras.Model,
    phase: str,
    unfreeze: tuple[str, ...] = (),
    *,
    train_batch_norm: bool = False,
) -> TrainablePlan:
    """Return which weights of `classifier` train; the classifier stays as it is.

    In finetune, `unfreeze` are the stages and blocks that train, or "all"; if it is empty, the last
    stage does. `train_batch_norm` trains their BatchNorm too.

    Raises:
        UsageError: a stage or block is unknown.
    """
    blocks = find_blocks(find_backbone(classifier))
    unfrozen = () if phase == "frozen" else blocks
    if phase == "finetune" and unfreeze != ("all",):
        unfrozen = pick_blocks("--unfreeze", unfreeze or list_stages(blocks)[-1:], blocks)
    trained_layers = {name for block in unfrozen for name in block.layers}
    norm_trains = phase == "scratch" or train_batch_norm
    planned = []
    for path, (variable, layer, stage) in _named_weights(classifier).items():
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        if layer.name == "value_range":
            stage = "preprocessing"
            status, rule = FROZEN, "the value range is fixed"
        elif isinstance(layer, keras.layers.Normalization):
            status, rule = FROZEN, "statistics of the training features"
        elif stage == HEAD:
            status, rule = TRAINED, "the head always trains"
        elif layer.name not in trained_layers:
            status, rule = FROZEN, f"stage {stage} is frozen"
        elif is_norm and not norm_trains:
            status, rule = FROZEN, "BatchNorm keeps its statistics and affine"
        elif is_norm and (variable is layer.moving_mean or variable is layer.moving_variance):
            status, rule = UPDATED, f"moving statistic of stage {stage}"
        else:
            status, rule = TRAINED, f"stage {stage} is unfrozen"
        planned.append(PlannedWeight(path, variable, layer, stage, status, rule))
    lowest = unfrozen[0].label if unfrozen else HEAD
    return TrainablePlan(tuple(planned), lowest, list_stages(unfrozen))


def apply_plan(classifier: keras.Model, plan: TrainablePlan) -> None:
    """Set the trainable flag of every layer as planned.

    Raises:
        PlanBrokenError: Keras' trainable weights are not the planned ones.
    """
    # Parents first: setting a parent reaches its children, and a frozen parent hides a trainable
    # child.
    classifier.trainable = True
    find_backbone(classifier).trainable = True
    for layer, _ in _leaves(classifier):
        layer.trainable = False
    for weight in plan.weights:
        if weight.status != FROZEN:
            weight.layer.trainable = True
    actual = {id(variable) for variable in classifier.trainable_weights}
    differing = [
        w.path for w in plan.weights if (w.status == TRAINED) != (id(w.variable) in actual)
    ]
    if differing:
        raise PlanBrokenError(f"Keras does not train the planned weights: {differing[:5]} differ")


def digest_weights(classifier: keras.Model) -> dict[str, str]:
    """Return path -> SHA-256 of every weight's bytes."""
    return {
        path: hashlib.sha256(np.ascontiguousarray(weight.numpy()).data).hexdigest()
        for path, (weight, _, _) in _named_weights(classifier).items()
    }


def verify_plan(plan: TrainablePlan, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Compare digests of the weights before and after some steps with the plan.

    Returns:
        The paths of weights that should have changed and did not, as in a layer of dead units.

    Raises:
        PlanBrokenError: a frozen weight has changed.
    """
    changed = {path for path in before if before[path] != after[path]}
    wrong = [w.path for w in plan.weights if w.status == FROZEN and w.path in changed]
    if wrong:
        raise PlanBrokenError(f"frozen weights have changed: {', '.join(wrong[:5])}")
    return [w.path for w in plan.weights if w.status != FROZEN and w.path not in changed]


def _named_weights(classifier: keras.Model) -> dict[str, tuple[Any, keras.Layer, str]]:
    """Return path -> variable, its layer and its stage, for every weight."""
    # Keras' own paths begin with the model's name for some layers and not for others.
    named = {
        f"{layer.name}/{weight.name}": (weight, layer, stage)
        for layer, stage in _leaves(classifier)
        for weight in layer.weights
    }
    if len(named) != len(classifier.weights):
        raise PlanBrokenError("two weights have the same path, or a nested model has weights")
    return named


def _leaves(classifier: keras.Model) -> Iterator[tuple[keras.Layer, str]]:
    """Yield every layer with its stage (`HEAD` outside the backbone), nested models unpacked."""
    backbone = find_backbone(classifier)
    stage_of = {name: block.stage for block in find_blocks(backbone) for name in block.layers}
    for layer in classifier.layers:
        if layer is backbone:
            yield from ((inner, stage_of[inner.name]) for inner in backbone.layers)
        else:
            yield layer, HEAD
