"""The feature store gives back what the prefix computes, whatever happened to its files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data.batches import ArrayRows, FlippedRows, PickedRows, StackedRows, make_batches
from fmnist_tf.model.classifier import split_classifier
from fmnist_tf.system import signals
from fmnist_tf.training import features

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 784), np.uint8)
SIDE_OF_FOURS = 512  # its batches are of 4 rows


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 16)


@pytest.fixture
def prefix(toy_classifier, toy_spec):
    return split_classifier(toy_classifier, toy_spec, "head").prefix


def compute_and_store(folder: Path, prefix, pixels=PIXELS, counted: list[int] | None = None):
    compute = features.build_feature_function(prefix, "float32")

    def counting(batch):
        if counted is not None:
            counted.append(len(batch))
        return compute(batch)

    key = features.feature_key(ArrayRows(pixels), prefix, "float32")
    shape = prefix.output_shape[1:]
    store = features.read_features(folder, key, len(pixels), shape)
    if store is None:
        store = store_rows(folder, pixels, counting, key=key, row_shape=shape)
    return store


def store_rows(
    folder: Path,
    pixels: np.ndarray,
    compute: Callable,
    *,
    key: str = "key",
    row_shape: tuple[int, ...] = (784,),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> features.FeatureStore:
    """Run any function as the prefix; it may return plain arrays."""
    return features.cache_features(
        folder, key, ArrayRows(pixels), compute, row_shape, SIDE_OF_FOURS,
        progress=progress, say=say,
    )  # fmt: skip


def as_they_are(batch: np.ndarray) -> np.ndarray:
    """The cheapest prefix: 0..255 are exact in bfloat16."""
    return batch


def files_in(entry: Path) -> list[str]:
    return sorted(path.name for path in entry.iterdir())


def test_stored_features_are_the_prefix_output(prefix, tmp_path: Path) -> None:
    store = compute_and_store(tmp_path, prefix)
    rows = np.array([49, 0, 16, 15, 33, 0])
    expected = np.asarray(prefix(PIXELS[rows].reshape(-1, 28, 28), training=False))
    found = store.take(rows)
    assert found.dtype == store.dtype == ml_dtypes.bfloat16
    assert store.row_shape == expected.shape[1:]
    # bfloat16 keeps eight bits of the mantissa
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("stage", ["head", "deep"])
def test_batches_are_the_same_bits_with_and_without_the_store(
    toy_classifier, toy_spec, tmp_path: Path, stage: str
) -> None:
    prefix = split_classifier(toy_classifier, toy_spec, stage).prefix
    store = compute_and_store(tmp_path, prefix)
    compute = features.build_feature_function(prefix, "float32")
    inside_a_step = tf.function(lambda x: compute(x), autograph=False)
    rows = np.random.default_rng(1).permutation(50)
    for batch_size in (1, 3, 49):
        stored = make_batches(store, np.zeros(50, np.int64), rows, batch_size)
        pixels = make_batches(ArrayRows(PIXELS), np.zeros(50, np.int64), rows, batch_size)
        assert stored.element_spec[0].dtype == tf.bfloat16
        for (from_disk, _), (raw, _) in zip(stored, pixels, strict=True):
            computed = inside_a_step(raw)
            assert from_disk.dtype == computed.dtype == tf.bfloat16
            np.testing.assert_array_equal(
                from_disk.numpy().view(np.uint16), computed.numpy().view(np.uint16)
            )


class BatchSize(keras.layers.Layer):
    """Says how many images are computed together."""

    def call(self, x):
        return keras.ops.zeros_like(x) + keras.ops.cast(keras.ops.shape(x)[0], x.dtype)


def test_no_image_is_computed_alone() -> None:
    inputs = keras.Input((28, 28), dtype="uint8")
    together = keras.Model(inputs, BatchSize()(keras.layers.Rescaling(1.0)(inputs)))
    compute = features.build_feature_function(together, "float32")
    for size, expected in ((1, 2), (2, 2), (5, 5)):
        found = compute(PIXELS[:size])
        assert (found.shape, found.dtype) == ((size, 28, 28), tf.bfloat16)
        assert np.all(found.numpy() == expected)


@pytest.mark.slow
def test_resnet50_is_nearly_the_same_bits_with_and_without_the_store(tmp_path: Path) -> None:
    """Kernels may round by the batch; what they differ by must be rare and the last bit."""
    from fmnist_tf.model.backbones import BACKBONES
    from fmnist_tf.model.classifier import build_classifier

    spec = BACKBONES["resnet50"]
    keras.utils.set_random_seed(0)
    classifier = build_classifier(
        spec.build(64), spec, head="gap", units=5, dropout=0.0, n_classes=3, seed=0
    )
    split = split_classifier(classifier, spec, "head")
    compute = features.build_feature_function(split.prefix, "float32", pools=split.pools)
    store = store_rows(tmp_path, PIXELS, compute, row_shape=split.row_shape)
    stored = store.take(np.arange(50)).view(np.int16)
    for size in (1, 7, 50):
        parts = [compute(PIXELS[start : start + size]) for start in range(0, 50, size)]
        bits = np.concatenate([np.asarray(part) for part in parts]).view(np.int16)
        assert np.abs(bits - stored).max() <= 1
        assert np.mean(bits != stored) < 1e-3


def test_a_flipped_view_is_another_entry_of_the_same_function(prefix, tmp_path: Path) -> None:
    compute = features.build_feature_function(prefix, "float32")
    shape = prefix.output_shape[1:]
    picked = PickedRows(ArrayRows(PIXELS), np.arange(0, 50, 2))
    views = []
    for view in (picked, FlippedRows(picked)):
        key = features.feature_key(view, prefix, "float32")
        views.append(
            features.cache_features(
                tmp_path, key, view, compute, shape, 28, progress=lambda *_: None, say=print
            )
        )
    stacked = StackedRows(tuple(views))
    found = stacked.take(np.array([3, 25 + 3]))
    images = PIXELS[6].reshape(1, 28, 28)
    expected = compute(np.concatenate([images, images[:, :, ::-1]]).reshape(2, 784))
    np.testing.assert_array_equal(found, expected.numpy())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stored_maps_averaged_are_the_features_of_a_pooled_head(
    prefix, tmp_path: Path, precision: str
) -> None:
    """Else what a run computes with would hang on what an earlier one left."""
    maps = features.build_feature_function(prefix, precision)
    shape = prefix.output_shape[1:]
    stored = store_rows(tmp_path, PIXELS, maps, key="maps", row_shape=shape)
    pooled = features.build_feature_function(prefix, precision, pools=True)
    direct, averaged = (
        features.cache_features(
            tmp_path, key, source, compute, shape[2:], SIDE_OF_FOURS,
            progress=lambda *_: None, say=print,
        )
        for key, source, compute in (
            ("direct", ArrayRows(PIXELS), pooled), ("averaged", stored, features.average_maps)
        )
    )  # fmt: skip
    expected = direct.take(np.arange(50))
    np.testing.assert_array_equal(averaged.take(np.arange(50)), expected)
    mean = stored.take(np.arange(50)).astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(expected.astype(np.float64), mean, rtol=2**-8, atol=1e-6)


def test_second_start_computes_nothing(prefix, tmp_path: Path) -> None:
    counted: list[int] = []
    compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == len(PIXELS)
    again = compute_and_store(tmp_path, prefix, counted=counted)
    assert sum(counted) == len(PIXELS)
    assert again.take(np.array([1])).shape == (1, *prefix.output_shape[1:])


def test_row_counts_around_a_shard(prefix, tmp_path: Path) -> None:
    for n_rows in (1, 15, 16, 17, 32):
        store = compute_and_store(tmp_path, prefix, PIXELS[:n_rows])
        assert store.take(np.arange(n_rows)).shape == (n_rows, *prefix.output_shape[1:])


@pytest.mark.parametrize(
    ("row_shape", "rows"),
    [((2048,), 1024), ((14, 14, 1024), 128), ((100352,), 256), ((8192, 8192), 1), ((), 1024)],
)
def test_shards_are_bounded_in_bytes_and_rows(
    monkeypatch: pytest.MonkeyPatch, row_shape: tuple[int, ...], rows: int
) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 1024)
    assert features.rows_per_shard(row_shape) == rows
    bounds = features.FeatureStore(Path(), 2 * rows + 1, row_shape).shard_bounds
    assert bounds == [(0, rows), (rows, 2 * rows), (2 * rows, 2 * rows + 1)]


def test_batches_hold_no_more_pixels_at_224_and_starve_no_small_side() -> None:
    sides = (28, 64, 96, 128, 160, 224, 448, 5000)
    assert [features.rows_per_batch(side) for side in sides] == [128, 128, 128, 64, 32, 32, 8, 1]


def test_key_depends_on_pixels_weights_precision_and_graph(
    prefix, toy_classifier, toy_spec
) -> None:
    def key(pixels=PIXELS, network=prefix, precision="float32") -> str:
        return features.feature_key(ArrayRows(pixels), network, precision)

    base = key()
    assert key() == base
    changed = PIXELS.copy()
    changed[-1, -1] ^= 1
    deeper = split_classifier(toy_classifier, toy_spec, "deep").prefix
    others = {key(pixels=changed), key(precision="bfloat16"), key(network=deeper)}
    others.add(key(pixels=PIXELS[:-1]))
    kernel = toy_classifier.get_layer("toy").get_layer("deep_conv").kernel
    kernel.assign(kernel * 1.0001)
    others.add(key())
    assert len(others | {base}) == 6


def test_key_is_that_of_the_pixels_however_they_are_held(prefix, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.concatenate([PIXELS, PIXELS]))
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    picked = PickedRows(ArrayRows(mapped), np.arange(50, 100))
    assert features.feature_key(picked, prefix, "float32") == features.feature_key(
        ArrayRows(PIXELS), prefix, "float32"
    )


def test_key_depends_on_connections() -> None:
    """The same layers in the same order with the same weights, put together otherwise."""

    def build(wiring: str) -> keras.Model:
        inputs = tensor = keras.Input((28, 28))
        one, two, three = [tensor := keras.layers.Rescaling(2.0)(tensor) for _ in range(3)]
        ends = {
            "3 + 1": lambda: keras.layers.Add()([three, one]),
            "3 + 2": lambda: keras.layers.Add()([three, two]),
            "3, 1": lambda: [three, one],
            "3, 2": lambda: [three, two],
        }
        inner = keras.Model(inputs, ends[wiring]())
        outer = keras.Input((28, 28))
        return keras.Model(outer, inner(outer))

    def key(wiring: str) -> str:
        return features.feature_key(ArrayRows(PIXELS), build(wiring), "float32")

    wirings = ["3 + 1", "3 + 2", "3, 1", "3, 2"]
    keys = [key(wiring) for wiring in wirings]
    assert len(set(keys)) == len(wirings)
    assert [key(wiring) for wiring in wirings] == keys  # whatever names Keras gave this time


def test_key_depends_on_what_chooses_the_kernels(prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return features.feature_key(ArrayRows(PIXELS), prefix, "float32")

    settings = [
        "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
        "TF_ENABLE_ONEDNN_OPTS",
    ]  # fmt: skip
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(features, "read_cpu_features", lambda: {"avx2", "lm"})
    base = key()
    others = set()
    for name in settings:
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            others.add(key())
            patch.setenv(name, "1")
            others.add(key())
    for owner, name, other in (
        (features, "FORMAT", 99),
        (features, "read_cpu_features", lambda: {"avx2", "lm", "amx_bf16"}),
        (features, "usable_cpus", lambda: set(range(77))),
        (features.platform, "machine", lambda: "abacus"),
        (keras, "__version__", "0"),
        (tf, "__version__", "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            others.add(key())
    assert len(others | {base}) == 1 + 2 * len(settings) + 6
    monkeypatch.setattr(features, "read_cpu_features", lambda: {"avx2"})
    assert key() == base  # no kernel is chosen by the others


@pytest.mark.parametrize("nested", [False, True])
def test_key_depends_on_the_settings_of_layers(nested: bool) -> None:
    def key(side: int) -> str:
        inputs = keras.Input((28, 28, 1))
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Resizing(side, side)(inputs))
        model = keras.Model(inputs, pooled)
        if nested:
            outer = keras.Input((28, 28, 1))
            model = keras.Model(outer, model(outer))
        return features.feature_key(ArrayRows(PIXELS), model, "float32")

    assert key(16) == key(16) != key(24)


def test_key_is_the_same_in_another_process() -> None:
    # Keras numbers its automatic names per process; the key must not see them.
    keras.layers.ReLU(), keras.layers.Flatten()
    inputs = keras.Input((28, 28))
    model = keras.Model(inputs, keras.layers.ReLU()(keras.layers.Flatten()(inputs)))
    script = (
        "import keras, numpy as np\n"
        "from fmnist_tf.data.batches import ArrayRows\n"
        "from fmnist_tf.training.features import feature_key\n"
        "inputs = keras.Input((28, 28))\n"
        "model = keras.Model(inputs, keras.layers.ReLU()(keras.layers.Flatten()(inputs)))\n"
        "print(feature_key(ArrayRows(np.zeros((2, 784), np.uint8)), model, 'float32'))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    own = features.feature_key(ArrayRows(np.zeros((2, 784), np.uint8)), model, "float32")
    assert answer.stdout.strip() == own


def test_two_batches_are_in_work_and_the_results_in_order(tmp_path: Path) -> None:
    both = threading.Barrier(features.STREAMS, timeout=10)

    def together(batch: np.ndarray) -> np.ndarray:
        if np.array_equal(batch[0], PIXELS[0]):
            return batch  # the first one is alone
        both.wait()  # breaks unless the other stream comes too
        if batch[0, 0] < 100:
            time.sleep(0.02)  # the later batch is done first
        return batch

    pixels = PIXELS[:36]  # the first batch, and an even number of others
    store = store_rows(tmp_path, pixels, together)
    np.testing.assert_array_equal(store.take(np.arange(36)), pixels)


def test_the_first_batch_is_alone_and_what_it_leaves_is_freed(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(features, "release_memory", lambda: events.append("release"))

    def note(batch: np.ndarray) -> np.ndarray:
        events.append("begin")
        time.sleep(0.02)
        events.append("end")
        return batch

    store_rows(tmp_path, PIXELS, note)
    assert events[:5] == ["begin", "end", "release", "begin", "begin"]
    assert events.count("release") == 1


def test_computing_never_runs_ahead_of_writing(tmp_path: Path) -> None:
    begun = 0
    ahead = []

    def count(batch: np.ndarray) -> np.ndarray:
        nonlocal begun
        begun += len(batch)
        return batch

    def slow_writer(done: int, total: int) -> None:
        time.sleep(0.01)
        ahead.append(begun - done)

    store_rows(tmp_path, PIXELS, count, progress=slow_writer)
    assert max(ahead) <= 4 * features.STREAMS


def test_progress_counts_what_is_kept_and_ends_at_all(tmp_path: Path) -> None:
    store = store_rows(tmp_path, PIXELS, as_they_are)
    for number in (1, 3):
        store.shard_path(number).unlink()
    seen: list[tuple[int, int]] = []
    store_rows(tmp_path, PIXELS, as_they_are, progress=lambda *now: seen.append(now))
    assert seen == [(done, 50) for done in (32, 36, 40, 44, 48, 50)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 1024)
    n_rows = 100_000
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(n_rows, 784))
    view = FlippedRows(PickedRows(ArrayRows(pixels), np.arange(n_rows)))

    def corner(batch: np.ndarray) -> np.ndarray:
        return batch[:, :2]

    tiny = keras.Model(inputs := keras.Input((28, 28)), keras.layers.Flatten()(inputs))
    tracemalloc.start()
    try:
        features.feature_key(view, tiny, "float32")
        features.cache_features(
            tmp_path, "key", view, corner, (2,), 28, progress=lambda *_: None, say=print
        )
        assert features.read_features(tmp_path, "key", n_rows, (2,)) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6  # all pixels are 78 MB


def test_a_stop_costs_the_shard_in_work_and_comes_at_once(tmp_path: Path) -> None:
    computed = []

    def slow(batch: np.ndarray) -> np.ndarray:
        if len(computed) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        computed.append(len(batch))
        time.sleep(0.02)
        return batch

    with pytest.raises(signals.StoppedError), signals.listening():
        store_rows(tmp_path, PIXELS, slow)
    assert sum(computed) <= 4 * (6 + 1 + features.STREAMS)
    assert files_in(tmp_path / "key") == [".lock", "shard-00000.bin"]
    with signals.listening():  # which forgets the signal
        store = store_rows(tmp_path, PIXELS, as_they_are)
    np.testing.assert_array_equal(store.take(np.arange(50)), PIXELS)


def in_child(body: Callable[[], None]) -> multiprocessing.Process:
    """Start a process that does this; it must not touch TensorFlow, whose threads do not fork."""
    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


class Children:
    """Processes that each store PIXELS and write down what they did.

    The first stands still once it has computed `hold_at` rows, until there is a file `go`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hold_at = 1
        self.processes: list[multiprocessing.Process] = []

    def start(self) -> multiprocessing.Process:
        number = len(self.processes)

        def note(what: str, text: str) -> None:
            with (self.folder / f"{what}-{number}").open("a") as file:
                file.write(text + "\n")

        def slow(batch: np.ndarray) -> np.ndarray:
            note("computed", str(len(batch)))
            while (
                number == 0
                and self.rows_computed(0) >= self.hold_at
                and not (self.folder / "go").exists()
            ):
                time.sleep(0.002)
            return batch

        def body() -> None:
            try:
                with signals.listening():
                    store_rows(self.folder, PIXELS, slow, say=lambda line: note("said", line))
            except signals.StoppedError as stopped:
                os._exit(stopped.exit_code)

        self.processes.append(in_child(body))
        return self.processes[-1]

    def noted(self, what: str, number: int) -> list[str]:
        path = self.folder / f"{what}-{number}"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def rows_computed(self, number: int) -> int:
        return sum(map(int, self.noted("computed", number)))

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "WAIT_SECONDS", 0.02)
    made = Children(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.join()


def test_the_second_of_two_processes_waits_and_finds_it_done(children: Children) -> None:
    first = children.start()
    children.wait_until(lambda: bool(children.noted("computed", 0)))
    second = children.start()
    children.wait_until(lambda: bool(children.noted("said", 1)))
    (children.folder / "go").touch()
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert (children.rows_computed(0), children.rows_computed(1)) == (50, 0)
    said = children.noted("said", 1)
    assert len(said) == 1
    assert "another process" in said[0]
    assert str(children.folder / "key") in said[0]
    assert children.noted("said", 0) == []


@pytest.mark.parametrize("rows_before_the_kill", [1, 17, 40])
def test_the_second_goes_on_where_a_killed_one_stopped(
    children: Children, rows_before_the_kill: int
) -> None:
    children.hold_at = rows_before_the_kill
    first = children.start()
    children.wait_until(lambda: bool(children.noted("computed", 0)))
    second = children.start()
    children.wait_until(lambda: bool(children.noted("said", 1)))
    children.wait_until(lambda: children.rows_computed(0) >= rows_before_the_kill)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    kept = 50 - children.rows_computed(1)
    ahead = 4 * (features.STREAMS + 1)
    assert kept % 16 == 0
    assert (rows_before_the_kill - ahead) // 16 * 16 <= kept <= children.rows_computed(0)
    assert files_in(children.folder / "key") == [
        ".lock",
        *(f"shard-0000{number}.bin" for number in range(4)),
    ]
    store = features.read_features(children.folder, "key", 50, (784,))
    assert store is not None
    np.testing.assert_array_equal(store.take(np.arange(50)), PIXELS)


def test_a_waiting_process_can_be_stopped(children: Children) -> None:
    children.start()
    children.wait_until(lambda: bool(children.noted("computed", 0)))
    second = children.start()
    children.wait_until(lambda: bool(children.noted("said", 1)))
    os.kill(second.pid, signal.SIGTERM)
    second.join(5)
    assert second.exitcode == 128 + signal.SIGTERM
    assert children.noted("computed", 1) == []


@pytest.mark.parametrize("is_held", [True, False], ids=["waiting", "computing"])
def test_a_stop_that_got_lost_is_heard(tmp_path: Path, is_held: bool) -> None:
    (tmp_path / "key").mkdir()
    with (tmp_path / "key/.lock").open("wb") as other, signals.listening():
        if is_held:
            fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(5, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with contextlib.suppress(signals.StoppedError):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.StoppedError):
            store_rows(tmp_path, PIXELS, as_they_are)
        assert release.is_alive()
        release.cancel()
    assert files_in(tmp_path / "key") == [".lock"]


def _mount_small_disk(folder: Path, n_bytes: int) -> None:
    """Mount a memory disk that this process alone sees; OSError where that is forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    spaces = new_mounts if os.geteuid() == 0 else new_mounts | new_users
    for answer in (
        libc.unshare(spaces),
        libc.mount(None, b"/", None, private | recursive, None),
        libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={n_bytes}".encode()),
    ):
        if answer != 0:
            raise OSError(ctypes.get_errno(), "no mount of our own")
    (folder / "probe").mkdir()  # refused where this user has no number in the new space
    (folder / "probe").rmdir()


def _limit_files(folder: Path, n_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize(
    ("make_small", "n_bytes", "number", "n_stored"),
    [
        # A shard of 16 rows has 25,104 bytes, which a memory disk rounds up to whole pages.
        (_mount_small_disk, 4 * 4096, errno.ENOSPC, 0),
        (_mount_small_disk, 8 * 4096, errno.ENOSPC, 16),
        (_mount_small_disk, 18 * 4096, errno.ENOSPC, 32),
        (_limit_files, 25103, errno.EFBIG, 0),
    ],
)
def test_a_disk_that_fills_up_keeps_what_is_stored_and_is_said(
    tmp_path: Path, make_small: Callable[[Path, int], None], n_bytes: int, number, n_stored: int
) -> None:
    answer_end, child_end = multiprocessing.Pipe()

    def body() -> None:
        try:
            make_small(tmp_path, n_bytes)
        except OSError:
            child_end.send(None)
            return
        try:
            store_rows(tmp_path, PIXELS, as_they_are)
        except OSError as error:
            left = files_in(tmp_path / "key")
            seen: list[tuple[int, int]] = []
            with contextlib.suppress(OSError):
                store_rows(tmp_path, PIXELS, as_they_are, progress=lambda *now: seen.append(now))
            child_end.send((error.errno, error.strerror, error.filename, left, seen[0]))

    process = in_child(body)
    assert answer_end.poll(30)
    answer = answer_end.recv()
    process.join()
    if answer is None:
        pytest.skip("this process may not mount a disk of its own")
    found_number, text, path, left, first_progress = answer
    assert found_number == number
    assert text.startswith(os.strerror(number))
    assert f"{n_stored} of 50 images" in text
    assert "--cache DIR" in text
    assert str(tmp_path / "key") in path
    assert left == [".lock", *(f"shard-0000{shard}.bin" for shard in range(n_stored // 16))]
    assert first_progress == (n_stored, 50)


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1100 + features.FREE_BYTES})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert features.fits_on_disk(tmp_path, "key", 999)
    assert not features.fits_on_disk(tmp_path, "key", 1000)
    (tmp_path / "key").mkdir()
    (tmp_path / "key/shard-00000.bin").write_bytes(bytes(500))
    assert features.fits_on_disk(tmp_path, "key", 1499)
    assert features.bytes_there(tmp_path) == features.bytes_there(tmp_path / "key") == 500


def test_a_store_that_is_not_whole_is_not_hashed(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "shard-00000.bin").write_bytes(bytes(100))
    monkeypatch.setattr(features, "_corrupt_shards", lambda store: 1 / 0)
    assert features.read_features(tmp_path, "key", 51, (1,)) is None
    with pytest.raises(ZeroDivisionError):
        features.read_features(tmp_path, "key", 50, (1,))
