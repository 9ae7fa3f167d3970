"""Facts on data, counted by hand on small sets; warnings; kept between starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data.images import Pixels
from fmnist_tf.data.summary import EXAMPLES, DataSummary, Inspection, inspect


def part(pixels: np.ndarray, labels: np.ndarray, n_classes: int, digest: str = "") -> Pixels:
    names = tuple(f"class {k}" for k in range(n_classes))
    return Pixels(pixels, labels, names, digest, lambda rows: ([], rows + 2))


def noise(labels: list[int], n_classes: int, seed: int) -> Pixels:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 784), np.uint8)
    return part(pixels, np.array(labels), n_classes, str(seed))


@pytest.fixture
def parts() -> tuple[Pixels, Pixels]:
    train = noise([1, 0, 1, 1, 0, 1, 1, 1, 1], 3, seed=0)  # nothing of class 2
    test = noise([2, 0, 0], 3, seed=1)
    train.pixels[7] = train.pixels[3]
    train.pixels[8] = train.pixels[3]
    test.pixels[1] = train.pixels[4]
    test.pixels[2] = train.pixels[4]
    return train, test


def test_facts_of_a_few_images(parts: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    train, summary = parts[0], inspect(*parts, tmp_path).summary
    assert summary.train_counts.tolist() == [2, 7, 0]
    assert summary.test_counts.tolist() == [2, 0, 1]
    assert summary.duplicates.tolist() == [2, 1, 2]
    assert summary.histogram.sum() == 9 * 784
    assert summary.histogram[17] == (train.pixels == 17).sum()
    mean = train.pixels[[1, 4]].astype(float).mean(axis=0)
    np.testing.assert_allclose(summary.mean_images[0], mean, atol=0.5)
    assert not summary.mean_images[2].any()
    of_class_1 = [0, 2, 3, 5, 6, 7, 8][:EXAMPLES]
    np.testing.assert_array_equal(summary.examples[1], train.pixels[of_class_1])
    np.testing.assert_array_equal(summary.examples[0, :2], train.pixels[[1, 4]])
    assert not summary.examples[0, 2:].any()
    arrays = summary.to_arrays()
    assert all(name.startswith("data_") for name in arrays)
    again = DataSummary.from_arrays(arrays | {"other": np.zeros(1)})
    assert all(again.to_arrays()[name] is array for name, array in arrays.items())


def test_many_images_are_read_in_blocks(tmp_path: Path) -> None:
    train = noise([0, 1, 1] * 3000, 2, seed=2)
    summary = inspect(train, train.pick(np.arange(10)), tmp_path).summary
    mean = np.rint(train.pixels[train.labels == 1].mean(axis=0))
    np.testing.assert_array_equal(summary.mean_images[1], mean)
    np.testing.assert_array_equal(summary.histogram, np.bincount(train.pixels.ravel()))
    assert summary.duplicates.tolist() == [0, 0, 10]


def test_an_inspection_is_kept_and_belongs_to_its_images(
    parts: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    def shown(found: Inspection) -> object:
        arrays = {name: array.tolist() for name, array in found.summary.to_arrays().items()}
        return arrays, found.convention, found.warnings

    first = inspect(*parts, tmp_path)
    assert first.warnings
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    for damage in (content[:1000], b"", content[:3000] + bytes(100) + content[3100:]):
        kept.write_bytes(damage)
        assert shown(inspect(*parts, tmp_path)) == shown(first)
        assert len(kept.read_bytes()) == len(content)
    train, test = parts
    no_pixels = replace(train, pixels=None), replace(test, pixels=None)
    assert shown(inspect(*no_pixels, tmp_path)) == shown(first)  # not computed again
    for changed in (
        (replace(train, digest="other"), test),
        (train, replace(test, digest="other")),
        (replace(train, labels=train.labels[::-1]), test),
        (replace(train, class_names=("a", "b", "c")), test),
    ):
        inspect(*changed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


# --- W040 ---


def clothes(n: int, seed: int) -> np.ndarray:
    """Tall bright bars of various shades on black."""
    random = np.random.default_rng(seed)
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 11:17] = random.integers(100, 256, (n, 20, 6))
    return images.reshape(n, 784)


@pytest.fixture
def warned(tmp_path: Path) -> Callable[..., None]:
    """Check the warnings on 200 training and 100 test images, some of them replaced."""

    def check(*expected: str, train=None, labels=None, test=None) -> None:
        pixels = clothes(200, 0) if train is None else train
        test_pixels = clothes(100, 1) if test is None else test
        found = inspect(
            part(pixels, np.arange(200) % 4 if labels is None else labels, 4, str(expected)),
            part(test_pixels, np.arange(len(test_pixels)) % 4, 4, str(len(test_pixels))),
            tmp_path,
        )
        assert len(found.warnings) == len(expected), found.warnings
        for warning, text in zip(found.warnings, expected, strict=True):
            assert warning.startswith("W040 ")
            assert text in warning

    return check


def test_nothing_to_warn_of(warned) -> None:
    warned()
    warned(test=np.zeros((0, 784), np.uint8))


def test_w040(warned) -> None:
    twice = clothes(200, 0)
    twice[5] = twice[77] = twice[8]
    warned("2 of 200 training images are copies", train=twice)
    test = clothes(100, 1)
    test[7:10] = clothes(200, 0)[3:6]
    warned("3 of 100 test images are also training images", test=test)
    constant = clothes(200, 0)
    constant[9], constant[10] = 0, 7
    warned("2 training images have one grey level", train=constant)


def test_w040_imbalance(warned) -> None:
    labels = np.repeat([0, 1, 2, 3], [70, 60, 64, 6])
    warned("class class 0 has 70 images and class class 3 6", labels=labels)
    warned(labels=np.repeat([0, 1, 2, 3], [66, 57, 70, 7]))
