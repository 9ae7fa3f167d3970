"""Splits: disjoint, complete, stratified within one example, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.data.splits import plan_holdout, plan_splits, subset_rows
from fmnist_tf.errors import UsageError

LABELS = np.arange(600) * 7 % 10


def test_train_and_val_are_sorted_disjoint_and_complete():
    splits = plan_splits(LABELS, val_fraction=0.1, seed=0)
    assert splits.train.dtype == splits.val.dtype == np.int64
    assert (np.diff(splits.train) > 0).all()
    assert (np.diff(splits.val) > 0).all()
    assert sorted([*splits.train, *splits.val]) == list(range(600))
    assert np.bincount(LABELS[splits.val]).tolist() == [6] * 10


def test_golden_digest():
    """The split of a seed is part of a run's identity: a change here must be meant."""
    assert (
        plan_splits(LABELS, val_fraction=0.1, seed=0).digest
        == "7755e1985e901088c69d99231e894acd9306373cbcb40dbde71d730d9b4f5e12"
    )
    assert (
        plan_splits(LABELS, val_fraction=0.1, seed=0, limit=300).digest
        == "6fec18907907707655dd83c0e6cfe3db03b1bd82046dfb5d66edde8f358e56b3"
    )


def test_the_seed_alone_decides():
    digests = [plan_splits(LABELS, val_fraction=0.1, seed=s).digest for s in (0, 0, 1, 2**40)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_limit_chooses_a_stratified_subset_before_the_division():
    splits = plan_splits(LABELS, val_fraction=0.2, seed=3, limit=100)
    assert np.bincount(LABELS[splits.train]).tolist() == [8] * 10
    assert np.bincount(LABELS[splits.val]).tolist() == [2] * 10
    assert not set(splits.train) & set(splits.val)
    assert splits.train.max() > 100  # not merely the first rows


@pytest.mark.parametrize(("limit", "expected"), [(600, 600), (10**9, 600), (599, 590), (590, 590)])
def test_limit_near_the_number_of_rows(limit, expected):
    splits = plan_splits(LABELS, val_fraction=0.1, seed=0, limit=limit)
    assert len(splits.train) + len(splits.val) == expected


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    limit=st.none() | st.integers(1, 300),
    seed=st.integers(0, 2**32),
)
def test_every_class_is_within_one_example_or_the_error_says_what_to_do(
    counts, fraction, limit, seed
):
    labels = np.repeat(np.arange(len(counts)) * 7, counts)
    try:
        splits = plan_splits(labels, val_fraction=fraction, seed=seed, limit=limit)
    except UsageError as error:
        if "hint: " not in str(error):
            raise
        return
    chosen = np.concatenate([splits.train, splits.val])
    assert len(np.unique(chosen)) == len(chosen)
    assert len(chosen) == len(labels) if limit is None else len(chosen) <= limit
    assert set(labels[splits.train]) == set(labels)  # no class is left without training rows
    assert len(splits.val) == round(fraction * len(chosen))
    values, chosen_counts = np.unique(labels[chosen], return_counts=True)
    divisible = chosen_counts > 1
    fraction = len(splits.val) / chosen_counts[divisible].sum()
    for value, count in zip(values[divisible], chosen_counts[divisible], strict=True):
        assert abs((labels[splits.val] == value).sum() - count * fraction) < 1
    assert not set(values[~divisible]) & set(labels[splits.val])


def test_a_thousand_classes_of_two_rows():
    labels = np.repeat(np.arange(1000), 2)
    splits = plan_splits(labels, val_fraction=0.5, seed=0)
    assert np.bincount(labels[splits.train]).tolist() == [1] * 1000
    assert np.bincount(labels[splits.val]).tolist() == [1] * 1000


def test_a_class_with_one_row_trains():
    labels = np.array([5, *[0] * 20, *[1] * 20])
    splits = plan_splits(labels, val_fraction=0.25, seed=0)
    assert 0 in splits.train
    assert np.bincount(labels[splits.val]).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("labels", "fraction", "limit", "message"),
    [
        (LABELS, 0.0, None, "between 0.01667 and"),
        (LABELS, 1.0, None, "between 0.01667 and"),
        (np.repeat(np.arange(1000), 3), 0.1, None, "between 0.3333 and 0.6667"),
        (LABELS, 0.99, None, "between 0.01667 and"),
        (np.array([*range(10), *[10] * 5, *[11] * 5]), 0.9, None, "between 0.1 and 0.4"),
        (np.arange(10), 0.1, None, "more than one row"),
        (LABELS, 0.1, 9, "10 classes"),
        (LABELS, 0.1, 10, "more than one row"),
        (LABELS, 0.1, 50, "between 0.2"),
        (np.repeat([0, 1], [1000, 2]), 0.1, 100, "class 1, 2 of 1002"),
        (np.repeat([0, 1, 2], [50, 50, 2]), 0.9, None, "class 2"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_a_way_out(labels, fraction, limit, message):
    with pytest.raises(UsageError, match=message) as error:
        plan_splits(labels, val_fraction=fraction, seed=0, limit=limit)
    assert "--limit" in str(error.value)


def test_holdout_names_its_part_and_hint():
    with pytest.raises(UsageError, match=r"^test split: .* hint: bring more$"):
        plan_holdout(LABELS, fraction=0.001, seed=0, part="test", hint="bring more")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    count=st.integers(0, 200),
    seed=st.integers(0, 3),
)
def test_a_subset_is_stratified(sizes, count, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n, n_classes = len(labels), np.count_nonzero(sizes)
    rows = subset_rows(labels, count, seed)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert min(count, n) - n_classes < len(rows) <= count or len(rows) == n
    drawn = np.bincount(labels[rows], minlength=len(sizes))
    if count >= n_classes and np.min(sizes) > 1:
        assert np.abs(drawn - np.array(sizes) * len(rows) / n).max() <= 1
    assert rows.tolist() == subset_rows(labels, count, seed).tolist()


def test_a_subset_of_balanced_classes_is_balanced_and_drawn_at_random():
    labels = np.repeat(np.arange(10), 1000)
    rows = subset_rows(labels, 3000)
    assert np.bincount(labels[rows]).tolist() == [300] * 10
    assert rows.tolist() != subset_rows(labels, 3000, seed=1).tolist()
    # Drawn from the whole of each class, not from its beginning.
    assert 400 < (rows % 1000).mean() < 600
    assert subset_rows(labels, 10_000).tolist() == list(range(10_000))
    assert len(subset_rows(labels, 7)) == 7
