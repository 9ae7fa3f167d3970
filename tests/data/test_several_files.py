"""Several files are one table: which files, in which order, and what they must have in common."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forms import LABELS, PIXELS, N, csv_text, idx, npy, write
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.data.images import JoinedRows
from fmnist_tf.data.locate import find_tables, list_parts
from fmnist_tf.data.sources import read_dataset
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError, UsageError

HALVES = slice(0, 5), slice(5, N)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(function: Callable[..., object], *values: object) -> tuple[str, str, int | None]:
    """Return code, path and line of the one problem that a call ends with."""
    with pytest.raises(DataError) as caught:
        function(*values)
    (problem,) = caught.value.problems
    return problem.code, problem.path, problem.line


# --- which files, in which order ---


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-*.csv", "a-1.csv a-2.csv a-10.csv a-[12].csv"),
        ("*/a-*.csv", "s2/a-1.csv s10/a-0.csv"),
        ("**/a-1*.csv", "a-1.csv a-10.csv s2/a-1.csv"),
        ("a-{10,1}.csv", "a-1.csv a-10.csv"),
        ("a-{1..3}.csv", "a-1.csv a-2.csv a-3.csv"),
        ("a-{3..1}.csv", "a-1.csv a-2.csv a-3.csv"),
        ("{b,a-0}{08..10}.csv", "a-008.csv a-009.csv a-010.csv b08.csv b09.csv b10.csv"),
        ("a-[12].csv", "a-[12].csv"),
        ("none.csv", "none.csv"),
        ("a.zip/b[1].csv", "a.zip/b[1].csv"),
    ],
)
def test_the_files_of_a_pattern(pattern: str, expected: str) -> None:
    for name in ("a-1.csv", "a-2.csv", "a-10.csv", "a-[12].csv", "a.zip", "s2/a-1.csv"):
        write(Path(name), "")
    write(Path("s10/a-0.csv"), "")
    assert list(map(str, list_parts(pattern))) == expected.split()


@pytest.mark.parametrize(
    ("pattern", "code"),
    [("tran-*.csv", "E043"), ("no/*.csv", "E043"), ("*", "E002"), ("{train-1,link}.csv", "E042")],
)
def test_patterns_that_are_refused(pattern: str, code: str) -> None:
    write(Path("train-1.csv"), "")
    write(Path("folder/train-2.csv"), "")
    os.link("train-1.csv", "link.csv")
    with pytest.raises(DataError) as caught:
        list_parts(pattern)
    assert caught.value.problems[0].code == code
    assert len(str(caught.value).splitlines()) == 1
    assert pattern != "tran-*.csv" or "train-*.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train-00000-of-00002.csv train-00001-of-00002.csv test-00000-of-00001.csv", True),
        ("train-1.csv.gz train-2.csv.gz test-0.csv.gz", True),
        ("train-0.csv train-1.csv test.csv", True),
        ("train-0.csv train-1.csv", True),
        ("part_1.npy part_2.npy labels.txt", True),
        ("train-00000-of-00003.csv train-00001-of-00003.csv", False),
        ("train-0.csv train-2.csv", False),
        ("train-2019.csv train-2020.csv", False),
        ("train-1.csv train-b.csv", False),
    ],
)
def test_numbered_files_of_a_folder_belong_together(names: str, expected: bool) -> None:
    for name in names.split():
        write(Path("set", name), "")
    if not expected:
        with pytest.raises(UsageError):
            find_tables(Path("set"))
        return
    train, test = find_tables(Path("set"))
    found = [*list_parts(train), *([test] if test else [])]
    assert [path.name for path in found] == [n for n in names.split() if n != "labels.txt"]


# --- several files are the one file of their rows ---


def put(name: str, rows: slice = slice(N), labels: object = LABELS, end: str = "csv") -> Path:
    if end == "npy":
        write(Path(f"y_{name}.npy"), npy(LABELS[rows]))
        return write(Path(f"x_{name}.npy"), npy(PIXELS[rows]))
    return write(Path(f"{name}.{end}"), csv_text(PIXELS[rows], np.asarray(labels)[rows]))


@pytest.mark.parametrize("end", ["csv", "csv.gz", "npy"])
def test_files_are_read_as_one(end: str) -> None:
    one = read_table(put("all", end=end), "store")
    for number, rows in enumerate(HALVES):
        put(f"train-{number + 9}", rows, end=end)  # 9 comes before 10
    pattern = f"{'x_' if end == 'npy' else ''}train-*.{end}"
    joined = read_table(pattern, "store")
    np.testing.assert_array_equal(joined.pixels[:], PIXELS)
    np.testing.assert_array_equal(joined.label_index, one.label_index)
    same = ("label_values", "digest", "label_digest", "form", "first_line", "layout")
    assert [getattr(joined, name) for name in same] == [getattr(one, name) for name in same]
    record = joined.to_record()
    assert (record["path"], record["rows"]) == (pattern, N)
    assert [part["rows"] for part in record["parts"]] == [5, 7]
    assert "parts" not in one.to_record()


def test_each_file_has_a_store_of_its_own() -> None:
    for number, rows in enumerate(HALVES):
        put(f"train-{number}", rows)
    first = read_table("train-*.csv", "store")
    stores = {path: path.stat().st_mtime_ns for path in Path("store").glob("*/*")}
    assert read_table("train-*.csv", "store").sha256 == first.sha256
    put("train-2", slice(0, 3))
    more = read_table("train-*.csv", "store")
    assert len(more.pixels) == N + 3
    now = {path: path.stat().st_mtime_ns for path in Path("store").glob("*/*")}
    assert now.items() > stores.items()
    assert len({path.parent for path in now}) == 3
    put("train-1", slice(5, N - 1))
    assert read_table("train-*.csv", "store").sha256 not in (first.sha256, more.sha256)


def test_more_files_than_may_be_open_at_first() -> None:
    for number in range(24):
        write(Path(f"x-{number}.npy"), npy(PIXELS[:1] // 24 * number))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, limits[1]))
    try:
        assert len(read_table("x-*.npy", "store").pixels) == 24
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_classes_are_those_of_all_files() -> None:
    put("train-0", labels=["b"] * N)
    put("train-1", labels=["c", "a"] * 6)
    table = read_table("train-*.csv", "store")
    assert table.label_values == ("a", "b", "c")
    assert table.label_index.tolist() == [1] * N + [2, 0] * 6


def test_without_a_header_the_first_file_decides_which_column_is_the_label() -> None:
    pixels = np.zeros((60, 784), int)
    pixels[:, 300:500] = np.random.default_rng(0).integers(0, 256, (60, 200))
    rows = [[k % 10, *row] for k, row in enumerate(pixels.tolist())]
    for number, part in enumerate((rows[:59], rows[59:])):  # one row tells nothing by themselves
        write(Path(f"train-{number}.csv"), "".join(",".join(map(str, r)) + "\n" for r in part))
    assert code_of(read_table, "train-1.csv", "store")[0] == "E026"
    table = read_table("train-*.csv", "store")
    assert [table.label_values[k] for k in table.label_index] == [str(k % 10) for k in range(60)]


@pytest.mark.parametrize(
    "content",
    [
        csv_text().partition("\n")[2],
        csv_text(labels=None),
        csv_text(labels=["shirt", "bag", "shoe"] * 4),
        csv_text().replace("\n", ",0\n").replace("pixel784,0", "pixel784,id"),
        idx(PIXELS.reshape(-1, 28, 28)),
        npy(np.zeros((N, 32, 32), np.uint8)),
    ],
    ids=["no header", "no labels", "names", "another column", "IDX", "NPY"],
)
def test_the_file_that_differs_is_named(content: str | bytes) -> None:
    for number in range(3):
        put(f"train-{number}")
    write(Path("train-1.csv"), content)
    assert code_of(read_table, "train-*.csv", "store") == ("E046", "train-1.csv", None)


def test_faults_have_the_line_of_their_own_file() -> None:
    put("train-0")
    write(Path("train-1.csv"), csv_text().replace("\n5,", "\n5,999,", 1))
    code, path, line = code_of(read_table, "train-*.csv", "store")
    assert (code, path, line) == ("E019", "train-1.csv", 3)
    put("train-1")
    for number, labels in enumerate(([4] * N, [5] * 8 + [9] * 4)):
        put(f"test-{number}", labels=labels)
    read = lambda: read_dataset("train-*.csv", store_dir=Path("store"), say=pytest.fail)  # noqa: E731
    assert code_of(read) == ("E028", "test-1.csv", 10)


# --- train and test ---


def read(data: str, **options: object):
    return read_dataset(data, store_dir=Path("store"), say=pytest.fail, **options)


def test_train_and_test_files() -> None:
    for number, rows in enumerate(HALVES):
        put(f"train-{number}", rows)
        write(Path(f"test-{number}.csv"), csv_text(255 - PIXELS[rows], LABELS[rows]))
    dataset = read("train-*.csv")
    assert [len(part.labels) for part in (dataset.train, dataset.test)] == [N, N]
    assert not any("W040" in warning for warning in dataset.warnings)
    paths, lines = dataset.test.find(np.array([0, 4, 5, 11]))
    assert paths == ["test-0.csv"] * 2 + ["test-1.csv"] * 2
    assert lines.tolist() == [2, 6, 2, 8]
    again = read("train-{0..1}.csv", test_data="test-*.csv")
    assert again.sha256 == dataset.sha256
    with pytest.raises(UsageError, match=r"train-0\.csv and test-0\.csv"):
        read("t*.csv")
    put("other")
    overlap = "{other,train-1}.csv"
    assert code_of(lambda: read("train-*.csv", test_data=overlap))[:2] == ("E042", "train-1.csv")


def test_held_out_rows_are_those_of_one_file() -> None:
    labels = np.arange(40) % 4
    pixels = np.random.default_rng(0).integers(0, 256, (40, 784), np.uint8)
    one = write(Path("all.csv"), csv_text(pixels, labels))
    for number, rows in enumerate((slice(0, 25), slice(25, 40))):
        write(Path(f"part-{number}.csv"), csv_text(pixels[rows], labels[rows]))
    expected, found = read(str(one)), read("part-*.csv")
    for part in ("train", "test"):
        of_one, of_parts = (getattr(dataset, part) for dataset in (expected, found))
        assert of_parts.digest == of_one.digest
        np.testing.assert_array_equal(of_parts.pixels[:], of_one.pixels[:])
        np.testing.assert_array_equal(of_parts.labels, of_one.labels)
    summaries = (dataset.summary.to_arrays() for dataset in (expected, found))
    for (name, array), (_, other) in zip(*(each.items() for each in summaries), strict=True):
        np.testing.assert_array_equal(array, other, err_msg=name)


# --- rows ---


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    key=st.slices(12) | st.lists(st.integers(0, 11), max_size=9) | st.integers(0, 11),
    picked=st.lists(st.integers(0, 11), min_size=12, max_size=12) | st.none(),
)
def test_joined_rows_are_indexed_as_one_array(sizes, key, picked) -> None:
    sizes = [*sizes, max(12 - sum(sizes), 0)]
    whole = np.random.default_rng(0).integers(0, 256, (sum(sizes), 3), np.uint8)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    rows = None if picked is None else np.array(picked)
    expected = whole if rows is None else whole[rows]
    joined = JoinedRows(parts, rows)
    assert len(joined) == len(expected)
    key = np.array(key, int) if isinstance(key, list) else key
    np.testing.assert_array_equal(joined[key], expected[key])


# --- the commands ---


@pytest.mark.slow
def test_commands_read_several_files_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    from toyrun import draw, write_csv

    from fmnist_tf import evaluate, load_run, predict, train

    names = ["bag", "hat", "shoe"]
    pixels, labels = draw(90, 0), [names[k % 3] for k in range(90)]
    write_csv("toy_train.csv", pixels, labels)
    for number, rows in enumerate((slice(0, 20), slice(20, 90))):
        write_csv(f"toy_train-{number}.csv", pixels[rows], labels[rows])
        write_csv(f"toy_test-{number}.csv", draw(9, 1 + number), (names * 3))
    words = "--phase scratch --backbone mlp --epochs 1 --batch-size 16 --wandb disabled".split()
    test = ["--test-data", "toy_test-*.csv"]
    assert train.main([*words, *test, "--run", "one", "--data", "toy_train.csv"]) == 0
    assert train.main([*words, "--run", "many", "--data", "toy_train-*.csv"]) == 0
    one, many = (load_run(Path("runs", name)) for name in ("one", "many"))
    assert one.history.drop(columns="seconds").equals(many.history.drop(columns="seconds"))
    np.testing.assert_array_equal(one.confusion, many.confusion)
    assert len(many.predict("toy_test-*.csv")) == 18
    assert "toy_test-1.csv line" in Path("runs/many/report.html").read_text()
    assert many.evaluate("toy_test-*.csv").accuracy == many.accuracy
    assert predict.main(["many", "toy_test-*.csv", "--out", "out.csv"]) == 0
    rows = [line.split(",")[:2] for line in Path("out.csv").read_text().splitlines()]
    assert rows[10:12] == [['"toy_test-1.csv"', "2"], ['"toy_test-1.csv"', "3"]]
    write_csv("toy_train-1.csv", pixels[20:], labels[19:89])
    assert evaluate.main(["many"]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert train.main([*words, "--data", "toy_tran*.csv"]) == 2
