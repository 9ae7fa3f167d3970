"""What is measured: the stages, the systems, and what all systems share.

Shape letters: N images, B batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BACKBONE = "resnet50"
N_CLASSES, UNITS, DROPOUT, LEARNING_RATE, SEED = 10, 512, 0.5, 1e-4, 0

N_TRAIN, N_VAL, PHASE_EPOCHS = 54_000, 6_000, 10
"""The frozen phase that the rates are composed to: Fashion-MNIST, a tenth held out."""
N_PHASE = N_TRAIN + N_VAL

N_IMAGES = 256  # distinct ones; longer measurements repeat them
N_CHECKED = 32  # the first ones, whose outputs are compared between the systems
MAX_IMAGES = 8192  # in one measurement: at 224 pixels their cached features stay below 2 GB

IMAGES, WEIGHTS, SAVED_MODEL = "images.npz", "weights.npz", "saved_model"


@dataclass(frozen=True)
class Task:
    """A stage (feature_pass, frozen_epoch, finetune_epoch) and its head (flatten, gap, None)."""

    stage: str
    head: str | None
    batch_size: int | None


TASKS = (
    Task("feature_pass", None, None),  # with the batches of ours; the others with those of `train`
    Task("frozen_epoch", "flatten", 256),
    Task("frozen_epoch", "gap", 256),
    Task("finetune_epoch", "flatten", 64),
)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    A system's median of `rounds` measurements counts, each of about `round_seconds`; a slow system
    computes one batch. A worker that needs longer for one answer than the timeout is killed.
    """

    image_size: int
    rounds: int
    round_seconds: float
    tasks: tuple[Task, ...] = TASKS
    timeout_seconds: float = 1800.0


FULL = Settings(224, rounds=5, round_seconds=10.0)
QUICK = Settings(64, rounds=3, round_seconds=1.0, tasks=tuple(t for t in TASKS if t.head != "gap"))


@dataclass(frozen=True)
class System:
    """One way to compute the stages.

    Attributes:
        name: as in the rows.
        stage: `module:callable` that opens a stage of a job; see `measure.Stage`.
        precision: compute precision, float32 or bfloat16.
        uses_tensorflow: only these systems have more than the feature pass.
    """

    name: str
    stage: str
    precision: str
    uses_tensorflow: bool = False


PREPARE = System("prepare", "benchmarks.plain_keras:prepare", "float32", uses_tensorflow=True)


def plan_systems(precision: str, features: Collection[str]) -> list[System]:
    """Return the systems to measure.

    Args:
        precision: what `--precision auto` chooses on this machine.
        features: of the processor, as in /proc/cpuinfo.
    """
    # OpenVINO runs on the processor even where a GPU decided on bfloat16.
    on_processor = "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(features) else "float32"
    short = {"bfloat16": "bf16", "float32": "float32"}
    of_keras = dict.fromkeys(("float32", precision))
    return [
        System("ours", "benchmarks.ours:open_stage", precision, uses_tensorflow=True),
        *(System(f"keras_{p}", "benchmarks.plain_keras:KerasStage", p, True) for p in of_keras),
        System(f"openvino_{short[on_processor]}", "benchmarks.with_openvino:Pass", on_processor),
        System(f"torch_compile_{short[precision]}", "benchmarks.with_torch:Pass", precision),
    ]


@dataclass(frozen=True)
class Job:
    """What one worker process measures; it may write into the folder of the common files."""

    system: System
    task: Task
    batch_size: int
    image_size: int
    folder: Path
    on_gpu: bool = False

    def load_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the images, (N, 28, 28) uint8, and their labels, (N,) int64."""
        with np.load(self.folder / IMAGES) as arrays:
            return arrays["images"], arrays["labels"]

    def load_weights(self) -> dict[str, np.ndarray]:
        """Return the backbone's weights by `LAYER/NUMBER`, in Keras' order and layout."""
        with np.load(self.folder / WEIGHTS) as arrays:
            return dict(arrays)

    def plan_epoch(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image numbers that a short epoch trains on and validates on, 9 to 1."""
        n_train = units * self.batch_size
        n_val = max(1, round(n_train * N_VAL / N_TRAIN))
        return np.arange(n_train) % N_IMAGES, np.arange(n_val) % N_IMAGES
