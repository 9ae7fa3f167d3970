"""How the workers and replicas of a cluster share each batch.

Worker w of W takes rows w, w+W, ... of a batch, and its replicas share those in the same way. Where
each worker keeps a part of the cached features, it takes the rows of its part; if that leaves a
replica without a row, the workers send each other the batch. Of a batch with fewer rows than
replicas each replica takes all, and counts 1 / replicas of them. Every sum over a batch adds up
those of the replicas.

Shape letters: B batch, N rows.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from fmnist_tf.data.batches import RowSource, StackedRows, make_batches
from fmnist_tf.system import signals
from fmnist_tf.training.cluster import Cluster
from fmnist_tf.training.feature_store import FEATURE_DTYPE, FeatureStore

ABOUT = tf.TensorSpec((4,), tf.int32)
"""What `describe_batch` returns."""


def describe_batch(seed: int, step: int, size: int, *, stops: bool = False) -> tf.Tensor:
    """Return what all replicas need to know of a batch.

    Args:
        seed: of the run.
        step: number of the batch in the run, from 0.
        size: rows of the whole batch.
        stops: whether a signal asks this worker to stop.
    """
    return tf.constant([seed, step, size, stops], tf.int32)


@dataclass(frozen=True)
class Sharing:
    """What this worker, and each of its replicas, takes of every batch."""

    cluster: Cluster

    def read(
        self, source: RowSource, labels: np.ndarray, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
        """Yield the size of each batch, and this worker's rows and labels of it."""
        store, index, n_workers = _find_part(source), self.cluster.index, self.cluster.n_workers

        def pick(batch: tf.Tensor) -> tf.Tensor:
            if store is not None:
                return tf.boolean_mask(batch, store.keepers(batch) == index)
            is_small = tf.size(batch) < self.cluster.n_replicas
            return tf.cond(is_small, lambda: batch, lambda: batch[index::n_workers])

        batches = make_batches(source, labels, rows, batch_size, pick)
        for first, (x, y) in zip(range(0, len(rows), batch_size), batches, strict=True):
            batch = rows[first : first + batch_size]
            if store is not None:
                keepers = store.keepers(batch)
                if np.bincount(keepers, minlength=n_workers).min() < self.cluster.n_local:
                    whole, y = self._gather(x, keepers == index), labels[batch]
                    is_small = len(batch) < self.cluster.n_replicas
                    x, y = (x if is_small else x[index::n_workers] for x in (whole, y))
            yield len(batch), x, y

    def _gather(self, x: tf.Tensor, is_own: np.ndarray) -> np.ndarray:
        """Return all rows of a batch, bit by bit; every worker gives those that it keeps."""
        words = np.zeros((len(is_own), *x.shape[1:]), np.int32)
        words[is_own] = x.numpy().view(np.uint16)
        return self.cluster.total(words).astype(np.uint16).view(FEATURE_DTYPE)

    def is_kept(self, source: RowSource, rows: np.ndarray) -> np.ndarray:
        """Return which of these rows this worker can read alone, (B,) bool."""
        store = _find_part(source)
        return (
            np.ones(len(rows), bool) if store is None else store.keepers(rows) == self.cluster.index
        )

    def add_parts(self, source: RowSource, values: np.ndarray) -> np.ndarray:
        """Return all workers' float64 values of rows; each gives 0 where not `is_kept`."""
        return values if _find_part(source) is None else self.cluster.total(values)

    def n_readers(self, size: int) -> int:
        """Return how many workers `read` each row of a batch of this size."""
        return self.cluster.n_workers if size < self.cluster.n_replicas else 1

    def take_own(
        self, x: tf.Tensor, y: tf.Tensor, about: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, Any, tf.Tensor]:
        """Return this replica's rows and labels, how much each row counts, and a seed, (2,) int32.

        To be called in a replica.
        """
        n_replicas, n_local = self.cluster.n_replicas, self.cluster.n_local
        if n_replicas == 1:
            return x, y, 1.0, about[:2]
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        is_small = about[2] < n_replicas
        first, step = tf.where(is_small, 0, replica % n_local), tf.where(is_small, 1, n_local)
        # The shape of a slice with a step that is a tensor is not known.
        own_x, own_y = (tf.ensure_shape(part[first::step], part.shape) for part in (x, y))
        seed = tf.random.experimental.stateless_fold_in(about[:2], replica)
        return own_x, own_y, tf.where(is_small, 1 / n_replicas, 1.0), seed

    def take_signal(self) -> signals.StoppedError | None:
        """Return the signal that asks this worker to stop, for `stop_together`; None if alone."""
        return signals.take() if self.cluster.n_workers > 1 else None


def _find_part(source: RowSource) -> FeatureStore | None:
    """Return the store that says which worker keeps which row; None if each can read all."""
    match source:
        case StackedRows(sources=(FeatureStore(part=(_, n)) as store, *_)) if n > 1:
            return store
    return None


def stop_together(own: signals.StoppedError | None, n_stopped: float) -> None:
    """Stop if a signal asked any worker to, even if not this one, whose signal is `own`.

    Raises:
        StoppedError: it did.
    """
    if n_stopped:
        raise own or signals.StoppedError(signal.SIGTERM)


def add_up(
    losses: tf.Tensor, labels: tf.Tensor, logits: tf.Tensor, row_weight: Any, stops: Any
) -> tf.Tensor:
    """Return one replica's sums, (3,) float64: losses, correct predictions, replicas to stop.

    Args:
        losses: (B,) of the replica's rows.
        labels: (B,) int64.
        logits: (B, K).
        row_weight: how much each row counts.
        stops: 1 if this replica is to stop, else 0.
    """
    n_correct = tf.math.count_nonzero(tf.argmax(logits, axis=-1) == labels)
    counted = (tf.cast(x, tf.float64) for x in (tf.reduce_sum(losses), n_correct))
    row_weight = tf.cast(row_weight, tf.float64)
    return tf.stack([*(x * row_weight for x in counted), tf.cast(stops, tf.float64)])
