"""Rows -> tf.data batches, in an order that is a pure function of (seed, epoch).

In: a source of rows (raw pixels, or a network's stored features) and labels. Out: a `tf.data`
dataset of known cardinality. Nothing is hidden in an iterator: epoch `e` of seed `s` can be made
again anywhere. This module must not know what the rows mean.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf


class RowSource(Protocol):
    """Anything that yields rows by number."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, (B, *row_shape)."""


@dataclass(frozen=True)
class ArrayRows:
    """The rows of an array in memory or mapped from disk."""

    array: np.ndarray

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return self.array.dtype

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of these rows."""
        return np.asarray(self.array[rows])


def order_rows(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return `rows` in the order of this epoch: a permutation that (seed, epoch) alone decide."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def make_batches(
    source: RowSource, labels: np.ndarray, rows: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Return batches of (x, y) over `rows` in the given order; the last may be smaller.

    Args:
        source: where x comes from.
        labels: (N,) int64, indexed by row number.
        rows: row numbers, each used once.
        batch_size: B.

    Returns:
        A dataset of (B, *row_shape) and (B,) int64, its cardinality known, read ahead of use.
    """
    dtype = tf.as_dtype(source.dtype)

    def read(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.numpy_function(source.take, [indices], dtype, stateful=False)
        return tf.ensure_shape(x, (None, *source.row_shape)), tf.gather(labels, indices)

    return (
        tf.data.Dataset.from_tensor_slices(np.asarray(rows, np.int64))
        .batch(batch_size)
        .map(read)
        .prefetch(2)
    )
