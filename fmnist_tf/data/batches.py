"""Rows -> tf.data batches, in an order that is a pure function of (seed, epoch).

Row sources are read a batch at a time and nest, without a copy of what they take the rows of.

Shape letters: N rows, B batch, V views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from fmnist_tf.data.images import MirroredRows, PixelRows, take_rows

# Keeps the random numbers of views apart from those of orders, which come from (seed, epoch).
_VIEW_STREAM = (0, 0x76696577)


class RowSource(Protocol):
    """Rows that are read by number, 0..N-1."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: equal ones mean equal rows."""

    @property
    def n_rows(self) -> int:
        """N."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, (B, *row_shape)."""


class ArrayRows:
    """The rows of an array (N, ...) in memory or mapped from disk, or of several."""

    def __init__(self, array: PixelRows, known_digest: str | None = None) -> None:
        self.array, self._known_digest = array, known_digest
        none = array[:0]
        self.n_rows, self.row_shape, self.dtype = len(array), none.shape[1:], none.dtype

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the array's bytes, unless the caller knew another."""
        return self._known_digest or _sha256(np.asarray(self.array[:]).tobytes())

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of these rows."""
        return np.asarray(self.array[rows])


def flip_rows(source: ArrayRows) -> ArrayRows:
    """Return the mirror images of a source with rows of (784,) uint8."""
    return ArrayRows(MirroredRows(source.array), _sha256(b"flipped " + source.digest.encode()))


class StackedRows:
    """V views of the same N images, one after the other: row v*N + r is row r of view v.

    All have the same row shape and dtype.
    """

    def __init__(self, sources: tuple[RowSource, ...]) -> None:
        first = sources[0]
        self.sources, self.row_shape, self.dtype = sources, first.row_shape, first.dtype
        self.n_rows = len(sources) * first.n_rows

    @cached_property
    def digest(self) -> str:
        """Of the views' digests."""
        return _sha256(" ".join(source.digest for source in self.sources).encode())

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, (B, *row_shape), each from its view."""
        starts = np.arange(len(self.sources)) * self.sources[0].n_rows
        return take_rows([source.take for source in self.sources], starts, rows)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def order_rows(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of `rows` for this epoch, a pure function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def pick_views(rows: np.ndarray, n_rows: int, n_views: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers in `StackedRows` of these rows' views in this epoch.

    Each row starts with a random view, which depends on the seed and the row alone; then its views
    alternate, so that V epochs (from 1) show each of them once. With a flip as second view this is
    alternating flip (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6).
    """
    first = np.random.default_rng([seed, *_VIEW_STREAM]).integers(n_views, size=n_rows)
    return (first[rows] + epoch) % n_views * n_rows + rows


def make_batches(
    source: RowSource,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    pick: Callable[[tf.Tensor], tf.Tensor] = lambda batch: batch,
) -> tf.data.Dataset:
    """Return batches of (x, y) over `rows` in the given order; the last may be smaller.

    Of each batch only what `pick` returns is read, (B,) row numbers -> some of them.

    The dataset yields (B, *row_shape) and (B,) of the labels (N,) int64, has a known cardinality
    and is prefetched.
    """
    dtype = tf.as_dtype(source.dtype)

    def read(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices = pick(batch)
        x = tf.numpy_function(source.take, [indices], dtype, stateful=False)
        return tf.ensure_shape(x, (None, *source.row_shape)), tf.gather(labels, indices)

    # Autotuning has a thread that TensorFlow 2.21 cannot wake: an iterator that has ended waits for
    # it, up to as long as it has lived (runs/LOG.md).
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices(np.asarray(rows, np.int64))
        .batch(batch_size)
        .map(read, num_parallel_calls=2)
        .prefetch(2)
        .with_options(options)
    )
