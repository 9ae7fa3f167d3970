"""A folder with a finished toy run of three classes and its data, trained once a test process."""

from __future__ import annotations

import atexit
import csv
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy import build_toy_spec, save_no_figure

from fmnist_tf.model.backbones import BACKBONES
from fmnist_tf.train import main

NAMES = ("=1+1", "bag", "shoe")
WORDS = [
    "--backbone", "toy", "--weights", "random", "--units", "8", "--batch-size", "16",
    "--precision", "float32", "--learning-rate", "0.01", "--wandb", "disabled",
]  # fmt: skip


def draw(n_rows: int, seed: int) -> np.ndarray:
    """Return (N, 784) uint8: bright bars of three widths on black, one for each class in turn."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((n_rows, 28, 28), np.uint8)
    for row, image in enumerate(pixels):
        image[4:24, 12 - 4 * (row % 3) : 16 + 4 * (row % 3)] = rng.integers(150, 255)
    return pixels.reshape(n_rows, 784)


def write_csv(
    path: str | Path, pixels: np.ndarray, labels: Sequence[object] | None, column: str = "label"
) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        header = [f"pixel{i}" for i in range(1, 785)]
        writer.writerow(header if labels is None else [column, *header])
        for row, image in enumerate(pixels.tolist()):
            writer.writerow(image if labels is None else [labels[row], *image])


def write_toy_data(folder: Path) -> None:
    """Write toy_train.csv (60 images) and toy_test.csv (21)."""
    for name, n_rows, seed in (("train", 60, 0), ("test", 21, 1)):
        labels = [NAMES[row % 3] for row in range(n_rows)]
        write_csv(folder / f"toy_{name}.csv", draw(n_rows, seed), labels)


def copy_toy_run(folder: Path) -> None:
    """Copy the toy's data and the run `first`."""
    shutil.copytree(_train(), folder, dirs_exist_ok=True)


@functools.cache
def _train() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    train_in(folder, *WORDS, "--data", "toy_train.csv", "--epochs", "8", "--run", "first")
    return folder


def train_in(folder: Path, *words: str) -> None:
    """Write the toy's data into a folder, and train there; for fixtures of more than one test."""
    write_toy_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(BACKBONES, "toy", build_toy_spec())
        patch.setattr("matplotlib.figure.Figure.savefig", save_no_figure)
        assert main([*words]) == 0
