"""Facts on data, counted by hand on small sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_tf.data.sources import Dataset, Pixels
from fmnist_tf.data.summary import (
    EXAMPLES,
    DataSummary,
    measure_background,
    measure_content_side,
    summarize,
)


def images(labels: list[int], n_classes: int, seed: int) -> Pixels:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 784), np.uint8)
    names = tuple(f"class {k}" for k in range(n_classes))
    return Pixels(pixels, np.array(labels), names, np.arange(len(labels)) + 2)


@pytest.fixture
def dataset() -> Dataset:
    train = images([1, 0, 1, 1, 0, 1, 1, 1, 1], 3, seed=0)  # nothing of class 2
    test = images([2, 0, 0], 3, seed=1)
    train.pixels[7] = train.pixels[3]
    train.pixels[8] = train.pixels[3]
    test.pixels[1] = train.pixels[4]
    test.pixels[2] = train.pixels[4]
    return Dataset(train, test, "name", "csv", (), (), ())


def test_counts(dataset: Dataset) -> None:
    summary = summarize(dataset)
    assert summary.train_counts.tolist() == [2, 7, 0]
    assert summary.test_counts.tolist() == [2, 0, 1]
    assert summary.duplicates.tolist() == [2, 1, 2]
    assert summary.histogram.sum() == 9 * 784
    assert summary.histogram[17] == (dataset.train.pixels == 17).sum()


def test_pictures(dataset: Dataset) -> None:
    train, summary = dataset.train, summarize(dataset)
    mean = train.pixels[[1, 4]].astype(float).mean(axis=0)
    np.testing.assert_allclose(summary.mean_images[0], mean, atol=0.5)
    assert not summary.mean_images[2].any()
    of_class_1 = [0, 2, 3, 5, 6, 7, 8][:EXAMPLES]
    np.testing.assert_array_equal(summary.examples[1], train.pixels[of_class_1])
    np.testing.assert_array_equal(summary.examples[0, :2], train.pixels[[1, 4]])
    assert not summary.examples[0, 2:].any()


def test_round_trip(dataset: Dataset) -> None:
    summary = summarize(dataset)
    arrays = summary.to_arrays()
    assert all(name.startswith("data_") for name in arrays)
    again = DataSummary.from_arrays(arrays | {"other": np.zeros(1)})
    assert all(again.to_arrays()[name] is array for name, array in arrays.items())


@pytest.mark.parametrize("background", [0, 255, 100])
@pytest.mark.parametrize(("height", "width", "side"), [(20, 12, 20), (5, 28, 28), (1, 1, 1)])
def test_background_and_content(background: int, height: int, width: int, side: int) -> None:
    picture = np.full((3, 28, 28), background, np.uint8)
    picture[:, 4 : 4 + height, :width] = 180
    pixels = picture.reshape(3, 784)
    assert measure_background(pixels) == background
    assert measure_content_side(pixels, background) == side


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), high=st.integers(1, 256))
def test_background_is_the_median_of_the_edges(seed: int, n: int, high: int) -> None:
    images = np.random.default_rng(seed).integers(0, high, (n, 28, 28)).astype(np.uint8)
    inside = np.zeros((28, 28), bool)
    inside[1:-1, 1:-1] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmnist_tf.data.summary._BLOCK", 2)
        found = measure_background(images.reshape(n, 784))
    assert found == int(np.median(images[:, ~inside]))


def test_content_tolerates_what_is_nearly_background() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 0] = 12  # 5 % of 255 is 12.75
    pixels[0, 10:14, 10] = 200
    assert measure_content_side(pixels.reshape(1, 784), 0) == 4
    assert measure_content_side(np.zeros((2, 784), np.uint8), 0) == 1
