"""The frozen prefix's output: computed once, stored on disk, found again by its content.

In: a source of pixels, a frozen prefix, a folder. Out: a source of feature rows, mapped from disk.
Two runs that would compute the same features share them, also at the same time; any change of
pixels, prefix, weights, precision or processor gives another key. This module must not know heads,
labels or runs.

Layout of one entry: `<key>/shard-00000.bin`, `<key>/shard-00001.bin`, ... and an empty `.lock`. A
shard is `rows_per_shard` rows, the last one what is left, of little-endian bfloat16 and then its
checksum: 16 bytes, the XXH3-128 of the entry's name, the shard's number and its rows, which tells
damage, not malice, at the speed of memory. A shard counts if its checksum is right, whatever else
lies in the folder; so a killed computation goes on at the next shard, and a damaged or foreign
shard is computed again.

Shape letters: N rows, B batch, H W C feature map.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
import xxhash

from fmnist_tf.data.batches import RowSource
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.preprocessing import SOURCE_SIDE
from fmnist_tf.system import signals
from fmnist_tf.system.cpu import read_cpu_features, usable_cpus
from fmnist_tf.system.files import write_atomically
from fmnist_tf.system.memory import release_memory

# Raise it with every change of the layout, of the batches, or of what folding or averaging
# computes.
FORMAT = 5
# Batches in work at once: one computes while another starts, ends or is copied.
STREAMS = 2
# A kill costs the shard in work, so a shard is bounded in bytes and in rows.
SHARD_BYTES = 64 << 20
SHARD_ROWS = 1024
READ_BYTES = 1 << 20
WAIT_SECONDS = 0.2
# The disk also has to take the run directory, a model of up to a few hundred MB in it, and whatever
# else the machine does meanwhile.
FREE_SPACE_MARGIN, FREE_BYTES = 1.1, 10**9
FEATURE_DTYPE = np.dtype(ml_dtypes.bfloat16)

# Names in /proc/cpuinfo that begin so decide which kernels compute.
_VECTOR_UNITS = ("amx", "asimd", "avx", "bf16", "fma", "sve")
_KERNEL_SETTINGS = (
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TF_ENABLE_ONEDNN_OPTS",
)

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FeatureStore:
    """Features of N rows on disk, 16 bits a number: bfloat16 has float32's range.

    They stay 16 bits wide until the device has them.

    Attributes:
        path: the entry's folder.
        n_rows: N.
        row_shape: of one row's features.
    """

    path: Path
    n_rows: int
    row_shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of `take`'s result."""
        return FEATURE_DTYPE

    @cached_property
    def shard_bounds(self) -> list[tuple[int, int]]:
        """The first row and the end of each shard."""
        step = rows_per_shard(self.row_shape)
        return [(start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)]

    def shard_path(self, number: int) -> Path:
        """Return the path of one shard."""
        return self.path / f"shard-{number:05d}.bin"

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        # NumPy copies plain integers faster than bfloat16.
        return [
            np.memmap(
                self.shard_path(number), np.uint16, "r", shape=(stop - start, *self.row_shape)
            ).view(np.ndarray)
            for number, (start, stop) in enumerate(self.shard_bounds)
        ]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of these rows, (B, *row_shape) bfloat16."""
        step = rows_per_shard(self.row_shape)
        taken = np.empty((len(rows), *self.row_shape), np.uint16)
        for place, row in enumerate(rows.tolist()):
            number, row_within = divmod(row, step)
            taken[place] = self._shards[number][row_within]
        return taken.view(FEATURE_DTYPE)


def rows_per_shard(row_shape: tuple[int, ...]) -> int:
    """Return the rows of a shard: a power of two, which batches divide, within both bounds."""
    return _power_of_two_below(min(SHARD_ROWS, SHARD_BYTES // stored_bytes(1, row_shape)))


def rows_per_batch(input_side: int) -> int:
    """Return the rows that one stream computes at once, a power of two.

    That many images of `input_side` have the pixels of 32 at 224, whose activations two streams
    can hold; beyond 128 small images gain nothing.
    """
    return _power_of_two_below(min(128, 32 * 224**2 // input_side**2))


def _power_of_two_below(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


def build_feature_function(
    prefix: keras.Model, precision: str, *, pools: bool = False
) -> Callable[[Any], tf.Tensor]:
    """Return the folded prefix as one graph: (B, 28*28) uint8 -> (B, *features) bfloat16.

    It rounds as the store does, so that features are the same numbers stored or not.

    Args:
        prefix: (B, 28, 28) uint8 -> features.
        precision: of its arithmetic.
        pools: whether the mean of each feature map is wanted, as `average_maps` gives it.
    """
    folded = fold_model(prefix, precision, frozen=True)

    @tf.function(
        input_signature=[tf.TensorSpec((None, SOURCE_SIDE * SOURCE_SIDE), tf.uint8)],
        autograph=False,
    )
    def compute(pixels: tf.Tensor) -> tf.Tensor:
        n_rows = tf.shape(pixels)[0]
        # oneDNN has other kernels for a single image, which round otherwise.
        filled = tf.pad(pixels, [[0, tf.maximum(2 - n_rows, 0)], [0, 0]])
        images = tf.reshape(filled, (-1, SOURCE_SIDE, SOURCE_SIDE))
        return tf.cast(folded(images, training=False)[:n_rows], tf.bfloat16)

    # Outside of the graph, as of stored maps: fused into it, it might round otherwise.
    return (lambda pixels: average_maps(compute(pixels))) if pools else compute


def average_maps(maps: Any) -> tf.Tensor:
    """Return the mean over H and W of maps as they are stored, (B, H, W, C) -> (B, C) bfloat16."""
    return tf.cast(tf.reduce_mean(tf.cast(maps, tf.float32), axis=(1, 2)), tf.bfloat16)


def feature_key(pixels: RowSource, prefix: keras.Model, precision: str) -> str:
    """Return the SHA-256 that names the features of these pixels under this prefix.

    It covers the pixels' bytes, the prefix's layers with their settings and connections, its
    weights' bytes, the precision, this module's format, the versions of Keras and TensorFlow, and
    the processor with the settings that choose its kernels: all that is known to change a bit of a
    feature.
    """
    digest = hashlib.sha256()
    head = {
        "format": FORMAT,
        "precision": precision,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "processor": _describe_processor(),
        "rows": [pixels.n_rows, *pixels.row_shape],
        "graph": _describe_graph(prefix.get_config()),
    }
    digest.update(json.dumps(head, sort_keys=True, default=str).encode())
    for weight in prefix.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    for start in range(0, pixels.n_rows, SHARD_ROWS):
        rows = np.arange(start, min(start + SHARD_ROWS, pixels.n_rows))
        digest.update(np.ascontiguousarray(pixels.take(rows)).data)
    return digest.hexdigest()


def _describe_graph(config: dict[str, Any]) -> list[Any]:
    """Return each layer's class, settings and inputs, and what is the output of all.

    A layer is called by its place: a process counts up the names that it gives.
    """
    place_of = {entry["config"]["name"]: place for place, entry in enumerate(config["layers"])}

    def without_names(value: Any) -> Any:
        match value:
            case {"keras_history": tensor}:
                return without_names(tensor)
            case dict():
                return {key: without_names(part) for key, part in value.items()}
            case [str(name), int(call), int(output)]:
                return place_of.get(name, name), call, output
            case list() | tuple():
                return [without_names(part) for part in value]
        return value

    described: list[Any] = [without_names(config.get("output_layers"))]
    for entry in config["layers"]:
        settings = entry["config"]
        if "layers" in settings:
            settings = _describe_graph(settings)
        else:
            settings = {k: v for k, v in settings.items() if k not in ("name", "trainable")}
        inputs = without_names(entry.get("inbound_nodes"))
        described.append([entry["class_name"], settings, inputs])
    return described


def _describe_processor() -> list[Any]:
    """Return what decides by which kernels TensorFlow computes."""
    settings = [os.environ.get(name) for name in _KERNEL_SETTINGS]
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
        return [details.get("device_name"), is_tf32, *settings]
    units = sorted(name for name in read_cpu_features() if name.startswith(_VECTOR_UNITS))
    n_threads = tf.config.threading.get_intra_op_parallelism_threads() or len(usable_cpus())
    return [platform.machine(), units, n_threads, *settings]


def stored_bytes(n_rows: int, row_shape: tuple[int, ...]) -> int:
    """Return the size of N rows on disk; checksums, 16 bytes a shard, are not worth counting."""
    return n_rows * math.prod(row_shape) * FEATURE_DTYPE.itemsize


def fits_on_disk(folder: Path, key: str, n_bytes: int) -> bool:
    """Return whether `folder`'s disk has room for an entry of `n_bytes`, with a margin.

    What is stored of the entry already needs no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = (n_bytes - bytes_there(folder / key)) * FREE_SPACE_MARGIN + FREE_BYTES
    return shutil.disk_usage(folder).free > needed


def bytes_there(folder: Path) -> int:
    """Return the size of all shards in one entry's folder, or in that of all entries."""
    return sum(path.stat().st_size for path in folder.rglob("shard-*.bin"))


def read_features(
    folder: Path, key: str, n_rows: int, row_shape: tuple[int, ...]
) -> FeatureStore | None:
    """Return the stored entry, or None unless every shard is there and unharmed.

    Every byte is read and hashed, `STREAMS` shards at a time, once there are enough of them.
    """
    store = FeatureStore(folder / key, n_rows, row_shape)
    is_whole = bytes_there(store.path) >= stored_bytes(n_rows, row_shape)
    return store if is_whole and not _corrupt_shards(store) else None


def cache_features(
    folder: Path,
    key: str,
    pixels: RowSource,
    compute: Callable[[Any], Any],
    row_shape: tuple[int, ...],
    input_side: int,
    *,
    progress: Progress,
    say: Callable[[str], None],
) -> FeatureStore:
    """Compute and store the features of `pixels`; shards that are there already are kept.

    Two processes that want the same entry do not compute it twice: the second waits, and goes on
    where the first one stopped, finished or not. Memory holds `STREAMS` + 1 batches, however many
    rows there are. Whatever stops the work, an interruption or a full disk, costs the shard in work
    and leaves no other trace.

    Args:
        folder: of all entries.
        key: the entry's name, which `feature_key` gives or which is made of that.
        pixels: (N, 784) uint8; or what else `compute` takes.
        compute: as `build_feature_function` returned it, or `average_maps`; called from several
            threads.
        row_shape: of one row's features.
        input_side: of the images that the prefix computes with; decides the batch.
        progress: called with the rows that are stored or computed, and N.
        say: told when another process is waited for.

    Raises:
        OSError: the disk does not take the features; the message says what is stored.
        StoppedError: somebody stopped the program.
    """
    store = FeatureStore(folder / key, pixels.n_rows, row_shape)
    n_rows, step = store.n_rows, min(rows_per_batch(input_side), rows_per_shard(row_shape))

    def compute_rows(rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(compute(pixels.take(rows)), FEATURE_DTYPE)

    def compute_first(rows: np.ndarray) -> np.ndarray:
        features = compute_rows(rows)
        release_memory()
        return features

    with _locked(store.path, say):
        # A killed process left it; nobody else writes here now.
        for leftover in store.path.glob(".shard-*"):
            leftover.unlink(missing_ok=True)
        missing = [(number, *store.shard_bounds[number]) for number in _corrupt_shards(store)]
        batches = (
            np.arange(first, min(first + step, stop))
            for _, start, stop in missing
            for first in range(start, stop, step)
        )
        done = stored = n_rows - sum(stop - start for _, start, stop in missing)
        progress(done, n_rows)
        # TensorFlow optimizes a graph at its first call, and copies its constants several times for
        # that; two threads that are first at once would both do so (runs/LOG.md).
        first_one = _in_streams(compute_first, islice(batches, 1))
        with closing(_in_streams(compute_rows, batches)) as others:
            computed = chain(first_one, others)
            for number, start, stop in missing:
                path, checksum = store.shard_path(number), _begin_checksum(store, number)
                try:
                    with write_atomically(path) as file:
                        for features in islice(computed, math.ceil((stop - start) / step)):
                            content = features.view(np.uint8).data
                            checksum.update(content)
                            file.write(content)
                            done += len(features)
                            progress(done, n_rows)
                        file.write(checksum.digest())
                except OSError as error:
                    raise OSError(
                        error.errno,
                        f"{error.strerror or error}; the frozen part's output for {stored:,} of "
                        f"{n_rows:,} images is stored and will be found again. --cache DIR names "
                        "another disk",
                        str(error.filename or path),
                    ) from error
                stored += stop - start
    return store


def _in_streams(
    work: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield `work` of each item in the items' order, `STREAMS` of them in work at once.

    While the receiver is busy with one result, no more than `STREAMS` others come to be. Closing
    waits for those in work and begins no other.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(STREAMS) as threads:
        running = deque(threads.submit(work, item) for item in islice(waiting, STREAMS))
        while running:
            result = running.popleft().result()
            running.extend(threads.submit(work, item) for item in islice(waiting, 1))
            signals.check()
            yield result


@contextmanager
def _locked(entry: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the entry for this process alone; the kernel lets go when the process ends, however.

    The lock file stays for ever: were it deleted, two processes could each lock their own.
    """
    entry.mkdir(parents=True, exist_ok=True)
    with (entry / ".lock").open("ab") as file:
        is_said = False
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if not is_said:
                say(f"frozen part: another process computes its output; waiting for {entry}")
                is_said = True
            time.sleep(WAIT_SECONDS)
            signals.check()
        yield


def _corrupt_shards(store: FeatureStore) -> list[int]:
    """Return the numbers of the shards that are not there or not as they were written."""
    numbers = range(len(store.shard_bounds))
    with closing(_in_streams(lambda number: _is_valid(store, number), numbers)) as answers:
        return [number for number, is_sound in zip(numbers, answers, strict=True) if not is_sound]


def _is_valid(store: FeatureStore, number: int) -> bool:
    start, stop = store.shard_bounds[number]
    left = stored_bytes(stop - start, store.row_shape)
    checksum, buffer = _begin_checksum(store, number), memoryview(bytearray(READ_BYTES))
    try:
        with store.shard_path(number).open("rb", buffering=0) as file:
            # The size first: it tells a torn shard without reading it.
            if os.fstat(file.fileno()).st_size != left + checksum.digest_size:
                return False
            while left:
                n_read = file.readinto(buffer[:left])
                if not n_read:
                    return False
                checksum.update(buffer[:n_read])
                left -= n_read
            return file.read() == checksum.digest()
    except OSError:
        return False


def _begin_checksum(store: FeatureStore, number: int) -> xxhash.xxh3_128:
    """Return the hash that the rows of this shard are to be added to."""
    return xxhash.xxh3_128(f"{store.path.name} {number} ".encode())
