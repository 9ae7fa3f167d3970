"""Tables: the same images are the same table in every form; what does not fit is told."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from forms import LABELS, PIXELS, N, csv_text, idx, npy, png, write, write_pictures
from hypothesis import given
from hypothesis import strategies as st

from fmnist_tf.data.arrays import read_array
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.files import File
from fmnist_tf.data.images import Table
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError

SQUARES = PIXELS.reshape(-1, 28, 28)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def labels_of(table: Table) -> list[str]:
    assert table.label_index is not None
    return [table.label_values[k] for k in table.label_index]


def code_of(path: Path, store: Path, **options: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, store, **options)
    (problem,) = caught.value.problems
    assert problem.expected
    return problem.code


def pack(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make(folder: Path, form: str) -> Path:
    """Write the images and labels in one form; return what names them."""
    if form.startswith("idx"):
        end = ".gz" if form == "idx.gz" else ""
        write(folder / f"emnist-letters-train-labels-idx1-ubyte{end}", idx(LABELS))
        return write(folder / f"emnist-letters-train-images-idx3-ubyte{end}", idx(SQUARES))
    if form == "npy":
        write(folder / "y_train.npy", npy(LABELS[:, None].astype(float)))
        return write(folder / "x_train.npy", npy(SQUARES.astype(np.int64)))
    if form == "npz":
        np.savez_compressed(folder / "a.npz", train_images=SQUARES, train_labels=LABELS)
        return folder / "a.npz" / "train_images.npy"
    if form == "zip":
        members = {"sub/train.csv": csv_text().encode(), "sub/other.csv": b"x"}
        return pack(folder / "a.zip", **members) / "sub" / "train.csv"
    if form == "pictures":
        write_pictures(folder / "pictures", PIXELS[LABELS.argsort(kind="stable")], np.sort(LABELS))
        write(folder / "pictures" / "4" / ".DS_Store", b"\0")
        return folder / "pictures"
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow.parquet import write_table

    cells = {"image": [{"bytes": png(image), "path": None} for image in SQUARES]}
    if form == "columns.parquet":
        cells = {f"pixel{i + 1}": PIXELS[:, i] for i in range(784)}
    write_table(pa.table({"label": LABELS, **cells}), folder / form)
    return folder / form


FORMS = "idx idx.gz npy npz zip pictures columns.parquet pictures.parquet".split()


@pytest.mark.parametrize("form", FORMS)
def test_the_images_are_the_same_in_every_form(tmp_path: Path, store: Path, form: str) -> None:
    path = make(tmp_path, form)
    first, second = read_table(path, store), read_table(path, store)
    order = LABELS.argsort(kind="stable") if form == "pictures" else np.arange(N)
    for table in (first, second):
        np.testing.assert_array_equal(table.pixels, PIXELS[order])
        assert labels_of(table) == [str(label) for label in LABELS[order]]
        assert (table.path, table.label_values) == (str(path), ("4", "5", "6"))
        assert table.digest == hashlib.sha256(PIXELS[order].tobytes()).hexdigest()
    assert first.sha256 == second.sha256
    assert first.form in form or form in ("zip", "npz", "idx.gz")
    if path.is_file():
        assert first.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["npz", "zip", "pictures"])
def test_the_checksum_is_that_of_the_content(tmp_path: Path, store: Path, form: str) -> None:
    path = make(tmp_path, form)
    before = read_table(path, store)
    if form == "zip":
        pack(tmp_path / "a.zip", **{"sub/train.csv": csv_text(255 - PIXELS).encode()})
    elif form == "npz":
        np.savez(tmp_path / "a.npz", train_images=255 - SQUARES, train_labels=LABELS)
    else:
        (path / "4" / "000.png").rename(path / "5" / "first.png")
    after = read_table(path, store)
    assert after.sha256 != before.sha256
    assert after.digest != before.digest or labels_of(after).count("5") == 5


@pytest.mark.parametrize("shape", [(N, 32, 32), (N, 28, 28, 3), (N, 3, 32, 32), (N, 1024)])
def test_other_squares_become_28x28(tmp_path: Path, store: Path, shape) -> None:
    table = read_table(write(tmp_path / "x.npy", npy(np.full(shape, 77, np.uint8))), store)
    np.testing.assert_array_equal(table.pixels, np.full((N, 784), 77))
    assert (table.label_index, len(table.decisions)) == (None, 1)


def test_the_channels_may_be_first_or_last(tmp_path: Path, store: Path) -> None:
    def pixels(array: np.ndarray) -> np.ndarray:
        return read_table(write(tmp_path / "x.npy", npy(array)), store).pixels

    colour = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    np.testing.assert_array_equal(pixels(colour), pixels(np.moveaxis(colour, -1, 1)))
    np.testing.assert_allclose(
        pixels(colour)[0, 1], colour[0, 0, 1] @ [0.299, 0.587, 0.114], atol=1
    )
    np.testing.assert_array_equal(pixels(SQUARES[..., np.newaxis]), PIXELS)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (idx(SQUARES)[:-1], "E045"),
        (idx(SQUARES) + b"\0", "E045"),
        (idx(SQUARES)[:9], "E045"),
        (idx(SQUARES[:, :27]), "E045"),
        (idx(SQUARES, dtype=13), "E045"),
        (idx(SQUARES[:0]), "E005"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "E045"),
        (npy(SQUARES / 255), "E034"),
        (npy(SQUARES - 300.0), "E034"),
        (npy(np.full((2, 28, 28), np.nan)), "E034"),
        (npy(np.array([["a"]])), "E034"),
        (npy(SQUARES)[:-1], "E045"),
        (npy(SQUARES)[:30], "E045"),
        (npy(SQUARES[:, :5]), "E045"),
        (b"\x93NUMPY\x09\0" + bytes(60), "E045"),
        (b"\x93NUMPY\1\0\x20\0" + b"{'descr': (((".ljust(32), "E045"),
        (npy(SQUARES) + b"\0", "E045"),
        (npy(SQUARES).replace(b"(12, 28, 28)", b"(9999999999999, 28, 28)", 1), "E045"),
        (npy(np.zeros((2, 2, 2, 2, 2), np.uint8)), "E045"),
        (npy(np.uint8(3)), "E005"),
    ],
)
def test_arrays_that_hold_no_images(tmp_path: Path, store: Path, content, code: str) -> None:
    assert code_of(write(tmp_path / "train-images-idx3-ubyte", content), store) == code
    assert not list(store.glob("*"))


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path, store: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    assert code_of(write(tmp_path / "x.npy", buffer.getvalue()), store) == "E045"


@given(st.binary(max_size=40), st.sampled_from([b"", idx(SQUARES)[:16], npy(SQUARES)[:128]]))
def test_any_bytes_are_an_array_or_a_clear_error(
    tmp_path_factory, tail: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(head + tail)
    with suppress(DataError):
        assert isinstance(read_array(path), np.ndarray)


def test_archives_that_are_damaged_or_grow_too_much(tmp_path: Path, store: Path) -> None:
    path = write(tmp_path / "train-images-idx3-ubyte.gz", idx(SQUARES))
    path.write_bytes(path.read_bytes()[:-9])
    assert code_of(path, store) == "E008"
    huge = idx(np.zeros((110_000, 28, 28), np.uint8))
    assert code_of(write(tmp_path / "x-images-idx3-ubyte.gz", huge), store) == "E007"
    archive = pack(tmp_path / "a.zip", **{"train.csv": csv_text().encode()})
    assert code_of(archive / "test.csv", store) == "E001"
    workbook = {"[Content_Types].xml": b"", "xl/workbook.xml": b""}
    assert code_of(pack(tmp_path / "a.xlsx", **workbook), store) == "E009"
    nested = pack(tmp_path / "b.zip", **{"train.zip": archive.read_bytes()})
    assert code_of(nested / "train.zip", store) == "E009"
    archive.write_bytes(archive.read_bytes()[:999])
    assert code_of(archive / "train.csv", store) == "E008"


def test_a_file_that_grows_ends_where_it_ended_at_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "x" * 1000)
    with File(path) as file:
        write(path, "x" * 5000)
        assert len(b"".join(file.read_blocks(500))) == 1000
        with pytest.raises(DataError, match="E041"):
            file.check_unchanged()


# --- folders of pictures ---


def test_grey_28x28_keeps_its_polarity_and_others_are_converted(tmp_path: Path, store) -> None:
    white = np.pad(np.zeros((10, 10), np.uint8), 9, constant_values=255)
    large = np.full((200, 160, 3), 250, np.uint8)
    large[60:140, 50:110] = (200, 10, 10)
    write(tmp_path / "set" / "a" / "1.png", png(white))
    write(tmp_path / "set" / "b" / "2.png", png(np.dstack([white] * 3)))
    write(tmp_path / "set" / "b" / "3.png", png(large))
    table = read_table(tmp_path / "set", store)
    assert labels_of(table) == ["a", "b", "b"]
    np.testing.assert_array_equal(table.pixels[:2], [white.ravel()] * 2)
    assert table.pixels[2].max() > 100
    assert table.pixels[2, 0] == 0  # the default background
    light = read_table(tmp_path / "set", store, convention=Convention(255, 20))
    assert light.pixels[2, 0] == 255
    np.testing.assert_array_equal(light.pixels[:2], [white.ravel()] * 2)


def test_bad_pictures_are_counted_and_the_first_named(tmp_path: Path, store: Path) -> None:
    write_pictures(tmp_path / "set")
    for k in range(7):
        write(tmp_path / "set" / "5" / f"note{k}.txt", "no picture")
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "set", store)
    (problem,) = caught.value.problems
    assert problem.code == "E045"
    assert "7 of 19" in problem.found
    assert [f"note{k}.txt" in problem.found for k in (0, 4, 5)] == [True, True, False]
    (tmp_path / "empty" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "empty" / "a" / "pipe")
    with pytest.raises(DataError, match="a pipe, socket or device"):
        read_table(tmp_path / "empty", store)
    (tmp_path / "empty" / "a" / "pipe").unlink()
    assert code_of(tmp_path / "empty", store) == "E005"


def test_the_name_of_a_picture_may_be_any_bytes(tmp_path: Path, store: Path) -> None:
    write_pictures(tmp_path / "set")
    before = read_table(tmp_path / "set", store)
    first = min((tmp_path / "set").glob("*/*"))
    first.rename(os.fsdecode(os.fsencode(first.parent) + b"/!\xff.png"))
    after = read_table(tmp_path / "set", store)
    assert (after.digest, after.sha256 == before.sha256) == (before.digest, False)


# --- Parquet ---


def test_without_pyarrow_the_step_that_works_is_named(tmp_path, store, monkeypatch) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1....PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        read_table(path, store)


def test_grey_pictures_among_coloured_ones_in_parquet(tmp_path: Path, store: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow.parquet import write_table

    pictures = SQUARES[0], np.dstack([SQUARES[1], SQUARES[2], SQUARES[3]])
    cells = [{"bytes": png(picture), "path": None} for picture in pictures]
    write_table(pa.table({"img": cells}), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", store)
    np.testing.assert_array_equal(table.pixels[0], PIXELS[0])
    np.testing.assert_allclose(
        table.pixels[1], [0.299, 0.587, 0.114] @ PIXELS[1:4].astype(float), atol=0.51
    )
    assert table.label_index is None


def test_parquet_that_holds_no_images(tmp_path: Path, store: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow.parquet import write_table

    def code(label_column: str | None = None, **columns: object) -> str:
        write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(DataError) as caught:
            read_table(tmp_path / "a.parquet", store, label_column=label_column)
        assert {problem.path for problem in caught.value.problems} == {str(tmp_path / "a.parquet")}
        return caught.value.problems[0].code

    good = {"bytes": png(SQUARES[0]), "path": None}
    assert code(image=[good, {"bytes": b"\x89PNG", "path": None}], label=[1, 2]) == "E045"
    flat = {"bytes": png(SQUARES[0][:20]), "path": None}
    clear = {"bytes": png(np.zeros((28, 28, 4), np.uint8)), "path": None}
    assert code(image=[good, flat], label=[1, 2]) == code(image=[clear], label=[1]) == "E045"
    assert code(image=[good], fine=[1], coarse=[1]) == "E026"
    assert code("nothing", image=[good], fine=[1]) == "E026"
    assert code(image=[good, good], label=[1, None]) == "E027"
    assert code(text=["a"], label=[1]) == "E020"
    write(tmp_path / "b.parquet", b"PAR1....PAR1")
    assert code_of(tmp_path / "b.parquet", store) == "E008"
