"""Order is a pure function; every row comes once."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest

from fmnist_tf.data.batches import (
    ArrayRows,
    StackedRows,
    flip_rows,
    make_batches,
    order_rows,
    pick_views,
)
from fmnist_tf.data.images import JoinedRows, Pixels

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


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.bfloat16])
def test_every_row_once_in_order_with_its_label(batch_size: int, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 784)).astype(dtype)
    labels = np.arange(20) * 10
    batches = make_batches(ArrayRows(pixels), labels, ROWS, batch_size)
    x, y = batches.element_spec
    assert (x.dtype, tuple(x.shape), y.dtype) == (dtype, (None, 784), np.int64)
    assert int(batches.cardinality()) == -(-len(ROWS) // batch_size)
    assert batches.options().autotune.enabled is False  # see `make_batches`; a race, so not timed
    read = list(batches.as_numpy_iterator())
    assert [len(y) for _, y in read[:-1]] == [batch_size] * (len(read) - 1)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in read]), pixels[ROWS])
    np.testing.assert_array_equal(np.concatenate([y for _, y in read]), labels[ROWS])


def test_a_flip_exchanges_left_and_right_and_undoes_itself() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    pixels = images.reshape(3, 784)
    flipped = flip_rows(ArrayRows(pixels))
    assert (flipped.n_rows, flipped.row_shape, flipped.dtype) == (3, (784,), np.uint8)
    rows = np.array([2, 0, 1])
    mirrored = flipped.take(rows)
    np.testing.assert_array_equal(mirrored.reshape(3, 28, 28), images[rows, :, ::-1])
    assert (mirrored != pixels[rows]).any()
    np.testing.assert_array_equal(flip_rows(flipped).take(rows), pixels[rows])
    assert flipped.take(rows[:0]).shape == (0, 784)


def test_sources_nest_and_read_only_what_is_asked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 784), np.uint8)

    class Watched(JoinedRows):
        def __getitem__(self, rows: object) -> np.ndarray:
            asked.append(rows)
            return super().__getitem__(rows)

    asked: list[object] = []
    view = flip_rows(ArrayRows(Watched([pixels], np.array([8, 1, 4])), "digest"))
    assert (view.n_rows, view.row_shape, view.dtype) == (3, (784,), np.uint8)
    asked.clear()
    images = pixels[[4, 8]].reshape(2, 28, 28)
    np.testing.assert_array_equal(view.take(np.array([2, 0])).reshape(2, 28, 28), images[..., ::-1])
    assert np.array(asked).tolist() == [[2, 0]]


def test_stacked_rows_are_the_views_one_above_the_other() -> None:
    views = [np.arange(10).reshape(5, 2) + 100 * view for view in range(3)]
    stacked = StackedRows(tuple(ArrayRows(view) for view in views))
    assert (stacked.n_rows, stacked.row_shape, stacked.dtype) == (15, (2,), views[0].dtype)
    above = np.concatenate(views)
    for rows in ([0, 14, 5, 4, 9, 9], [3], [], range(15)):
        rows = np.array(rows, np.int64)
        np.testing.assert_array_equal(stacked.take(rows), above[rows])


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_each_row_takes_turns_through_its_views(n_views: int) -> None:
    rows = np.random.default_rng(0).permutation(1000)[:600]
    epochs = [pick_views(rows, 1000, n_views, 7, epoch) for epoch in range(1, 2 * n_views + 1)]
    for numbers in epochs:
        np.testing.assert_array_equal(numbers % 1000, rows)
    views = np.array(epochs) // 1000
    np.testing.assert_array_equal(
        np.sort(views[:n_views], axis=0), np.tile(np.arange(n_views)[:, None], 600)
    )
    np.testing.assert_array_equal(views[:n_views], views[n_views:])
    # The first epoch is a fair draw: 600 / V of each view, within five standard deviations.
    counts = np.bincount(views[0], minlength=n_views)
    assert np.abs(counts - 600 / n_views).max() <= 5 * np.sqrt(600 * (1 / n_views))


def test_views_are_a_function_of_seed_epoch_and_row_alone() -> None:
    rows = np.arange(50)
    views = pick_views(rows, 50, 2, 1, 1) // 50
    backwards = pick_views(rows[::-1], 50, 2, 1, 1) // 50
    np.testing.assert_array_equal(backwards[::-1], views)
    np.testing.assert_array_equal(pick_views(rows, 1000, 2, 1, 1) // 1000, views)
    assert (pick_views(rows, 50, 2, 2, 1) // 50 != views).any()
    # A golden draw: resuming and a second machine rely on it.
    assert list(pick_views(np.arange(8), 8, 2, 3, 4)) == [8, 1, 2, 11, 4, 5, 14, 7]


def test_digests_identify_the_content() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 784), np.uint8)
    rows = ArrayRows(pixels)
    assert rows.digest == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert ArrayRows(pixels[::-1][::-1]).digest == rows.digest
    assert ArrayRows(pixels, "known").digest == "known"
    halves = pixels.view(ml_dtypes.bfloat16)
    assert ArrayRows(halves).digest == rows.digest
    changed = pixels.copy()
    changed[1, 2] ^= 1
    sources = [
        rows,
        ArrayRows(changed),
        flip_rows(rows),
        flip_rows(ArrayRows(changed)),
        StackedRows((rows, flip_rows(rows))),
        StackedRows((flip_rows(rows), rows)),
    ]
    assert len({source.digest for source in sources}) == len(sources)
    again = StackedRows((ArrayRows(pixels.copy()), flip_rows(ArrayRows(pixels.copy()))))
    assert again.digest == sources[4].digest


def test_the_digest_of_picked_images_identifies_them() -> None:
    pixels = np.zeros((4, 784), np.uint8)
    first, other = (
        Pixels(pixels, np.arange(4), ("a", "b", "c", "d"), name, lambda rows: ([], rows))
        for name in ("first", "other")
    )
    picked = [first.pick(np.array(rows)) for rows in ([0, 1], [1, 0], [0, 1, 2])]
    picked += [other.pick(np.array([0, 1])), picked[0].pick(np.array([0, 1])), first]
    assert len({images.digest for images in picked}) == len(picked)
    assert first.pick(np.array([0, 1], np.int32)).digest == picked[0].digest
