"""The forms in which people have their CSVs: read right, or refused with a step that works.

Real images (scikit-learn's digits), as what the columns hold decides which one is the label.
"""

from __future__ import annotations

import bz2
import lzma
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data.arrays import to_28
from fmnist_tf.data.csv.columns import label_likeness
from fmnist_tf.data.images import Table
from fmnist_tf.data.sample import read_sample
from fmnist_tf.data.tables import read_table as read_csv
from fmnist_tf.errors import DataError

N = 120
SAMPLE, _ = read_sample()
PIXELS, LABELS = SAMPLE.pixels[:N], SAMPLE.label_index[:N]
NAMES = [f"pixel{i}" for i in range(1, 785)]


def labelled(pixels: np.ndarray) -> list[list[int]]:
    return [[k, *row] for k, row in zip(LABELS.tolist(), pixels.tolist(), strict=True)]


FIRST = labelled(PIXELS)
LAST = [[*row, k] for k, *row in FIRST]
UNLABELLED = PIXELS.tolist()
ONE_HOT = np.eye(10, dtype=int)[LABELS].tolist()


def text(rows: Iterable[Iterable[object]], separator: str = ",", end: str = "\n") -> bytes:
    return "".join(separator.join(map(str, row)) + end for row in rows).encode()


def named(first: int, prefix: str) -> list[str]:
    return [f"{prefix}{i}" for i in range(first, first + 785)]


def zipped(files: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


Read = Callable[..., Table]
KAGGLE = text([["label", *NAMES], *FIRST])
READ: dict[str, bytes] = {
    "R's V1..V785": text([named(1, "V"), *FIRST]),
    "readr's X1..": text([named(1, "X"), *FIRST]),
    "Spark's _c0..": text([named(0, "_c"), *LAST]),
    "MATLAB's Var1..": text([named(1, "Var"), *LAST]),
    "Excel's Column1..": text([named(1, "Column"), *FIRST]),
    "C1..C785": text([named(1, "C"), *LAST]),
    "no header, first": text(FIRST),
    "no header, last": text(LAST),
    "no header, last, sorted by class": text(sorted(LAST, key=lambda row: row[-1])),
    "no header, five rows": text(LAST[:5]),
    "blank lines at the end": KAGGLE + b"\n  \n\t\n",
    "Ctrl-Z at the end": KAGGLE + b"\x1a",
    "CR CR LF": text([["label", *NAMES], *FIRST], end="\r\r\n"),
    "numpy.savetxt": text([[f"{v:.18e}" for v in row] for row in FIRST[:5]]),
    "sep=,": b"sep=,\n" + KAGGLE,
    "sep=; in quotes": b'"sep=;"\r\n' + text([["label", *NAMES], *FIRST], ";", "\r\n"),
    "sep=|": b"sep=|\n" + text([["label", *NAMES], *FIRST], "|"),
    "semicolons": text([["label", *NAMES], *FIRST], ";"),
    "tabs, no header": text(FIRST, "\t"),
    "R's write.table": text([["label", *NAMES], *([f'"{i}"', *r] for i, r in enumerate(FIRST))]),
    "R's write.csv": text([['""', "label", *NAMES], *([i, *r] for i, r in enumerate(FIRST))]),
    "one-hot, numbered": text(
        [[*NAMES, *(f"label_{k}" for k in range(10))],
         *([*row, *hot] for row, hot in zip(UNLABELLED, ONE_HOT, strict=True))]
    ),
    "one-hot, no header": text([*hot, *row] for row, hot in zip(UNLABELLED, ONE_HOT, strict=True)),
    "OpenML's ARFF": "\n".join(
        ["% a comment", "@RELATION mnist", *(f"@ATTRIBUTE {name} REAL" for name in NAMES),
         "@attribute 'class' {0,1,2,3,4,5,6,7,8,9}", "@DATA", ""]
    ).encode() + text(LAST),
    "zip of one CSV": zipped({"train.csv": KAGGLE, "__MACOSX/._train.csv": b"x"}),
    "bzip2": bz2.compress(KAGGLE),
    "xz": lzma.compress(KAGGLE),
}  # fmt: skip


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: bytes, **options: str) -> Table:
        path = tmp_path / "a.csv"
        path.write_bytes(content)
        return read_csv(path, tmp_path / "store", **options)

    return read


@pytest.mark.parametrize("case", READ)
def test_read(case: str, read: Read) -> None:
    table = read(READ[case])
    order = np.argsort(LABELS, kind="stable") if "sorted" in case else np.arange(N)
    order = order[: len(table.pixels)]
    np.testing.assert_array_equal(table.pixels, PIXELS[order])
    assert [table.label_values[i] for i in table.label_index] == LABELS[order].astype(str).tolist()
    assert table.decisions
    assert len(table.pixels) in (5, N)


@pytest.mark.parametrize(
    ("rows", "which", "values"),
    [
        ([range(785), *FIRST], "first", 10),  # a header of numbers
        ([range(1, 786), *LAST], "last", 10),
        ([range(1, 786), *LAST], "785", 10),
        ([named(1, "V"), *LAST], "V785", 10),
        (FIRST[:1], "first", 1),
        (FIRST[:1], "1", 1),
    ],
)
def test_the_user_chooses_the_label(
    rows: list[list[object]], which: str, values: int, read: Read
) -> None:
    table = read(text(rows), label_column=which)
    assert len(table.label_values) == values
    np.testing.assert_array_equal(table.pixels, PIXELS[: len(table.pixels)])


def test_what_makes_a_column_unlike_labels() -> None:
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(0, 10, 400), rng.integers(0, 256, 400)

    def likeness(column: np.ndarray, beside: np.ndarray = noise) -> float:
        return label_likeness(np.column_stack([column, beside]).astype(str).tolist(), 0, 1)

    assert likeness(labels) > 0.7
    assert likeness(labels, beside=labels * 20 + 3) < 0.01
    assert likeness(labels * 25) < 0.1  # gaps
    assert likeness(np.where(noise < 240, 0, labels)) < 0.2  # one value in most rows
    for no_pixel in (np.array(["bag", "shoe"])[labels % 2], labels - 20):
        assert likeness(no_pixel) == 1


NOISE = np.random.default_rng(0).integers(0, 256, (N, 785)).tolist()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (text(FIRST[:1]), "E026"),  # one row tells nothing
        (text(NOISE), "E026"),
        (text([row[0], *row[1:-1], 7] for row in [[5] * 785] * N), "E026"),  # both constant
        (text([["label", *NAMES[:-3]], *FIRST]), "E020"),  # a header that is short
        (text([NAMES, *FIRST]), "E020"),  # by one, but the first cells are no row names
        (text([["label", *NAMES], *([k, *(v > 0 for v in row)] for k, *row in FIRST)]), "E031"),
        (text([["label", *NAMES], *([k, *(v / 255 for v in row)] for k, *row in FIRST)]), "E034"),
        (b"%\n@relation x\n@attribute pixel1 real\n@data\n{0 1}\n", "E009"),
        (b"%\n@relation x\n", "E009"),
        (zipped({"a.csv": KAGGLE, "b.csv": KAGGLE}), "E009"),
        (zipped({"xl/workbook.xml": b"", "a.csv": KAGGLE}), "E009"),
        (zipped({"a.csv": KAGGLE})[:-30], "E009"),
        (bz2.compress(KAGGLE)[:-9], "E008"),
        (lzma.compress(KAGGLE)[:-9], "E008"),
        (bz2.compress(bz2.compress(KAGGLE)), "E009"),
        (text([[*row, *hot] for row, hot in zip(UNLABELLED, ONE_HOT, strict=True)]).replace(
            b",1,", b",0,"), "E019"),
    ],
)  # fmt: skip
def test_refused(content: bytes, code: str, read: Read) -> None:
    with pytest.raises(DataError) as caught:
        read(content)
    assert {problem.code for problem in caught.value.problems} == {code}
    assert all(problem.hint for problem in caught.value.problems) or code in ("E009", "E031")


def test_a_row_of_one_hot_labels_with_two_ones(read: Read) -> None:
    rows = [[*row, *hot] for row, hot in zip(UNLABELLED, ONE_HOT, strict=True)] * 12
    rows[1000] = [*rows[1000][:784], *[1] * 10]  # not in the sample that decides the layout
    header = [*NAMES, *(f"label_{k}" for k in range(10))]
    with pytest.raises(DataError) as caught:
        read(text([header, *rows]))
    (problem,) = caught.value.problems
    assert (problem.code, problem.line, problem.column) == ("E027", 1002, 785)


@pytest.mark.parametrize("is_planar", [False, True])
def test_rgb_is_made_grey(is_planar: bool, read: Read) -> None:
    """Whether the colours of a pixel stand together or in planes is found by what they hold."""
    tints = np.random.default_rng(0).uniform(0.6, 1, (N, 1, 3))
    colour = (PIXELS[:, :, np.newaxis] * tints).astype(np.uint8)  # (N, 784, 3)
    expected = to_28(colour.reshape(N, -1), 28, 3)
    values = colour.transpose(0, 2, 1) if is_planar else colour
    rows = labelled(values.reshape(N, -1))
    header = ["label", *(f"pixel{i:04}" for i in range(2352))]
    np.testing.assert_array_equal(read(text([header, *rows])).pixels, expected)
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(expected - colour @ weights).max() <= 0.51


@pytest.mark.parametrize("side", [8, 32, 64])
def test_other_squares_are_resized(side: int, read: Read) -> None:
    images = np.zeros((N, side, side), np.uint8)
    images[:, side // 4 : side // 2] = 200  # a bar
    images[LABELS % 2 == 1] = images[LABELS % 2 == 1].transpose(0, 2, 1)
    table = read(text(labelled(images.reshape(N, -1))))
    pixels = table.pixels.reshape(N, 28, 28)
    bar = pixels[LABELS % 2 == 0][0]
    assert bar[9:12].min() > 150
    assert bar[18:].max() == 0
    np.testing.assert_array_equal(pixels[LABELS % 2 == 1][0], bar.T)


def test_member_of_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(zipped({"a.csv": KAGGLE, "b.csv": text(LAST)}))
    for member in ("a.csv", "b.csv"):
        table = read_csv(path / member, tmp_path / "store")
        np.testing.assert_array_equal(table.pixels, PIXELS)
        assert len(table.decisions) == 3
    with pytest.raises(DataError):
        read_csv(path / "c.csv", tmp_path / "store")
