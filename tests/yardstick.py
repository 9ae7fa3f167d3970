"""Small seeded runs and the SHA-256 of what they leave: a refactoring must not change them.

    python tests/yardstick.py --json before.json
    python tests/yardstick.py --json after.json --compare before.json

The runs go through the public command line: a frozen and a finetune ResNet50 at 32 pixels, a frozen
one in bfloat16 where the processor computes in it, `resnet8` and `mlp`. They read official
Fashion-MNIST rows and pretrained weights where the folder named by FMNIST_TF_SHARED (default:
../shared) has them, else random rows and random weights. The hashes compare on one machine with one
set of installed versions only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FMNIST_TF_SHARED", ROOT.parent / "shared"))
N_TRAIN, N_TEST = 2000, 500


def read_idx(path: Path, header: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the first rows of an IDX file, https://yann.lecun.com/exdb/mnist."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(header + int(np.prod(shape)))[header:], np.uint8).reshape(
            shape
        )


def write_csvs(folder: Path) -> str:
    """Write train.csv and test.csv; return where their rows come from."""
    source = SHARED / "keras/datasets/fashion-mnist"
    rng = np.random.default_rng(0)
    for part, stem, n in (("train", "train", N_TRAIN), ("test", "t10k", N_TEST)):
        if source.is_dir():
            labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz", 8, (n, 1))
            pixels = read_idx(source / f"{stem}-images-idx3-ubyte.gz", 16, (n, 784))
        else:
            labels = (np.arange(n) % 10).astype(np.uint8)[:, None]
            pixels = rng.integers(0, 256, (n, 784), np.uint8)
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *(f"pixel{k}" for k in range(1, 785))])
            writer.writerows(np.hstack([labels, pixels]).tolist())
    return "official rows" if source.is_dir() else "random rows"


def hash_run(run: Path) -> dict[str, str]:
    """Return the SHA-256 of history (without seconds), predictions and weights."""
    with (run / "history.csv").open(newline="") as file:
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    arrays = hashlib.sha256()
    with np.load(run / "predictions.npz", allow_pickle=False) as predictions:
        for name in sorted(predictions.files):
            arrays.update(name.encode() + predictions[name].tobytes())
    weights = hashlib.sha256()
    with zipfile.ZipFile(run / "model.keras") as archive:
        with h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:

            def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
                if isinstance(item, h5py.Dataset):
                    weights.update(name.encode() + item[()].tobytes())

            file.visititems(add)
    return {
        "history": hashlib.sha256(json.dumps(history).encode()).hexdigest(),
        "predictions": arrays.hexdigest(),
        "weights": weights.hexdigest(),
    }


def main() -> int:
    """Make the runs, print their hashes, compare; 1 where a hash differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the hashes")
    parser.add_argument("--compare", type=Path, help="compare with hashes written earlier")
    flags = parser.parse_args()
    found = sorted((SHARED / "weights").glob("resnet50*notop*.h5"))
    weights = str(found[0]) if found else "random"
    cpuinfo = Path("/proc/cpuinfo")
    has_bfloat16 = cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()
    float32 = ["--precision", "float32"]
    resnet50 = ["--backbone", "resnet50", "--image-size", "32", "--weights", weights]
    standardized = ["--phase", "frozen", "--epochs", "2", *resnet50, "--cut", "conv4"]
    resnet50 += ["--standardize", "none"]
    runs = {
        "frozen": ["--phase", "frozen", "--epochs", "2", *resnet50, *float32],
        "finetune": ["--phase", "finetune", "--epochs", "1", "--from", "frozen", *float32],
        "resnet8": ["--recipe", "resnet8", "--epochs", "2", *float32],
        "mlp": ["--recipe", "mlp", "--epochs", "3", *float32],
        "standardized": [*standardized, *float32],
    }
    if has_bfloat16:
        precision = ["--precision", "bfloat16"]
        runs["frozen-bfloat16"] = ["--phase", "frozen", "--epochs", "2", *resnet50, *precision]
    hashes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        print(f"{write_csvs(folder)}, weights {weights}")
        common = ["--wandb", "disabled", "--quiet", "--seed", "7"]
        for run, arguments in runs.items():
            data = ["--data", "train.csv", "--test-data", "test.csv"]
            command = [sys.executable, "-m", "fmnist_tf.train", "--run", run]
            subprocess.run([*command, *arguments, *data, *common], cwd=folder, check=True)
            hashes[run] = hash_run(folder / "runs" / run)
            print(run, *(f"{what} {value[:12]}" for what, value in hashes[run].items()), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(hashes, indent=2) + "\n")
    before = json.loads(flags.compare.read_text()) if flags.compare else hashes
    for name, found_here in hashes.items():
        known = before.get(name, {})
        for what in (what for what in found_here if known.get(what) != found_here[what]):
            print(f"{name}: {what} " + ("differs" if what in known else "is new"))
    return int(before != hashes)


if __name__ == "__main__":
    sys.exit(main())
