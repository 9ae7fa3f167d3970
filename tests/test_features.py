"""The feature store gives back what the prefix computes, whatever happened to its files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.training import features

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 784), np.uint8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 16)


@pytest.fixture
def prefix(toy_classifier, toy_card):
    return split_classifier(toy_classifier, toy_card, "head").prefix


def compute_and_store(folder: Path, prefix, pixels=PIXELS, counted: list[int] | None = None):
    compute = features.build_prefix_function(prefix, "float32")

    def counting(batch):
        if counted is not None:
            counted.append(len(batch))
        return compute(batch)

    key = features.feature_key(pixels, prefix, "float32")
    shape = prefix.output_shape[1:]
    store = features.read_features(folder, key, len(pixels), shape)
    if store is None:
        store = features.run_prefix(folder, key, pixels, counting, shape, lambda done, total: None)
    return store


def test_stored_features_are_the_prefix_output(prefix, tmp_path: Path) -> None:
    store = compute_and_store(tmp_path, prefix)
    rows = np.array([49, 0, 16, 15, 33, 0])
    expected = np.asarray(prefix(PIXELS[rows].reshape(-1, 28, 28), training=False))
    found = store.take(rows)
    assert found.dtype == features.FEATURE_DTYPE
    # bfloat16 keeps eight bits of the mantissa
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-8, atol=1e-3)


def test_second_start_computes_nothing(prefix, tmp_path: Path) -> None:
    counted: list[int] = []
    compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == len(PIXELS)
    again = compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == len(PIXELS)
    assert again.take(np.array([1])).shape == (1, *prefix.output_shape[1:])


def _cut_short(shard: Path, manifest: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def _flip_bit(shard: Path, manifest: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[7] ^= 4
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "recomputed"),
    [
        (lambda shard, manifest: shard.unlink(), 16),
        (_cut_short, 16),
        (_flip_bit, 16),
        (lambda shard, manifest: manifest.unlink(), 50),
        (lambda shard, manifest: manifest.write_text("[]"), 50),
        (lambda shard, manifest: manifest.write_text(manifest.read_text()[:-20]), 50),
    ],
    ids=["shard gone", "cut short", "bit flipped", "manifest gone", "foreign", "torn manifest"],
)
def test_what_cannot_be_trusted_is_computed_again_and_nothing_else(
    prefix, tmp_path: Path, damage, recomputed: int
) -> None:
    store = compute_and_store(tmp_path, prefix)
    expected = store.take(np.arange(50))
    damage(features.shard_path(store.path, 1), store.path / "manifest.json")
    counted: list[int] = []
    repaired = compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == recomputed
    np.testing.assert_array_equal(repaired.take(np.arange(50)), expected)
    compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == recomputed


def test_key_depends_on_pixels_weights_precision_and_graph(
    prefix, toy_classifier, toy_card
) -> None:
    def key(pixels=PIXELS, network=prefix, precision="float32") -> str:
        return features.feature_key(pixels, network, precision)

    base = key()
    assert key() == base
    changed = PIXELS.copy()
    changed[-1, -1] ^= 1
    deeper = split_classifier(toy_classifier, toy_card, "deep").prefix
    others = {key(pixels=changed), key(precision="bfloat16"), key(network=deeper)}
    kernel = toy_classifier.get_layer("toy").get_layer("deep_conv").kernel
    kernel.assign(kernel * 1.0001)
    others.add(key())
    assert len(others | {base}) == 5


def test_key_is_the_same_in_another_process() -> None:
    # Keras numbers its automatic names per process; the key must not see them.
    import keras

    keras.layers.ReLU(), keras.layers.Flatten()
    inputs = keras.Input((28, 28))
    model = keras.Model(inputs, keras.layers.ReLU()(keras.layers.Flatten()(inputs)))
    script = (
        "import keras, numpy as np\n"
        "from fmnist_tf.training.features import feature_key\n"
        "inputs = keras.Input((28, 28))\n"
        "model = keras.Model(inputs, keras.layers.ReLU()(keras.layers.Flatten()(inputs)))\n"
        "print(feature_key(np.zeros((2, 784), np.uint8), model, 'float32'))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    own = features.feature_key(np.zeros((2, 784), np.uint8), model, "float32")
    assert answer.stdout.strip() == own


def _write_until_killed(folder: Path) -> None:
    """Store shards of a slow fake prefix, for ever; the parent kills this process."""
    import tensorflow as tf

    def slow(batch):
        time.sleep(0.02)
        return tf.cast(batch, tf.float32)

    features.SHARD_ROWS = 16
    features.run_prefix(folder, "key", PIXELS, slow, (784,), lambda done, total: None)


@pytest.mark.parametrize("writers", [1, 2])
def test_killed_writers_leave_only_whole_shards(tmp_path: Path, writers: int) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_write_until_killed, args=(tmp_path,)) for _ in range(writers)
    ]
    for process in processes:
        process.start()
    entry, deadline = tmp_path / "key", time.monotonic() + 30
    while not features.shard_path(entry, 0).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    whole = features.shard_path(entry, 0)
    assert whole.stat().st_size == 16 * 784 * 2
    stored = features.FeatureStore(entry, 16, (784,)).take(np.arange(16))
    np.testing.assert_array_equal(stored, PIXELS[:16])  # 0..255 are exact in bfloat16


def test_row_counts_around_a_shard(prefix, tmp_path: Path) -> None:
    for n_rows in (1, 15, 16, 17, 32):
        store = compute_and_store(tmp_path, prefix, PIXELS[:n_rows])
        assert store.take(np.arange(n_rows)).shape == (n_rows, *prefix.output_shape[1:])


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1100})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage)
    assert features.fits_on_disk(tmp_path, "key", 999)
    assert not features.fits_on_disk(tmp_path, "key", 1000)
    (tmp_path / "key").mkdir()
    (tmp_path / "key/shard-00000.bin").write_bytes(bytes(500))
    assert features.fits_on_disk(tmp_path, "key", 1499)
