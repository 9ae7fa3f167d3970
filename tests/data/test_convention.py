"""What is typical of a set of images, counted by hand on small sets and on known data."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fmnist_tf.data.convention import Convention, measure_convention
from fmnist_tf.data.sample import read_sample


@pytest.mark.parametrize("background", [0, 255, 100])
@pytest.mark.parametrize(("height", "width", "side"), [(20, 12, 20), (5, 28, 28), (1, 1, 1)])
def test_background_and_content(background: int, height: int, width: int, side: int) -> None:
    picture = np.full((3, 28, 28), background, np.uint8)
    picture[:, 4 : 4 + height, :width] = 180
    found = measure_convention(picture.reshape(3, 784))
    assert (found.background, found.content_side) == (background, side)
    assert found.drift == 0
    assert found.thickness == min(height, width) - (1 - min(height, width) % 2)
    assert found.ink == pytest.approx(
        [abs(180 - background) / 255 * height * width / 784] * 2, abs=1e-4
    )


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), high=st.integers(1, 256))
def test_background_is_the_median_of_the_edges(seed: int, n: int, high: int) -> None:
    images = np.random.default_rng(seed).integers(0, high, (n, 28, 28)).astype(np.uint8)
    inside = np.zeros((28, 28), bool)
    inside[1:-1, 1:-1] = True
    found = measure_convention(images.reshape(n, 784)).background
    assert found == int(np.median(images[:, ~inside]))


def test_content_tolerates_what_is_nearly_background() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 0] = 12  # 5 % of 255 is 12.75
    pixels[0, 10:14, 10] = 200
    assert measure_convention(pixels.reshape(1, 784)).content_side == 4
    assert measure_convention(np.zeros((2, 784), np.uint8)) == Convention(0, 1)


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("centring", ["box", "mass"])
def test_the_centre_that_varies_less_is_the_convention(background: int, centring: str) -> None:
    images = np.zeros((60, 28, 28), np.uint8)
    for image, digit in zip(images, load_digits().images, strict=False):
        digit = np.kron(digit[:, digit.any(axis=0)], np.ones((2, 2))) * 15
        height, width = digit.shape
        y, x = height / 2, width / 2
        if centring == "mass":
            y = digit.sum(axis=1) @ (np.arange(height) + 0.5) / digit.sum()
            x = digit.sum(axis=0) @ (np.arange(width) + 0.5) / digit.sum()
        top, left = round(14 - y), round(14 - x)
        image[top : top + height, left : left + width] = digit
    found = measure_convention(np.abs(background - images.reshape(60, 784)))
    assert (found.centring, found.content_side, found.has_strokes) == (centring, 16, True)


def test_the_sample_fills_its_box() -> None:
    found = measure_convention(read_sample()[0].pixels)
    assert (found.content_side, found.centring, found.has_strokes) == (28, "box", True)
    assert found.drift == 3  # from side to side


def test_a_record_comes_back() -> None:
    found = Convention(3, 20, "mass", 5, (0.05, 0.2))
    assert Convention.from_record(json.loads(json.dumps(asdict(found))) | {"x": 1}) == found
    with pytest.raises(KeyError):
        Convention.from_record({"background": 0})
