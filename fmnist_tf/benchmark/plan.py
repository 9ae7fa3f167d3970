"""What is measured: stages, systems and sizes.

In: --quick, --image-size, and what the machine can do. Out: settings, systems, one `Job` for each
worker. Everything that several systems must have in common stands here, once. This module must not
know how a system computes, nor import TensorFlow.

Shape letters: B batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fmnist_tf.settings.config import DEFAULTS

N_TRAIN, N_VAL, PHASE_EPOCHS = 54_000, 6_000, 10
"""The frozen phase that the rates are composed to: Fashion-MNIST, a tenth held out."""
N_PHASE = N_TRAIN + N_VAL
N_CLASSES = 10
UNITS, DROPOUT, SEED = 512, 0.5, 0

N_IMAGES = 256
"""Distinct images; a longer measurement goes over them again."""
N_CHECKED = 32
"""Of these, the images whose outputs are compared between the systems."""
MOST_IMAGES = 8192
"""In one measurement: at 224 pixels what a fast machine stores meanwhile stays below 2 GB."""

IMAGES, WEIGHTS, SAVED_MODEL = "images.npz", "weights.npz", "saved_model"


@dataclass(frozen=True)
class Task:
    """One stage that is measured, in every system that has it.

    Attributes:
        stage: feature_pass, frozen_epoch or finetune_epoch.
        head: flatten or gap; None where no head is computed.
        batch_size: B, as the phase has it by default; None: as ours chooses it for the side.
    """

    stage: str
    head: str | None
    batch_size: int | None


TASKS = (
    Task("feature_pass", None, None),
    Task("frozen_epoch", "flatten", DEFAULTS["frozen"].batch_size),
    Task("frozen_epoch", "gap", DEFAULTS["frozen"].batch_size),
    Task("finetune_epoch", "flatten", DEFAULTS["finetune"].batch_size),
)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        quick: fewer and shorter rounds.
        image_size: side in pixels that images are resized to.
        rounds: measurements of each system in each task; the median counts.
        round_seconds: about how long one measurement takes; a slow system takes one batch.
        tasks: what is measured, in order.
        backbone: the network's spec.
    """

    quick: bool
    image_size: int
    rounds: int
    round_seconds: float
    tasks: tuple[Task, ...] = TASKS
    backbone: str = "resnet50"


def plan_settings(*, quick: bool, image_size: int | None) -> Settings:
    """Return the settings of a full or a quick run; its usual side is 224 or 64 pixels.

    A quick one leaves the gap head out, which saves the start of a process for each system.
    """
    if quick:
        tasks = tuple(task for task in TASKS if task.head != "gap")
        return Settings(True, image_size or 64, rounds=3, round_seconds=1.0, tasks=tasks)
    return Settings(False, image_size or 224, rounds=5, round_seconds=10.0)


@dataclass(frozen=True)
class System:
    """One way to compute the stages.

    Attributes:
        name: as in the rows.
        kind: which module measures it.
        precision: float32 or bfloat16; auto lets the system choose.
        trains: whether it has more than the feature pass.
    """

    name: str
    kind: str
    precision: str
    trains: bool


def plan_systems(precision: str, features: Collection[str]) -> tuple[System, ...]:
    """Return the systems to measure, ours and its yardstick first.

    Args:
        precision: what `--precision auto` chooses on this machine; bfloat16 is measured in other
            systems only where this is bfloat16.
        features: of the processor, as `describe_machine` names them.
    """
    systems = [
        System("ours", "ours", "auto", trains=True),
        System("keras_float32", "plain_keras", "float32", trains=True),
    ]
    if precision == "bfloat16":
        systems.append(System("keras_bfloat16", "plain_keras", "bfloat16", trains=True))
    # OpenVINO runs on the processor even where a GPU decided on bfloat16.
    on_processor = "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(features) else "float32"
    for name, kind, its in (
        ("openvino", "with_openvino", on_processor),
        ("torch_compile", "with_torch", precision),
    ):
        suffix = "bf16" if its == "bfloat16" else its
        systems.append(System(f"{name}_{suffix}", kind, its, trains=False))
    return tuple(systems)


@dataclass(frozen=True)
class Job:
    """What one worker has to measure; it travels as JSON.

    Attributes:
        kind: of the system, or prepare.
        precision: of the system.
        stage: of the task.
        head: of the task.
        batch_size: of the task.
        image_size: side in pixels.
        backbone: the network's spec.
        folder: where images, weights and SavedModel lie, and where the worker may write.
        on_gpu: whether TensorFlow computes on a GPU, and PyTorch is to do so too.
    """

    kind: str
    precision: str
    stage: str
    head: str | None
    batch_size: int
    image_size: int
    backbone: str
    folder: str
    on_gpu: bool = False


class Measurable(Protocol):
    """One stage of one system, ready in its worker."""

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the row has to tell: precision, batch_size, and more."""

    def outputs(self) -> np.ndarray:
        """Return what the stage computes of the first `N_CHECKED` images, (N_CHECKED, ...).

        That is features, or the probabilities before any training.
        """

    def measure(self, units: int) -> int:
        """Do `units` times the least that can be measured; return how many images that were."""

    def probe(self) -> float | None:
        """Return the highest rate of one large product in FLOP/s, or None where none is tried."""


def plan_epoch(units: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image numbers that a short epoch trains on and validates on, 9 to 1."""
    n_train = units * batch_size
    n_val = max(1, round(n_train * N_VAL / N_TRAIN))
    return np.arange(n_train) % N_IMAGES, np.arange(n_val) % N_IMAGES
