"""Order is a pure function; every row comes once."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tf.data.batches import ArrayRows, make_batches, order_rows

ROWS = np.array([2, 3, 5, 7, 11, 13, 17])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(order_rows(ROWS, seed, epoch)) for seed in (0, 1) for epoch in (1, 2)
    }
    assert len(set(orders.values())) == 4
    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(ROWS)
        assert tuple(order_rows(ROWS, seed, epoch)) == order


def test_order_is_the_same_everywhere() -> None:
    # A golden order: resuming and a second machine rely on it.
    assert list(order_rows(np.arange(8), 3, 4)) == [7, 2, 4, 3, 6, 0, 1, 5]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_row_once_in_order_with_its_label(batch_size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 784), np.uint8)
    labels = np.arange(20) * 10
    batches = make_batches(ArrayRows(pixels), labels, ROWS, batch_size)
    assert int(batches.cardinality()) == -(-len(ROWS) // batch_size)
    read = list(batches.as_numpy_iterator())
    assert [len(y) for _, y in read[:-1]] == [batch_size] * (len(read) - 1)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in read]), pixels[ROWS])
    np.testing.assert_array_equal(np.concatenate([y for _, y in read]), labels[ROWS])


def test_raw_pixels_travel_as_uint8() -> None:
    batches = make_batches(ArrayRows(np.zeros((4, 784), np.uint8)), np.zeros(4, int), ROWS[:2], 2)
    x, y = batches.element_spec
    assert (x.dtype.name, tuple(x.shape)) == ("uint8", (None, 784))
    assert y.dtype.name == "int64"
