"""Labels of a file as indices of given classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fmnist_tf.data.images import Table
from fmnist_tf.data.labels import FASHION_MNIST, index_classes, map_labels, require_labels
from fmnist_tf.errors import DataError, Problem


def table_of(labels: list[str] | None) -> Table:
    values = tuple(sorted(set(labels or []), key=lambda text: (len(text), text)))
    index = None if labels is None else np.array([values.index(x) for x in labels], np.int32)
    pixels = np.zeros((len(labels or []), 784), np.uint8)
    field = None if labels is None else 1
    return Table(pixels, index, values, "t.csv", "", "", "", first_line=2, label_field=field)


def problems_of(action: Callable[[], object]) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        action()
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
def test_labels_become_indices(
    labels: list[str], class_names: tuple[str, ...], expected: list[int]
) -> None:
    found = map_labels(table_of(labels), class_names)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_e026_unlabelled() -> None:
    assert problems_of(lambda: map_labels(table_of(None), ("0", "1")))[0].code == "E026"


def test_e028_unknown_class() -> None:
    problems = problems_of(lambda: map_labels(table_of(["1", "7", "0", "6"]), ("0", "1")))
    assert [(p.code, p.line, p.column) for p in problems] == [("E028", 3, 1), ("E028", 5, 1)]
    assert problems_of(lambda: map_labels(table_of(["Hat"]), FASHION_MNIST))[0].code == "E028"
    assert problems_of(lambda: map_labels(table_of(["10"]), FASHION_MNIST))[0].code == "E028"


@pytest.mark.parametrize(
    ("labels", "class_names", "hint"),
    [
        (["1", "2", "3"], ("0", "1", "2"), "subtract 1"),
        (["0", "1", "2"], ("1", "2", "3"), "add 1"),
        (["0", "7"], ("0", "1"), "spelling"),
    ],
)
def test_e028_hints(labels: list[str], class_names: tuple[str, ...], hint: str) -> None:
    assert hint in problems_of(lambda: map_labels(table_of(labels), class_names))[0].hint


def test_e029_names_for_numbers() -> None:
    for labels, names in ((["0", "Bag"], ("0", "1")), (["0", "1"], ("Bag", "Coat"))):
        assert problems_of(lambda: map_labels(table_of(labels), names))[0].code == "E029"  # noqa: B023


def test_e030_one_class() -> None:
    problem = problems_of(lambda: require_labels(table_of(["7", "7"]), minimum=2))[0]
    assert (problem.code, problem.line, problem.column) == ("E030", 2, 1)
    require_labels(table_of(["7", "7"]))
    require_labels(table_of(["7", "8"]), minimum=2)
