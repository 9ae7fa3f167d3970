"""Every recipe runs to its end, phase after phase, by its one command on a small data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data.sample import load_sample
from fmnist_tf.model.backbones import BACKBONES
from fmnist_tf.settings.recipe import list_names, read_recipe

N_TRAIN, N_TEST = 100, 30
EPOCHS = 2
SMALLER = ("vgg16", "convnext-tiny", "inceptionv3")  # minutes each at the recipe's own side


@pytest.fixture(scope="module")
def garments(tmp_path_factory) -> Path:
    """Images of the built-in sample as a pair of CSV files."""
    folder = tmp_path_factory.mktemp("data")
    pixels, labels, test_pixels, test_labels = load_sample()
    for name, rows, classes in (
        ("garments_train.csv", pixels[:N_TRAIN], labels[:N_TRAIN]),
        ("garments_test.csv", test_pixels[:N_TEST], test_labels[:N_TEST]),
    ):
        header = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])
        table = np.column_stack([classes, rows])
        np.savetxt(folder / name, table, fmt="%d", delimiter=",", header=header, comments="")
    return folder / "garments_train.csv"


@pytest.mark.slow
@pytest.mark.parametrize("name", list_names())
def test_a_recipe_runs_to_its_end(name: str, garments: Path, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    for phase in recipe.phases:
        said = recipe.settings_of(phase)
        shorter = {"epochs": EPOCHS, "early_stopping": None, "data": str(garments)}
        words = ["--phase", phase, "--run", phase, "--data", str(garments)]
        words += ["--epochs", str(EPOCHS), "--early-stopping", "none", "--wandb", "disabled"]
        if phase != "finetune":
            words += ["--weights", "random"]
            shorter["weights"] = "random"
            if said["backbone"] in SMALLER:
                side = BACKBONES[said["backbone"]].min_size
                words += ["--image-size", str(side)]
                shorter["image_size"] = side
        subprocess.run(
            [sys.executable, "-m", "fmnist_tf.train", "--recipe", name, *words],
            cwd=tmp_path,
            check=True,
        )
        run = tmp_path / "runs" / phase
        config = json.loads((run / "config.json").read_text())
        assert config == config | json.loads(json.dumps(said)) | shorter
        assert json.loads((run / "evaluation.json").read_text())["test"]["total"] == N_TEST
        assert len((run / "history.csv").read_text().splitlines()) == (
            1 + EPOCHS + (phase == "finetune")
        )
        assert (run / "DONE.json").is_file()
