"""The official files: found, verified, unpacked within bounds, converted cell by cell."""

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fmnist_tf.data import official
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.system.files import file_digest

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "keras" / "datasets" / "fashion-mnist"


def idx_gz(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    st.integers(0, 255),
)
@settings(max_examples=50, deadline=None)
def test_csv_pieces_write_what_the_csv_module_reads(pixels, label):
    labels = np.full(len(pixels), label)
    lines = b"".join(official.csv_pieces(pixels, labels)).decode().split("\n")
    header = ["label", *(f"pixel{i}" for i in range(1, pixels.shape[1] + 1))]
    rows = [[label, *row] for row in pixels.tolist()]
    assert lines == [*(",".join(map(str, row)) for row in [header, *rows]), ""]


def test_csv_pieces_are_many_for_a_long_file():
    pixels = np.arange(5000, dtype=np.uint8)[:, None]
    pieces = list(official.csv_pieces(pixels, np.zeros(5000, np.int64)))
    assert len(pieces) == 3  # the header and two blocks
    assert b"".join(pieces).count(b"\n") == 5001
    assert pieces[-1].endswith(b"0,135\n")


def test_read_idx_gives_the_array(tmp_path):
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x.gz").write_bytes(idx_gz(array))
    assert (official.read_idx(tmp_path / "x.gz", n_dimensions=3) == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_gz(np.zeros((2, 3))), "its first bytes are 00 00 08 02"),
        (gzip.compress(b""), "its first bytes are missing"),
        (gzip.compress(bytes([0, 0, 8, 1, 0])), "its first bytes are 00 00 08 01"),
        (gzip.compress(bytes([0, 0, 8, 1, 0xFF, 0xFF, 0xFF, 0xFF])), "announces 4294967295 bytes"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 7])), ": 1 bytes where 9 are announced"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7, 7])), "more than 1 bytes where 1"),
        (idx_gz(np.zeros(900))[:-12], "damaged gzip data"),
        (b"label,pixel1\n", "damaged gzip data"),
        (gzip.compress(b"")[:10] + b"\x07", "damaged gzip data"),  # no such kind of block
    ],
    ids=range(9),
)
def test_read_idx_refuses(tmp_path, content, message):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        official.read_idx(path, n_dimensions=1)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "expected a gzipped IDX file of bytes with 1 dimensions. hint: " in str(error.value)


@pytest.fixture
def two_files(monkeypatch, tmp_path):
    """A cache that should hold two files and holds one; the other can only be downloaded."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(official, "BASE_URL", "http://127.0.0.1:9/")  # the discard port: refused
    contents = {"a.gz": b"a" * 100, "b.gz": b"b" * 100}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(official, "SHA256", sums)
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    (cache / "a.gz").write_bytes(contents["a.gz"])
    return cache, tmp_path / "downloads", contents


def test_cached_and_downloaded_files_are_used_in_silence(two_files):
    cache, downloads, contents = two_files
    downloads.mkdir()
    (downloads / "b.gz").write_bytes(contents["b.gz"])
    said = []
    found = official.find_official_files(downloads, said.append)
    assert found == {"a.gz": cache / "a.gz", "b.gz": downloads / "b.gz"}
    assert said == []


def test_a_missing_file_is_downloaded_and_said(two_files):
    _, downloads, _ = two_files
    said = []
    with pytest.raises(DownloadError, match=r"cannot download http://127\.0\.0\.1:9/b\.gz: "):
        official.find_official_files(downloads, said.append)
    assert said == ["downloading http://127.0.0.1:9/b.gz"]


def test_a_wrong_cached_file_is_named_left_alone_and_not_used(two_files):
    cache, downloads, contents = two_files
    (cache / "b.gz").write_bytes(b"broken")
    downloads.mkdir()
    (downloads / "b.gz").write_bytes(contents["b.gz"])
    said = []
    found = official.find_official_files(downloads, said.append)
    assert found["b.gz"] == downloads / "b.gz"
    assert len(said) == 1
    assert said[0].startswith(f"{cache / 'b.gz'} is not used: SHA-256 ")
    assert (cache / "b.gz").read_bytes() == b"broken"


def test_the_test_file_is_written_before_the_train_file(monkeypatch, tmp_path):
    files = {}
    for name, array in {
        official.TRAIN_IMAGES: np.zeros((3, 28, 28)),
        official.TRAIN_LABELS: np.arange(3),
        official.TEST_IMAGES: np.ones((2, 28, 28)),
        official.TEST_LABELS: np.arange(2),
    }.items():
        files[name] = tmp_path / name
        files[name].write_bytes(idx_gz(array))
    written = []
    monkeypatch.setattr(
        official, "write_csv", lambda path, pixels, labels: written.append((path, pixels.shape))
    )
    train, test = official.write_official_csvs(files, tmp_path / "data")
    assert written == [(test, (2, 784)), (train, (3, 784))]
    assert (train.name, test.name) == ("fashion-mnist_train.csv", "fashion-mnist_test.csv")


def test_the_readme_states_every_sum():
    readme = (ROOT / "data" / "README.md").read_text()
    for name, sha256 in {**official.SHA256, **official.CSV_SHA256}.items():
        assert any(f"`{name}`" in line and f"`{sha256}`" in line for line in readme.splitlines())


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no official files in {REAL}")
def test_the_official_files_become_the_csvs_of_the_readme(monkeypatch, tmp_path):
    cache = tmp_path / "datasets" / "fashion-mnist"
    shutil.copytree(REAL, cache)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    files = official.find_official_files(tmp_path / "downloads", pytest.fail)
    paths = official.write_official_csvs(files, tmp_path / "data")
    for path, images, labels, n_rows in zip(
        paths,
        ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
        ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        (60_000, 10_000),
        strict=True,
    ):
        assert file_digest(path) == official.CSV_SHA256[path.name]
        rows = pd.read_csv(path, dtype=np.uint8).to_numpy()
        assert rows.shape == (n_rows, 785)
        pixels = np.frombuffer(gzip.decompress((cache / images).read_bytes())[16:], np.uint8)
        assert (rows[:, 1:].ravel() == pixels).all()
        expected = np.frombuffer(gzip.decompress((cache / labels).read_bytes())[8:], np.uint8)
        assert (rows[:, 0] == expected).all()
