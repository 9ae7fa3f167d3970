"""Unseen images, enlarged to pictures, are predicted nearly as accurately as at 28x28 pixels."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toyrun import write_csv

from fmnist_tf.predict import main as predict
from fmnist_tf.train import main as train

N = 300


def read_garments(keras_home: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first test images of Fashion-MNIST and their labels."""
    folder = keras_home / "datasets/fashion-mnist"
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    return (
        np.frombuffer(images, np.uint8).reshape(-1, 28, 28)[:N],
        np.frombuffer(labels, np.uint8)[:N],
    )


def photograph(image: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return the image dark on white paper, enlarged, in uneven light, with noise."""
    large = Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC)
    paper = 230 - 0.75 * np.pad(np.asarray(large, np.float32), 20)
    light = 1 - 0.2 * np.linspace(0, rng.uniform(-1, 1), 320)
    return Image.fromarray(
        np.clip(paper * light + rng.normal(0, 3, paper.shape), 0, 255).astype(np.uint8)
    )


@pytest.mark.real
@pytest.mark.slow
def test_enlarged_images_are_at_most_five_points_worse(
    keras_home_with_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(keras_home_with_data))
    images, labels = read_garments(keras_home_with_data)
    words = ["--phase", "scratch", "--recipe", "mlp", "--wandb", "disabled"]
    assert train([*words, "--data", "official", "--limit", "10000"]) == 0
    (run,) = (path.name for path in Path("runs").iterdir() if path.name[0] == "2")
    write_csv("small.csv", images.reshape(N, 784), labels.tolist())
    rng = np.random.default_rng(0)
    for number, image in enumerate(images):
        large = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        large.save(f"white{number}.png")
        photograph(image, rng).save(f"photo{number}.jpg", quality=85)
    correct = {}
    for kind in ("small", "white", "photo"):
        files = ["small.csv"] if kind == "small" else map(str, sorted(tmp_path.glob(f"{kind}*")))
        assert predict([run, *files, "--out", "o.csv"]) == 0
        with open("o.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if kind == "small":
            names = [row["true_label"] for row in rows]
        else:
            rows.sort(key=lambda row: int("".join(filter(str.isdigit, Path(row["file"]).stem))))
        correct[kind] = sum(
            row["prediction"] == name for row, name in zip(rows, names, strict=True)
        )
    print(f"correct of {N}: {correct}")
    assert correct["small"] > 0.75 * N
    assert min(correct.values()) >= correct["small"] - 0.05 * N
