"""What is measured: the stages, the systems, and what all systems share.

Shape letters: N images, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

N_CLASSES, UNITS, DROPOUT, LEARNING_RATE, SEED = 10, 512, 0.5, 1e-4, 0

N_TRAIN, N_VAL, PHASE_EPOCHS = 54_000, 6_000, 10
"""The frozen phase that the rates are composed to: Fashion-MNIST, a tenth held out."""
N_PHASE = N_TRAIN + N_VAL

N_IMAGES = 256  # distinct ones; longer measurements repeat them
N_CHECKED = 32  # the first ones, whose outputs are compared between the systems
MAX_IMAGES = 8192  # in one measurement: at 224 pixels their cached features stay below 2 GB

IMAGES, WEIGHTS, LAYERS, SAVED_MODEL = "images.npz", "weights.npz", "layers.json", "saved_model"


@dataclass(frozen=True)
class Task:
    """A stage (feature_pass, frozen_epoch, finetune_epoch) and its head (flatten, gap, None)."""

    stage: str
    head: str | None
    batch_size: int | None


TASKS = {
    "features": Task("feature_pass", None, None),  # in ours' batches; the others in train's
    "flatten": Task("frozen_epoch", "flatten", 256),
    "gap": Task("frozen_epoch", "gap", 256),
    "finetune": Task("finetune_epoch", "flatten", 64),
}


@dataclass(frozen=True)
class System:
    """One way to compute the stages.

    Attributes:
        name: as in the rows.
        stage: `module:callable` that opens a stage of a job; see `measure.Stage`.
        precision: compute precision, float32 or bfloat16.
        uses_tensorflow: whether its process imports TensorFlow.
        trains: whether it has more than the feature pass.
    """

    name: str
    stage: str
    precision: str
    uses_tensorflow: bool = False
    trains: bool = False


PREPARE = System("prepare", "benchmarks.plain_keras:prepare", "float32", uses_tensorflow=True)
OURS, OURS_OPENVINO = "ours", "ours_openvino"


def plan_systems(precision: str, on_processor: str) -> list[System]:
    """Return the systems to measure.

    Args:
        precision: what `--precision auto` chooses on this machine.
        on_processor: what it would choose without a GPU; OpenVINO runs on the processor.
    """
    short = {"bfloat16": "bf16", "float32": "float32"}
    keras_stage, ours_stage = "benchmarks.plain_keras:KerasStage", "benchmarks.ours:open_stage"
    return [
        System(OURS, ours_stage, precision, uses_tensorflow=True, trains=True),
        System(OURS_OPENVINO, ours_stage, on_processor, uses_tensorflow=True),
        *(
            System(f"keras_{p}", keras_stage, p, uses_tensorflow=True, trains=True)
            for p in dict.fromkeys(("float32", precision))
        ),
        System(f"openvino_{short[on_processor]}", "benchmarks.with_openvino:Pass", on_processor),
        System(f"torch_compile_{short[precision]}", "benchmarks.with_torch:Pass", precision),
    ]


@dataclass(frozen=True)
class Job:
    """What one worker process measures; it may write into the folder of the common files."""

    system: System
    task: Task
    backbone: str
    image_size: int
    batch_size: int
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
