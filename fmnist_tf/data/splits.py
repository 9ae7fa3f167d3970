"""Which rows train and which validate: seeded, stratified index sets.

In: labels, a fraction, a seed. Out: sorted row indices. Everything here is pure; this module must
not know files or pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fmnist_tf.errors import UsageError

# Each choice draws from its own stream, so that one seed serves them all without correlation.
_LIMIT_STREAM, _HOLDOUT_STREAM = 0, 1


@dataclass(frozen=True)
class Splits:
    """Two disjoint sets of rows of one train file.

    Attributes:
        train: (n_train,) int64, ascending.
        val: (n_val,) int64, ascending, disjoint from `train`.
    """

    train: np.ndarray
    val: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of both index sets, 64 hexadecimal digits; equal digests mean equal splits."""
        digest = hashlib.sha256(len(self.train).to_bytes(8, "little"))
        for rows in (self.train, self.val):
            digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()


def plan_splits(
    labels: np.ndarray, *, val_fraction: float, seed: int, limit: int | None = None
) -> Splits:
    """Divide the rows of a train file into train and val, each class in proportion.

    A class with a single row trains; of the rest, each class's count in val is within one of its
    exact share.

    Args:
        labels: (N,) integers.
        val_fraction: share of the chosen rows that validates, in (0, 1).
        seed: non-negative; the same seed gives the same rows.
        limit: choose at most this many rows, stratified, before dividing them; None takes all. A
            limit that leaves out fewer rows than there are classes leaves out one per class.

    Raises:
        UsageError: the fraction or the limit cannot give every class its rows.
    """
    labels = np.asarray(labels)
    chosen = np.arange(len(labels), dtype=np.int64)
    if limit is not None and limit < len(labels):
        chosen = _limited(labels, limit, seed)
    train, val = plan_holdout(
        labels[chosen],
        fraction=val_fraction,
        seed=seed,
        part="val",
        hint="change --val-fraction, or use more rows (a higher or no --limit)",
    )
    return Splits(chosen[train], chosen[val])


def plan_holdout(
    labels: np.ndarray, *, fraction: float, seed: int, part: str, hint: str
) -> tuple[np.ndarray, np.ndarray]:
    """Set a stratified `fraction` of the rows aside.

    Args:
        labels: (N,) integers.
        fraction: in (0, 1); `round(fraction * N)` rows are set aside.
        seed: non-negative.
        part: what the rows set aside are called in messages.
        hint: what a person can do when it is impossible.

    Returns:
        The rows that remain and the rows set aside, both ascending int64.

    Raises:
        UsageError: the fraction is outside (0, 1), or leaves a class of two rows or more without
            a place on either side.
    """
    if not 0 < fraction < 1:
        raise UsageError(
            f"{part} split: a fraction of {fraction:g}; expected one between 0 and 1. hint: {hint}"
        )
    counts = np.unique_counts(labels).counts
    n_rows, n_held, n_divisible = len(labels), round(fraction * len(labels)), (counts > 1).sum()
    n_single = len(counts) - n_divisible
    if n_divisible == 0:
        raise UsageError(
            f"{part} split: no class has more than one row; expected at least two rows of a class, "
            f"one for {part}. hint: {hint}"
        )
    if not n_divisible <= n_held <= n_rows - n_single - n_divisible:
        least, most = n_divisible / n_rows, 1 - (n_single + n_divisible) / n_rows
        raise UsageError(
            f"{part} split: {fraction:g} of {n_rows} rows is {n_held} rows; expected a fraction "
            f"between {least:.4g} and {most:.4g}, so that {n_divisible} classes can have a row on "
            f"both sides. hint: {hint}"
        )
    kept, held = _divide(labels, n_held, seed, _HOLDOUT_STREAM)
    _require_every_class(labels, kept, f"{part} split: {fraction:g} of {n_rows} rows", hint)
    return kept, held


def _limited(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return at most `limit` stratified rows in which every class is present."""
    counts = np.unique_counts(labels).counts
    n_divisible = int((counts > 1).sum())
    hint = "use a higher --limit, or none"
    if limit < len(counts):
        raise UsageError(
            f"--limit {limit}: fewer rows than the {len(counts)} classes of the file; expected at "
            f"least one row per class to train and one to validate. hint: {hint}"
        )
    # The stratified division needs a row of each class on both sides.
    n_left_out = max(len(labels) - limit, n_divisible)
    kept, _ = _divide(labels, n_left_out, seed, _LIMIT_STREAM)
    _require_every_class(labels, kept, f"--limit {limit}", hint)
    return kept


def _divide(
    labels: np.ndarray, n_second: int, seed: int, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide all rows into two stratified sets, the second of `n_second` rows, both ascending.

    Classes with a single row, which cannot be stratified, go to the first set.
    """
    from sklearn.model_selection import train_test_split

    _, class_index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    single = counts[class_index] == 1
    divisible = np.flatnonzero(~single)
    bits = np.random.PCG64(np.random.SeedSequence([seed, stream]))
    first, second = train_test_split(
        divisible,
        test_size=n_second,
        stratify=class_index[divisible],
        random_state=np.random.RandomState(bits),
    )
    first = np.concatenate([first, np.flatnonzero(single)])
    return np.sort(first).astype(np.int64), np.sort(second).astype(np.int64)


def _require_every_class(labels: np.ndarray, kept: np.ndarray, what: str, hint: str) -> None:
    lost = np.setdiff1d(labels, labels[kept])
    if len(lost):
        n_rows_of_first = int((labels == lost[0]).sum())
        raise UsageError(
            f"{what} leaves no training row to {len(lost)} classes (the first is class {lost[0]}, "
            f"{n_rows_of_first} of {len(labels)} rows); expected at least one each. hint: {hint}"
        )
