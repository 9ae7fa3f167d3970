"""The frozen prefix's output: computed once, stored on disk, found again by its content.

In: pixels, a frozen prefix, a folder. Out: a source of feature rows, mapped from disk. Two runs
that would compute the same features share them; any change of pixels, prefix, weights or precision
gives another key. This module must not know heads, labels or runs.

Layout of one entry: `<key>/shard-00000.bin`, ... raw little-endian bfloat16, `SHARD_ROWS` rows
each, and `<key>/manifest.json` with the SHA-256 of the shards so far. A shard counts once the
manifest names it and its bytes agree, so a killed computation goes on at the next shard, and a
damaged shard is computed again.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from fmnist_tf.files import file_digest, write_atomically
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.preprocessing import SOURCE_SIDE

FORMAT = 1
SHARD_ROWS = 1024
PREFIX_BATCH = 32
# The disk also has to take the run directory and whatever else the machine does meanwhile.
FREE_SPACE_MARGIN = 1.1
FEATURE_DTYPE = np.dtype(ml_dtypes.bfloat16)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureStore:
    """Features of N rows on disk, 16 bits a number: bfloat16 has float32's range.

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
    def _shards(self) -> list[np.ndarray]:
        return [
            np.memmap(
                shard_path(self.path, number),
                np.uint16,
                "r",
                shape=(stop - start, *self.row_shape),
            )
            for number, (start, stop) in enumerate(shard_bounds(self.n_rows))
        ]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of these rows, (B, *row_shape) bfloat16."""
        taken = np.empty((len(rows), *self.row_shape), np.uint16)
        shard_of = rows // SHARD_ROWS
        for number in np.unique(shard_of):
            here = np.flatnonzero(shard_of == number)
            taken[here] = self._shards[number][rows[here] - number * SHARD_ROWS]
        return taken.view(FEATURE_DTYPE)


def shard_bounds(n_rows: int) -> list[tuple[int, int]]:
    """Return the first row and the end of each shard."""
    return [(start, min(start + SHARD_ROWS, n_rows)) for start in range(0, n_rows, SHARD_ROWS)]


def shard_path(entry: Path, number: int) -> Path:
    """Return the path of one shard."""
    return entry / f"shard-{number:05d}.bin"


def build_prefix_function(prefix: keras.Model, precision: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the folded prefix as one graph: (B, 28*28) uint8 -> (B, *features) bfloat16."""
    folded = fold_model(prefix, precision, still=True)

    @tf.function(
        input_signature=[tf.TensorSpec((None, SOURCE_SIDE * SOURCE_SIDE), tf.uint8)],
        autograph=False,
    )
    def compute(pixels: tf.Tensor) -> tf.Tensor:
        images = tf.reshape(pixels, (-1, SOURCE_SIDE, SOURCE_SIDE))
        return tf.cast(folded(images, training=False), FEATURE_DTYPE)

    return compute


def feature_key(pixels: np.ndarray, prefix: keras.Model, precision: str) -> str:
    """Return the SHA-256 that names the features of these pixels under this prefix.

    It covers the pixels' bytes, the prefix's layers in order with their settings, its weights'
    bytes, the precision, this module's format and the versions of Keras and TensorFlow.
    """
    digest = hashlib.sha256()
    head = {
        "format": FORMAT,
        "precision": precision,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "rows": list(pixels.shape),
        "graph": _describe_graph(prefix),
    }
    digest.update(json.dumps(head, sort_keys=True, default=str).encode())
    for weight in prefix.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    for start in range(0, len(pixels), 1 << 16):
        digest.update(np.ascontiguousarray(pixels[start : start + (1 << 16)]).data)
    return digest.hexdigest()


def _describe_graph(model: keras.Model) -> list[Any]:
    """Return the layers' classes and settings; names, which a process counts up, are left out."""
    described: list[Any] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            described.append(_describe_graph(layer))
        else:
            config = layer.get_config()
            settings = {key: config[key] for key in config if key not in ("name", "trainable")}
            described.append([type(layer).__name__, settings])
    return described


def stored_bytes(n_rows: int, row_shape: tuple[int, ...]) -> int:
    """Return the size of an entry on disk."""
    return n_rows * int(np.prod(row_shape)) * FEATURE_DTYPE.itemsize


def fits_on_disk(folder: Path, key: str, n_bytes: int) -> bool:
    """Return whether `folder`'s disk has room for an entry of `n_bytes`, with a margin.

    What is stored of the entry already needs no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = sum(path.stat().st_size for path in (folder / key).glob("shard-*.bin"))
    return shutil.disk_usage(folder).free > (n_bytes - stored) * FREE_SPACE_MARGIN


def read_features(
    folder: Path, key: str, n_rows: int, row_shape: tuple[int, ...]
) -> FeatureStore | None:
    """Return the stored entry, or None unless every shard is there and unharmed."""
    store = FeatureStore(folder / key, n_rows, row_shape)
    return store if len(_sound_shards(store)) == len(shard_bounds(n_rows)) else None


def run_prefix(
    folder: Path,
    key: str,
    pixels: np.ndarray,
    compute: Callable[[tf.Tensor], tf.Tensor],
    row_shape: tuple[int, ...],
    progress: Progress,
) -> FeatureStore:
    """Compute and store the features of `pixels`; shards that are there already are kept.

    Args:
        folder: of all entries.
        key: as `feature_key` returned it.
        pixels: (N, 784) uint8.
        compute: as `build_prefix_function` returned it.
        row_shape: of one row's features.
        progress: called with rows done and N.

    Raises:
        OSError: the disk does not take the features; what is stored already stays.
    """
    entry = folder / key
    entry.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(entry, len(pixels), row_shape)
    sound = _sound_shards(store)
    for number, (start, stop) in enumerate(shard_bounds(len(pixels))):
        path = shard_path(entry, number)
        if path.name in sound:
            continue
        shard = np.empty((stop - start, *row_shape), FEATURE_DTYPE)
        for first in range(start, stop, PREFIX_BATCH):
            batch = np.ascontiguousarray(pixels[first : min(first + PREFIX_BATCH, stop)])
            shard[first - start : first - start + len(batch)] = compute(batch).numpy()
            progress(first + len(batch), len(pixels))
        content = shard.view(np.uint8).data
        with write_atomically(path) as file:
            file.write(content)
        sound[path.name] = hashlib.sha256(content).hexdigest()
        with write_atomically(entry / "manifest.json") as file:
            file.write(
                json.dumps({"dtype": FEATURE_DTYPE.name, "sha256": sound}, indent=1).encode()
            )
    return store


def _sound_shards(store: FeatureStore) -> dict[str, str]:
    """Return the SHA-256 of each shard whose bytes are those that the manifest names."""
    try:
        recorded = json.loads((store.path / "manifest.json").read_text())["sha256"]
        named = {str(name): str(digest) for name, digest in recorded.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    sound = {}
    for number, (start, stop) in enumerate(shard_bounds(store.n_rows)):
        path = shard_path(store.path, number)
        n_bytes = stored_bytes(stop - start, store.row_shape)
        # The size first: it tells a foreign shard without reading it.
        if path.name in named and path.is_file() and path.stat().st_size == n_bytes:
            if file_digest(path) == named[path.name]:
                sound[path.name] = named[path.name]
    return sound
