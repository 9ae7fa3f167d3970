"""The built-in sample: right arrays, reproducible, balanced, and neither trivial nor noise."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fmnist_tf.data import sample
from fmnist_tf.data.canvas import Dice
from fmnist_tf.data.sample import GARMENTS, draw_sample
from fmnist_tf.errors import UsageError

N_TRAIN, N_TEST = 1005, 300


@pytest.fixture(scope="module")
def drawn():
    return draw_sample(N_TRAIN, N_TEST, seed=0)


def test_arrays_have_the_documented_shapes_and_types(drawn):
    pixels, labels, test_pixels, test_labels = drawn
    assert pixels.shape == (N_TRAIN, 784)
    assert test_pixels.shape == (N_TEST, 784)
    assert pixels.dtype == test_pixels.dtype == np.uint8
    assert labels.shape == (N_TRAIN,)
    assert test_labels.shape == (N_TEST,)
    assert labels.dtype == test_labels.dtype == np.int64


def test_default_size():
    defaults = draw_sample.__defaults__
    assert defaults == (6000, 1000, 0)


def test_garments_stand_in_the_order_of_fashion_mnist():
    assert len(GARMENTS) == 10
    assert GARMENTS[0] == "T-shirt/top"
    assert GARMENTS[5] == "Sandal"
    assert GARMENTS[9] == "Ankle boot"


@pytest.mark.parametrize("split", [0, 2])
def test_classes_are_balanced_and_shuffled(drawn, split):
    labels = drawn[split + 1]
    counts = np.bincount(labels, minlength=10)
    assert counts.sum() == len(labels)
    assert counts.max() - counts.min() <= 1
    tens = labels[: len(labels) // 10 * 10].reshape(-1, 10)
    assert (np.sort(tens, axis=1) == np.arange(10)).all()
    assert len(np.unique(tens, axis=0)) > 0.9 * len(tens)  # not one fixed order


def test_same_seed_draws_the_same_arrays(drawn):
    for first, again in zip(drawn, draw_sample(N_TRAIN, N_TEST, seed=0), strict=True):
        np.testing.assert_array_equal(first, again)


def test_another_process_draws_the_same_arrays(drawn):
    code = (
        "import hashlib; from fmnist_tf.data.sample import draw_sample;"
        "print(hashlib.sha256(draw_sample(50, 0)[0].tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == hashlib.sha256(drawn[0][:50].tobytes()).hexdigest()


def test_another_seed_draws_other_images_in_another_order(drawn):
    pixels, labels, _, _ = draw_sample(100, 0, seed=1)
    assert (labels != drawn[1][:100]).any()
    both = np.concatenate([pixels, drawn[0][:100]])
    assert len(np.unique(both, axis=0)) == 200


def test_a_larger_sample_begins_with_the_smaller_one(drawn, monkeypatch):
    monkeypatch.setattr(sample, "_BATCH", 3)
    smaller = draw_sample(57, 23, seed=0)
    for few, many in zip(smaller, drawn, strict=True):
        np.testing.assert_array_equal(few, many[: len(few)])


def test_no_image_comes_twice_in_train_and_test_together(drawn):
    together = np.concatenate([drawn[0], drawn[2]])
    assert len(np.unique(together, axis=0)) == N_TRAIN + N_TEST


def test_an_empty_split_is_allowed():
    pixels, labels, test_pixels, test_labels = draw_sample(10, 0)
    assert pixels.shape == (10, 784)
    assert labels.shape == (10,)
    assert test_pixels.shape == (0, 784)
    assert test_labels.shape == (0,)
    assert test_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("arguments", "name"), [((-1, 0, 0), "n_train"), ((0, -1, 0), "n_test"), ((0, 0, -1), "seed")]
)
def test_negative_arguments_are_refused(arguments, name):
    with pytest.raises(UsageError, match=f"{name} of 0 or more, found -1"):
        draw_sample(*arguments)


def test_garments_are_grey_on_a_black_background(drawn):
    pictures = drawn[0].reshape(-1, 28, 28)
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).mean() > 0.85
    lit = (drawn[0] > 25).mean(axis=1)
    assert lit.min() > 0.02
    assert np.quantile(lit, 0.99) < 0.98
    brightness = np.array([row[row > 25].mean() for row in drawn[0]])
    assert np.quantile(brightness, 0.05) < 100 < 150 < np.quantile(brightness, 0.75)


def test_dice_throw_every_number_anew_for_every_image():
    dice = Dice([np.random.default_rng(seed) for seed in range(2000)])
    first, second = dice(2, 4), dice(2, 4)
    assert first.shape == (2000, 1, 1)
    assert 2 <= first.min() < 2.1
    assert 3.9 < first.max() < 4
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    often, rare = dice.kinds(0.6, 0.1)
    assert (often + rare).max() == 1
    assert often.mean() == pytest.approx(0.6, abs=0.05)
    assert rare.mean() == pytest.approx(0.1, abs=0.03)


def test_every_class_varies_from_image_to_image(drawn):
    pixels, labels, _, _ = drawn
    for label in range(10):
        spread = pixels[labels == label].std(axis=0)
        assert spread.max() > 50, GARMENTS[label]


def test_nearest_mean_image_recognises_much_but_not_all(drawn):
    pixels, labels, test_pixels, test_labels = (array.astype(np.float32) for array in drawn)
    means = np.stack([pixels[labels == label].mean(axis=0) for label in range(10)])
    distances = ((test_pixels[:, None] - means) ** 2).sum(axis=2)
    accuracy = (distances.argmin(axis=1) == test_labels).mean()
    assert 0.5 < accuracy < 0.9


def test_drawing_needs_no_tensorflow():
    code = (
        "import sys; from fmnist_tf.data.sample import draw_sample; draw_sample(10, 0);"
        "print([name for name in sys.modules if name.split('.')[0] in {'tensorflow', 'keras'}])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
