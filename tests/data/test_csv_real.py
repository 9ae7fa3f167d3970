"""The full Fashion-MNIST train file as Kaggle's CSV: what is read, time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data import official
from fmnist_tf.data.arrays import read_array
from fmnist_tf.data.labels import FASHION_MNIST
from fmnist_tf.data.sources import read_dataset

pytestmark = [pytest.mark.slow, pytest.mark.real]

READ_TWICE = """
import json, re, sys, time
from fmnist_tf.data.tables import read_table
# ru_maxrss would start from the parent's peak; VmHWM starts with this program.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
before, seconds = peak(), []
for _ in range(2):
    start = time.process_time()
    table = read_table(sys.argv[1], sys.argv[2])
    seconds.append(time.process_time() - start)
print(json.dumps({"seconds": seconds, "mib": (peak() - before) / 1024}))
"""


@pytest.fixture(scope="module")
def train_csv(keras_home_with_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = keras_home_with_data / "datasets/fashion-mnist"
    pixels = read_array(folder / official.TRAIN_IMAGES).reshape(-1, 784)
    labels = read_array(folder / official.TRAIN_LABELS)
    path = tmp_path_factory.mktemp("csv") / "renamed.csv"
    digits = [str(value) for value in range(256)]
    with path.open("w") as file:
        file.write(",".join(["label", *(f"pixel{i}" for i in range(1, 785))]) + "\n")
        for label, row in zip(labels.tolist(), pixels, strict=True):
            file.write(f"{label}," + ",".join([digits[v] for v in row.tolist()]) + "\n")
    return path


def measure(path: Path, store_dir: Path) -> tuple[list[float], float]:
    """Return the CPU seconds of the first and the second reading, and MiB of peak memory."""
    command = [sys.executable, "-c", READ_TWICE, str(path), str(store_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(done.stdout)
    return measured["seconds"], measured["mib"]


def test_a_csv_of_the_official_images_is_known_by_its_content(
    train_csv: Path, tmp_path: Path
) -> None:
    dataset = read_dataset(str(train_csv), store_dir=tmp_path / "store", say=pytest.fail)
    assert (dataset.kind, dataset.name, dataset.warnings) == ("official", "fashion-mnist", ())
    assert dataset.train.class_names == FASHION_MNIST
    assert np.bincount(dataset.train.labels).tolist() == [5100] * 10
    convention = dataset.convention
    assert (convention.background, convention.content_side, convention.centring) == (0, 28, "box")
    assert not convention.has_strokes


def test_time_and_memory(train_csv: Path, tmp_path: Path) -> None:
    """The second start takes 0.2 s. Memory does not grow with the file or for quoted cells."""
    lines = train_csv.read_bytes().split(b"\n")[:30_001]
    half, quoted = tmp_path / "half.csv", tmp_path / "quoted.csv"
    half.write_bytes(b"\n".join(lines) + b"\n")
    few = lines[:6001]
    quoted.write_bytes(b"\n".join(b'"' + line.replace(b",", b'","') + b'"' for line in few))
    (first, second), most = measure(train_csv, tmp_path / "store")
    peaks = [most, *(measure(path, tmp_path / "store")[1] for path in (half, quoted))]
    print(f"\nfirst {first:.2f} s, second {second:.3f} s,", *(f"{mib:.0f} MiB" for mib in peaks))
    assert second < 0.2
    assert max(peaks) < 250  # some 70 of them are pyarrow, where it is installed
    assert abs(peaks[0] - peaks[1]) < 16
