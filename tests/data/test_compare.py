"""What is said of images that look unlike the training images: codes, and commands that mend."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.convert import build_parser, main
from fmnist_tf.data.compare import check_training, compare, transform
from fmnist_tf.data.images import Pixels
from fmnist_tf.data.sample import read_sample
from fmnist_tf.data.sources import read_dataset
from fmnist_tf.data.summary import DataSummary, inspect
from fmnist_tf.data.tables import read_table as read_csv

TRAIN, TEST = read_sample()  # digits
LABELS = np.asarray(TEST.label_index, np.int64)
CASES = Path(os.environ.get("FMNIST_TF_SHARED", "missing")) / "cases/csv"

FAULTS: dict[str, tuple[list[str], dict[str, float]]] = {
    "as they are": ([], {}),
    "0 and 1": (["W051"], {"scale": 1 / 255}),
    "0 to 15": (["W051"], {"scale": 15 / 255}),
    "0 to 16": (["W051"], {"scale": 16 / 255}),
    "0 to 100": (["W051"], {"scale": 100 / 255}),
    "negated": (["W050"], {"negate": True}),
    "rows and columns exchanged": (["W052"], {"transpose": True}),
    "turned left": (["W052"], {"transpose": True, "flip_rows": True}),
    "turned right": (["W052"], {"transpose": True, "flip_columns": True}),
    "upside down": (["W052"], {"flip_rows": True}),
    "mirrored": (["W052"], {"flip_columns": True}),
    "turned by 180 degrees": (["W052"], {"flip_rows": True, "flip_columns": True}),
    "other diagonal": (["W052"], {"transpose": True, "flip_rows": True, "flip_columns": True}),
    "negated, exchanged": (["W050", "W052"], {"negate": True, "transpose": True}),
    "negated, 0 and 1": (["W051", "W050"], {"scale": 1 / 255, "negate": True}),
}


def codes(warnings: list[str] | tuple[str, ...]) -> list[str]:
    return [warning.split()[0] for warning in warnings]


def summarize(pixels: np.ndarray, labels: np.ndarray, folder: Path) -> DataSummary:
    names = tuple(map(str, range(labels.max() + 1)))
    images = Pixels(pixels, labels, names, str(hash(pixels.tobytes())), lambda rows: ([], rows))
    return inspect(images, images.pick(np.zeros(0, np.int64)), folder).summary


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DataSummary:
    labels = np.asarray(TRAIN.label_index, np.int64)
    return summarize(TRAIN.pixels, labels, tmp_path_factory.mktemp("digits"))


def write_csv(path: Path, pixels: np.ndarray, labels: np.ndarray | None) -> None:
    header = ["label"] * (labels is not None) + [f"pixel{k}" for k in range(1, 785)]
    table = pixels if labels is None else np.column_stack([labels, pixels])
    np.savetxt(path, table, "%d", ",", header=",".join(header), comments="")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_and_its_command_mends_it(
    digits: DataSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    expected, how = FAULTS[fault]
    for n in (270, 40):
        pixels = transform(TEST.pixels[:n], **how)
        warnings = compare(digits, pixels, "my digits.csv", LABELS[:n])
        assert codes(warnings) == expected
        assert codes(compare(digits, pixels, "my digits.csv")) == expected  # without labels too
    if not expected:
        return
    write_csv(Path("my digits.csv"), pixels, LABELS[:n])
    assert sum("fmnist_tf.convert" in warning for warning in warnings) == 1
    command = shlex.split(warnings[-1].partition("fmnist_tf.convert ")[2])
    assert main(command) == 0
    mended = read_csv(build_parser().parse_args(command).output, tmp_path)
    assert compare(digits, mended.pixels, "", LABELS[:n]) == []
    np.testing.assert_array_equal(mended.label_index, LABELS[:n])
    if "W051" not in expected:
        np.testing.assert_array_equal(mended.pixels, TEST.pixels[:n])


def test_few_images_or_one_class_are_enough_and_no_cause_for_alarm(digits: DataSummary) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 5, 20, 40):
        for _ in range(20):
            for label in (None, rng.integers(10)):
                rows = np.flatnonzero((LABELS == label) | (label is None))
                pixels = TEST.pixels[rng.choice(rows, n)]
                assert compare(digits, pixels, "") == []
                if n > 1:
                    assert codes(compare(digits, 255 - pixels, "")) == ["W050"]
                    assert codes(compare(digits, transform(pixels, transpose=True), "")) == ["W052"]


def test_other_pictures_have_no_orientation(digits: DataSummary) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 784), np.uint8)
    gradients = np.tile(np.arange(28, dtype=np.uint8) * 9, (100, 28, 1)).reshape(100, 784)
    gradients = gradients + rng.integers(0, 9, (100, 784), np.uint8)
    for pixels in (noise, gradients, transform(gradients, transpose=True)):
        assert "W052" not in codes(compare(digits, pixels, ""))
    # A faint likeness to turned digits, in images that are something else.
    turned = transform(TEST.pixels[:100], transpose=True)
    faint = (100 + 0.3 * noise + 0.1 * turned).astype(np.uint8)
    assert "W052" not in codes(compare(digits, faint, ""))
    assert "W052" not in codes(compare(digits, np.full((3, 784), 200, np.uint8), ""))


def test_dark_images_among_dark_images_are_no_fault(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    brightness = rng.uniform(0.2, 1, (len(TRAIN.pixels), 1))
    pixels = (TRAIN.pixels * brightness).astype(np.uint8)
    summary = summarize(pixels, np.asarray(TRAIN.label_index, np.int64), tmp_path)
    dark = (TEST.pixels * 0.25).astype(np.uint8)
    assert compare(summary, dark[:1], "") == []
    assert codes(compare(summary, dark, "")) == ["W051"]
    one_each = np.unique(np.asarray(TRAIN.label_index), return_index=True)[1]
    few = summarize(TRAIN.pixels[one_each], np.arange(10), tmp_path)
    assert codes(compare(few, TEST.pixels[:40] // 16, "")) == ["W051"]


def test_a_mean_image_elsewhere_is_told_where_labels_allow_it(digits: DataSummary) -> None:
    brighter = (TEST.pixels // 2 + 80).astype(np.uint8)
    assert codes(compare(digits, brighter, "", LABELS)) == ["W053"]
    assert compare(digits, brighter, "") == []
    assert compare(digits, brighter[:99], "", LABELS[:99]) == []
    assert compare(digits, brighter, "", np.full(270, -1)) == []  # labels that the run lacks
    of_one_class = TEST.pixels[LABELS == 1].repeat(5, axis=0)
    assert compare(digits, of_one_class, "", np.ones(len(of_one_class), np.int64)) == []


def test_other_things_are_noticed_from_a_few_images_on(digits: DataSummary) -> None:
    stripes = np.zeros((30, 28, 28), np.uint8)
    stripes[:, ::4] = 255
    assert codes(compare(digits, stripes.reshape(30, 784), "")) == ["W053"]
    assert compare(digits, TEST.pixels[LABELS == 1][:20], "") == []


@pytest.mark.parametrize(
    ("how", "background", "expected"),
    [
        ({}, 0, []),
        ({"scale": 1 / 255}, 0, ["W051"]),
        ({"scale": 15 / 255}, 0, ["W051"]),
        ({"negate": True}, 255, ["W050"]),
        ({"scale": 1 / 255, "negate": True}, 1, ["W051", "W050"]),
    ],
)
def test_faults_of_the_training_images_themselves(
    tmp_path: Path, how: dict[str, float], background: int, expected: list[str]
) -> None:
    pixels = transform(TEST.pixels, **how)
    summary = summarize(pixels, LABELS, tmp_path)
    warnings = check_training(summary, background, "x.csv", "kind")
    assert codes(warnings) == expected
    assert all("--label-column kind" in warning for warning in warnings[-1:])
    # Test images with the same fault are no news, good ones are.
    assert compare(summary, pixels[:40], "") == []
    if expected:
        assert codes(compare(summary, TEST.pixels[:40], "")) == expected


def test_train_compares_its_two_files(tmp_path: Path) -> None:
    def warnings(**faults: dict[str, float]) -> list[str]:
        for name in ("train", "test"):
            table = {"train": TRAIN, "test": TEST}[name]
            pixels = transform(table.pixels[:150], **faults.get(name, {}))
            write_csv(tmp_path / f"my_{name}.csv", pixels, np.asarray(table.label_index)[:150])
        data = str(tmp_path / "my_train.csv")
        return codes(read_dataset(data, store_dir=tmp_path / "store", say=print).warnings)

    assert warnings() == []
    assert warnings(test={"transpose": True}) == ["W052"]
    assert warnings(test={"negate": True}) == ["W050"]
    both = {"negate": True}
    assert warnings(train=both, test=both) == ["W050"]  # one cause, told once


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("clean", []), ("transposed", ["W052"]), ("inverted", ["W050"]), ("binary01", ["W051"])],
)
def test_real_cases_beside_their_own_kind_and_beside_other_digits(
    digits: DataSummary, tmp_path: Path, name: str, expected: list[str]
) -> None:
    clean = read_csv(CASES / "clean.csv", tmp_path)
    own = summarize(clean.pixels, np.asarray(clean.label_index, np.int64), tmp_path)
    table = read_csv(CASES / f"{name}.csv", tmp_path)
    assert codes(compare(own, table.pixels, "")) == expected
    # Digits of another data set: fit for no model of these.
    assert codes(compare(digits, table.pixels, "")) == (expected or ["W053"])


def test_convert_keeps_labels_and_refuses_to_overwrite(tmp_path: Path, capsys) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_csv(source, TEST.pixels[:3], None)
    assert main([str(source), str(target), "--transpose"]) == 0
    table = read_csv(target, tmp_path)
    assert table.label_index is None
    expected = TEST.pixels[:3].reshape(3, 28, 28).transpose(0, 2, 1).reshape(3, 784)
    np.testing.assert_array_equal(table.pixels, expected)
    for words in ([target, target], [source, target], [source, tmp_path], [tmp_path / "no", "x"]):
        assert main([str(word) for word in words]) == 2
    assert main([str(source), str(tmp_path / "other.csv"), "--scale", "0"]) == 2
    assert not (tmp_path / "other.csv").exists()
