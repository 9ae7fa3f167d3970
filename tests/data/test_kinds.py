"""Kinds: every format is recognised by its first bytes, and refused with a step that works."""

from __future__ import annotations

import io
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from forms import csv_text, npy
from PIL import Image
from scipy.io import loadmat, savemat

from fmnist_tf.data.kinds import recognise, recognise_zip
from fmnist_tf.data.tables import read_table as read_csv
from fmnist_tf.errors import DataError


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("head", "form", "word"),
    [
        (b"label,pixel1\n", "text", "text"),
        (b"", "text", "empty"),
        (b"BMI,x\n", "text", "text"),
        (b"\x1f\x8b\x08", "gzip", "gzip"),
        (b"BZh91AY", "bzip2", "bzip2"),
        (b"\xfd7zXZ\x00\x00", "xz", "xz"),
        (b"PK\x03\x04\x14\0", "zip", "zip"),
        (b"\0\0\x08\x03\0\0\0\x05", "idx", "IDX"),
        (b"\0\0\x08\x01\0\0\0\x05", "idx labels", "label"),
        (b"PAR1\x15\x04", "parquet", "Parquet"),
        (npy(np.zeros(3)), "npy", "NumPy"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "other", "xls"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "other", "MAT"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "other", "7.3"),
        (b"\x89HDF\r\n\x1a\n", "other", "HDF5"),
        *((pickle.dumps([1], protocol=p), "other", "pickle") for p in (2, 3, 4, 5)),
        (tarfile.TarInfo("train.csv").tobuf(), "other", "tar"),
        (b"Rar!\x1a\x07\x01\x00", "other", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "other", "7z"),
        *((picture(form), "picture", form) for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP")),
        (picture("WEBP"), "picture", "WebP"),
        (b"\0\0\0\x18ftypheic", "other", "HEIC"),
        (b'<?xml version="1.0"?>\n<!-- a --><svg xmlns="x">', "other", "SVG"),
        (b"<svg>", "other", "SVG"),
        (b"\n<!DOCTYPE html><html><svg>", "other", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "other", "LFS"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(head: bytes, form: str, word: str) -> None:
    kind = recognise(head[:512])
    assert kind.form == form
    assert word in kind.name
    assert (kind.hint == "") == (form == "text")


@pytest.mark.parametrize(
    ("names", "form", "word"),
    [
        (["[Content_Types].xml", "xl/workbook.xml"], "other", "xlsx"),
        (["[Content_Types].xml", "word/document.xml"], "other", "office"),
        (["mimetype", "content.xml"], "other", "office"),
        (["x_train.npy", "y_train.npy"], "npz", "npz"),
        (["a/", "a/train.csv", "a/x.npy"], "zip", "zip"),
        ([], "zip", "zip"),
    ],
)
def test_an_archive_is_known_by_its_members(names: list[str], form: str, word: str) -> None:
    kind = recognise_zip(names)
    assert (kind.form, word in kind.name) == (form, True)


def run_hint(hint: str, folder: Path) -> None:
    """Run the Python command in a hint, as a shell would."""
    words = shlex.split(hint[hint.index("python -c ") :])
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=100, cwd=folder)


LABELS = [3, 5, 3, 0]
PIXELS = np.arange(4 * 784).reshape(4, 784) % 256
ROWS = np.column_stack([LABELS, PIXELS])
HEADER = ["label", *(f"pixel{i}" for i in range(1, 785))]


@pytest.mark.parametrize("name", ["a.mat", "a.h5", "a.pkl", "a.npz"])
def test_the_lines_of_a_hint_write_a_csv_that_is_read(tmp_path, monkeypatch, name: str) -> None:
    path, arrays = tmp_path / name, {"labels": np.array(LABELS), "pixels": PIXELS}
    if name == "a.mat":
        savemat(path, arrays)
        arrays = {key: np.squeeze(loadmat(path)[key]) for key in arrays}
    elif name == "a.h5":
        with h5py.File(path, "w") as file:
            file.update(arrays)
    elif name == "a.pkl":
        path.write_bytes(pickle.dumps(arrays))
    else:
        np.savez(path, **arrays)
    head = path.read_bytes()[:512]
    kind = recognise_zip(zipfile.ZipFile(path).namelist()) if name == "a.npz" else recognise(head)
    monkeypatch.chdir(tmp_path)
    exec(kind.hint[kind.hint.index("numpy.savetxt") :], {"numpy": np, **arrays})
    table = read_csv("my.csv", tmp_path / "store")
    np.testing.assert_array_equal(table.pixels, PIXELS)
    assert [table.label_values[k] for k in table.label_index] == list(map(str, LABELS))


@pytest.mark.parametrize(
    "name", ["PATH of CSV.npy", "it's.npy", 'quo"te $x.npy', "ä.xlsx", "a.parquet", "a.feather"]
)
def test_the_command_of_a_hint_makes_a_csv_that_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, ROWS)
        kind = recognise(path.read_bytes()[:512])
    elif path.suffix == ".xlsx":
        workbook = pytest.importorskip("openpyxl", reason="openpyxl writes Excel files").Workbook()
        for row in (HEADER, *ROWS.tolist()):
            workbook.active.append(row)
        workbook.save(path)
        kind = recognise_zip(["xl/workbook.xml"])
    else:
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet and Feather")
        import pandas as pd

        frame = pd.DataFrame(ROWS, columns=HEADER)
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_feather(path)
        kind = recognise(path.read_bytes()[:512])
    (problem,) = kind.refuse(path).problems
    assert problem.code == "E009"
    run_hint(problem.hint, tmp_path)
    table = read_csv(f"{path}.csv", tmp_path / "store")
    np.testing.assert_array_equal(table.pixels, PIXELS)
    assert [table.label_values[k] for k in table.label_index] == list(map(str, LABELS))


def test_the_command_of_a_hint_unpacks_a_tar_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    (tmp_path / "train.csv").write_text(csv_text(PIXELS, LABELS))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "train.csv", "train.csv")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match="E009") as caught:
        read_csv(path, tmp_path / "store")
    command = caught.value.problems[0].hint.partition(": ")[2]
    subprocess.run(shlex.split(command), check=True, timeout=100, cwd=tmp_path)
    np.testing.assert_array_equal(read_csv(tmp_path / "train.csv", tmp_path).pixels, PIXELS)


def test_the_command_of_a_hint_makes_a_png_of_a_heic_image(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif reads HEIC")
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(path)
    run_hint(recognise(path.read_bytes()[:512]).refuse(path).problems[0].hint, tmp_path)
    assert Image.open(f"{path}.png").size == (64, 64)
