"""Labels in a second file: every form, as many as there are images, and the run that uses them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from forms import LABELS, PIXELS, N, csv_text, idx, npy, write

from fmnist_tf.data.locate import find_labels_beside
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError

TEXTS = [str(label) for label in LABELS]
NAMES = ["bag", "T-shirt, top", "shoe"] * 4


def lines(cells, header: str = "", end: str = "\n") -> str:
    return "".join(f"{cell}{end}" for cell in ([header] if header else []) + list(cells))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write(tmp_path / "csvTrainImages 12x784.csv", csv_text(labels=None))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lines(TEXTS), TEXTS),
        (lines(TEXTS, "label", "\r\n"), TEXTS),
        ("\ufeff" + lines(TEXTS).rstrip("\n"), TEXTS),
        (lines((f"0{text}.0" for text in TEXTS), "y") + "\n\n", TEXTS),
        (lines((f"{k},{text}" for k, text in enumerate(TEXTS)), ",label"), TEXTS),
        (lines(f"{k + 1};{text}" for k, text in enumerate(TEXTS)), TEXTS),
        (lines((f'"{name}"' for name in NAMES), "class"), NAMES),
        (idx(LABELS), TEXTS),
        (npy(LABELS), TEXTS),
        (npy(np.array(NAMES)), NAMES),
    ],
)
@pytest.mark.parametrize("name", ["labels", "labels.gz"])
def test_labels_in_every_form(tmp_path: Path, images: Path, content, expected, name) -> None:
    path = write(tmp_path / name, content)
    table = read_table(images, tmp_path / "store", labels=path)
    assert table.label_index is not None
    assert [table.label_values[k] for k in table.label_index] == expected
    assert table.label_values == tuple(sorted(set(expected)))
    assert (table.labels_path, len(table.labels_sha256)) == (str(path), 64)
    np.testing.assert_array_equal(table.pixels, PIXELS)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (lines(TEXTS[1:]), "E045"),
        (lines([*TEXTS, "4"]), "E045"),
        (lines([*TEXTS, "4"], "label"), "E045"),
        (idx(LABELS[1:]), "E045"),
        (npy(np.eye(N)), "E045"),
        (lines(f"{k * k},{text}" for k, text in enumerate(TEXTS)), "E045"),
        (lines(f"1,2,{text}" for text in TEXTS), "E045"),
        (lines(f"{'9' * 5000},{text}" for text in TEXTS), "E045"),
        (npy(np.full(N, np.inf)), "E027"),
        ("", "E045"),
        (lines(["4", "", *TEXTS[2:]]), "E045"),
        (lines(["nan", *TEXTS[1:]]), "E027"),
        (lines(["2.5", *TEXTS[1:]]), "E027"),
        (lines(["bag", *TEXTS[1:]]), "E027"),
        (b"\xff\xfe4\0\n\0", "E011"),
        (b"\x80\x04", "E009"),
        (None, "E001"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, images: Path, content, code: str) -> None:
    path = tmp_path / "labels.csv"
    if content is not None:
        write(path, content)
    with pytest.raises(DataError) as caught:
        read_table(images, tmp_path / "store", labels=path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == (code, str(path))
    if content == lines(TEXTS[1:]):
        assert ("11" in problem.found, "12" in problem.expected) == (True, True)


def test_labels_in_an_archive(tmp_path: Path, images: Path) -> None:
    np.savez(tmp_path / "kmnist-train-labels.npz", LABELS)
    for path in (
        tmp_path / "kmnist-train-labels.npz",
        tmp_path / "kmnist-train-labels.npz/arr_0.npy",
    ):
        table = read_table(images, tmp_path / "store", labels=path)
        assert table.label_values == ("4", "5", "6")
    np.savez(tmp_path / "two.npz", LABELS, LABELS)
    with pytest.raises(DataError, match="E009"):
        read_table(images, tmp_path / "store", labels=tmp_path / "two.npz")


def test_labels_are_no_folder_and_no_pipe(tmp_path: Path, images: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="E002"):
            read_table(images, tmp_path / "store", labels=path)


def test_images_with_labels_of_their_own_take_no_others(tmp_path: Path) -> None:
    path, labels = write(tmp_path / "a.csv", csv_text()), write(tmp_path / "b", lines(TEXTS))
    with pytest.raises(DataError, match="E025"):
        read_table(path, tmp_path / "store", labels=labels)


def test_named_labels_go_before_those_beside(tmp_path: Path) -> None:
    path = write(tmp_path / "train-images.idx3-ubyte", idx(PIXELS.reshape(-1, 28, 28)))
    beside = write(tmp_path / "train-labels.idx1-ubyte", idx(LABELS))
    assert find_labels_beside(path) == beside
    other = write(tmp_path / "other", idx(LABELS + 1))
    assert read_table(path, tmp_path / "s").label_values == ("4", "5", "6")
    assert read_table(path, tmp_path / "s", labels=other).label_values == ("5", "6", "7")
    beside.unlink()
    assert read_table(path, tmp_path / "s").label_index is None
