"""Labels: as indices of given classes; in a second file, of any form and of the right length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from forms import LABELS, PIXELS, N, csv_text, idx, npy, write

from fmnist_tf.data.images import Table
from fmnist_tf.data.labels import FASHION_MNIST, index_classes, map_labels, require_labels
from fmnist_tf.data.locate import find_labels_beside
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError, Problem


def table_of(labels: list[str] | None) -> Table:
    values = tuple(sorted(set(labels or []), key=lambda text: (len(text), text)))
    index = None if labels is None else np.array([values.index(x) for x in labels], np.int32)
    pixels = np.zeros((len(labels or []), 784), np.uint8)
    field = None if labels is None else 1
    return Table(pixels, index, values, "t.csv", "", "", "", first_line=2, label_field=field)


def problems_of(labels: list[str] | None, class_names: Sequence[str]) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        map_labels(table_of(labels), class_names)
    return caught.value.problems


def test_only_names_given_to_numbers_answer_to_numbers() -> None:
    assert index_classes(FASHION_MNIST)["9"] == index_classes(FASHION_MNIST)["Ankle boot"] == 9
    assert "0" not in index_classes(sorted(FASHION_MNIST))
    assert index_classes(("3", "7")) == {"3": 0, "7": 1}


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        (["7", "3", "7"], ("3", "7", "9"), [1, 0, 1]),
        (["9", "0"], FASHION_MNIST, [9, 0]),
        (["Bag", "Coat", "Bag"], FASHION_MNIST, [8, 4, 8]),
        (["Bag", "9"], FASHION_MNIST, [8, 9]),
    ],
)
def test_labels_become_indices(labels, class_names, expected) -> None:
    found = map_labels(table_of(labels), class_names)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "class_names", "code", "hint"),
    [
        (None, ("0", "1"), "E026", "--labels"),
        (["Hat"], FASHION_MNIST, "E028", "spelling"),
        (["10"], FASHION_MNIST, "E028", "spelling"),
        (["1", "2", "3"], ("0", "1", "2"), "E028", "subtract 1"),
        (["0", "1", "2"], ("1", "2", "3"), "E028", "add 1"),
        (["0", "7"], ("0", "1"), "E028", "spelling"),
        (["0", "Bag"], ("0", "1"), "E029", "names in both"),
        (["0", "1"], ("Bag", "Coat"), "E029", "names in both"),
    ],
)
def test_labels_that_are_no_classes(labels, class_names, code: str, hint: str) -> None:
    problem = problems_of(labels, class_names)[0]
    assert (problem.code, hint in problem.hint) == (code, True)


def test_each_unknown_class_is_told_at_its_first_line() -> None:
    problems = problems_of(["1", "7", "0", "6"], ("0", "1"))
    assert [(p.code, p.line, p.column) for p in problems] == [("E028", 3, 1), ("E028", 5, 1)]


def test_e030_one_class() -> None:
    with pytest.raises(DataError) as caught:
        require_labels(table_of(["7", "7"]), minimum=2)
    problem = caught.value.problems[0]
    assert (problem.code, problem.line, problem.column) == ("E030", 2, 1)
    require_labels(table_of(["7", "7"]))
    require_labels(table_of(["7", "8"]), minimum=2)


# --- in a second file ---

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
    np.savez(tmp_path / "a-labels.npz", LABELS)
    for name in ("a-labels.npz", "a-labels.npz/arr_0.npy"):
        table = read_table(images, tmp_path / "store", labels=tmp_path / name)
        assert table.label_values == ("4", "5", "6")
    np.savez(tmp_path / "two.npz", LABELS, LABELS)
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("two.npz", "E009"), (".", "E002"), ("pipe", "E002")):
        with pytest.raises(DataError, match=code):
            read_table(images, tmp_path / "store", labels=tmp_path / name)


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
