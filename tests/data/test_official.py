"""The official files: verified, unpacked within bounds, kept in the pixel store."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data import official
from fmnist_tf.errors import UsageError

README = Path(__file__).parents[2] / "data" / "README.md"


def idx_gz(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def test_read_idx_gives_the_array(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x.gz").write_bytes(idx_gz(array))
    np.testing.assert_array_equal(official.read_idx(tmp_path / "x.gz", n_dimensions=3), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_gz(np.zeros((2, 3))), "its header is 00 00 08 02"),
        (gzip.compress(b""), "its header is missing"),
        (gzip.compress(bytes([0, 0, 8, 1, 0])), "its header is 00 00 08 01"),
        (gzip.compress(bytes([0, 0, 8, 1, 0xFF, 0xFF, 0xFF, 0xFF])), "announces 4294967295 bytes"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 7])), ": 1 bytes where 9 are announced"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7, 7])), "more than 1 bytes where 1"),
        (idx_gz(np.zeros(900))[:-12], "corrupt gzip data"),
        (b"label,pixel1\n", "corrupt gzip data"),
        (gzip.compress(b"")[:10] + b"\x07", "corrupt gzip data"),  # no such kind of block
    ],
    ids=range(9),
)
def test_read_idx_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        official.read_idx(path, n_dimensions=1)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_the_readme_states_every_sum() -> None:
    lines = README.read_text().splitlines()
    for name, sha256 in official.SHA256.items():
        assert any(f"`{name}`" in line and f"`{sha256}`" in line for line in lines)


@pytest.mark.real
def test_the_official_images_are_stored_as_they_are(
    keras_home_with_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(keras_home_with_data))
    said: list[str] = []
    for _ in range(2):
        tables = official.read_official(tmp_path / "downloads", tmp_path / "store", said.append)
    assert said == []
    assert (tables[0].digest, tables[0].label_digest) == official.DIGESTS
    folder = keras_home_with_data / "datasets/fashion-mnist"
    for table, images, labels, per_class in (
        (tables[0], official.TRAIN_IMAGES, official.TRAIN_LABELS, 6000),
        (tables[1], official.TEST_IMAGES, official.TEST_LABELS, 1000),
    ):
        assert (table.path, table.sha256) == (str(folder / images), official.SHA256[images])
        assert table.pixels.tobytes() == gzip.decompress((folder / images).read_bytes())[16:]
        expected = np.frombuffer(gzip.decompress((folder / labels).read_bytes())[8:], np.uint8)
        np.testing.assert_array_equal(table.label_index, expected)
        assert np.bincount(table.label_index).tolist() == [per_class] * 10
