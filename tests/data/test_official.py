"""The official files: verified, unpacked within bounds, kept in the pixel store."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data import official

README = Path(__file__).parents[2] / "data" / "README.md"


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
