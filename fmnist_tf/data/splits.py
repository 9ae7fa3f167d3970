"""Which rows train and which validate: seeded, stratified index sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fmnist_tf.errors import UsageError

TEST_FRACTION, TEST_SEED = 0.15, 0
"""For a train file without a test file; fixed, so that every run is tested on the same rows."""

# Independent random streams of one seed.
_SUBSET_STREAM, _HOLDOUT_STREAM = 0, 1


@dataclass(frozen=True)
class Splits:
    """Two disjoint sets of rows of one train file, each ascending int64."""

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
    """Divide the rows of labels (N,) into train and val, stratified by class within one row.

    A class of one row goes to train.

    Args:
        labels: integers.
        val_fraction: fraction of the chosen rows that goes to val, in (0, 1).
        seed: non-negative; the same seed gives the same rows.
        limit: divide a `subset_rows` of this size only; None divides all rows.

    Raises:
        UsageError: the fraction or the limit leaves a class without rows.
    """
    chosen = np.arange(len(labels), dtype=np.int64)
    if limit is not None and limit < len(labels):
        hint = "use a higher --limit, or none"
        if limit < (n_classes := len(np.unique(labels))):
            raise UsageError(
                f"--limit {limit}: fewer rows than the {n_classes} classes of the file; expected "
                f"at least one row per class to train and one to validate. hint: {hint}"
            )
        chosen = subset_rows(labels, limit, seed)
        _require_every_class(labels, chosen, f"--limit {limit}", hint)
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
    """Return the rows that remain and `round(fraction * N)` set aside, ascending, stratified.

    The fraction is in (0, 1). `part` names the rows set aside, and `hint` what to do if it is
    impossible, for messages.

    Raises:
        UsageError: a class of two rows or more has no row on one of the sides.
    """

    def refuse(found: str, expected: str) -> UsageError:
        return UsageError(f"{part} split: {found}; expected {expected}. hint: {hint}")

    counts = np.unique_counts(labels).counts
    n_rows, n_held, n_divisible = len(labels), round(fraction * len(labels)), (counts > 1).sum()
    n_single = len(counts) - n_divisible
    if n_divisible == 0:
        raise refuse("no class has more than one row", f"two rows of a class, one for {part}")
    if not n_divisible <= n_held <= n_rows - n_single - n_divisible:
        lowest, highest = n_divisible / n_rows, 1 - (n_single + n_divisible) / n_rows
        expected = f"a fraction between {lowest:.4g} and {highest:.4g}, so that {n_divisible} "
        expected += "classes can have a row on both sides"
        raise refuse(f"{fraction:g} of {n_rows} rows is {n_held} rows", expected)
    kept, held = _divide(labels, n_held, seed, _HOLDOUT_STREAM)
    _require_every_class(labels, kept, f"{part} split: {fraction:g} of {n_rows} rows", hint)
    return kept, held


def subset_rows(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Draw at most `count` rows, ascending, of each class the same fraction, within one row.

    A count below the number of classes is not stratified. One that leaves out fewer rows than there
    are classes leaves out one of each class.
    """
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    counts = np.unique_counts(labels).counts
    if count < len(counts):
        return np.sort(np.random.default_rng(seed).permutation(len(labels))[:count])
    # The stratified division needs a row of each class on both sides.
    n_left_out = max(len(labels) - count, int((counts > 1).sum()))
    return _divide(labels, n_left_out, seed, _SUBSET_STREAM)[0]


def _divide(
    labels: np.ndarray, n_second: int, seed: int, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide all rows into two stratified sets, the second of `n_second` rows.

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
    return np.sort(np.concatenate([first, np.flatnonzero(single)])), np.sort(second)


def _require_every_class(labels: np.ndarray, kept: np.ndarray, what: str, hint: str) -> None:
    lost = np.setdiff1d(labels, labels[kept])
    if len(lost):
        first = f"class {lost[0]}, {(labels == lost[0]).sum()} of {len(labels)} rows"
        raise UsageError(
            f"{what} leaves no training row to {len(lost)} classes (the first is {first}); "
            f"expected at least one each. hint: {hint}"
        )
