"""Every recipe runs to its end, phase after phase, by its one command on a small data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.settings.recipe import list_names, read_recipe

N_TRAIN, N_TEST = 100, 30
EPOCHS = 2
SMALLER = {"vgg16": 32, "convnexttiny": 32, "inceptionv3": 75}  # minutes each at their own side


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A pair of CSV files with bars, one position for each of ten classes."""
    folder = tmp_path_factory.mktemp("data")
    for name, n_rows in (("bars_train.csv", N_TRAIN), ("bars_test.csv", N_TEST)):
        labels = np.arange(n_rows) % 10
        images = np.random.default_rng(n_rows).integers(0, 60, (n_rows, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[4 + 2 * label] = 255
        header = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])
        rows = np.column_stack([labels, images.reshape(n_rows, -1)])
        np.savetxt(folder / name, rows, fmt="%d", delimiter=",", header=header, comments="")
    return folder / "bars_train.csv"


@pytest.mark.slow
@pytest.mark.parametrize("name", list_names())
def test_a_recipe_runs_to_its_end(name: str, table: Path, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    for phase in recipe.phases:
        own = recipe.settings_of(phase)
        shorter = {"epochs": EPOCHS, "early_stopping": None, "data": str(table)}
        words = ["--phase", phase, "--run", phase, "--data", str(table)]
        words += ["--epochs", str(EPOCHS), "--early-stopping", "none", "--wandb", "disabled"]
        if phase != "finetune":
            words += ["--weights", "random"]
            shorter["weights"] = "random"
            if side := SMALLER.get(own["backbone"]):
                words += ["--image-size", str(side)]
                shorter["image_size"] = side
        subprocess.run(
            [sys.executable, "-m", "fmnist_tf.train", "--recipe", name, *words],
            cwd=tmp_path,
            check=True,
        )
        run = tmp_path / "runs" / phase
        config = json.loads((run / "config.json").read_text())
        assert config == config | json.loads(json.dumps(own)) | shorter
        assert json.loads((run / "evaluation.json").read_text())["test"]["total"] == N_TEST
        n_rows = EPOCHS + (phase == "finetune")  # which begins with the parent's row, epoch 0
        assert len((run / "history.csv").read_text().splitlines()) == 1 + n_rows
        assert (run / "DONE.json").is_file()
