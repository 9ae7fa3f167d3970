"""Fashion-MNIST's four official files, from Keras' cache or the mirror that Keras uses."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.downloads import find_or_fetch, keras_home
from fmnist_tf.data.images import Table
from fmnist_tf.data.store import read_store, write_store

BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
SHA256 = {
    TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
DIGESTS = (
    "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "d69b1d6e0b8064974aa5aecc2786f961b8b2be829ee3a39dd8989efee46cad5a",
)
"""Of the train table: `digest` and `label_digest`. A CSV of the same rows is known by them."""


def read_official(
    download_dir: Path, store_dir: Path, say: Callable[[str], None]
) -> tuple[Table, Table]:
    """Return the train and the test images, each table named after its image file.

    Args:
        download_dir: where files go that Keras' cache lacks; the cache is only read.
        store_dir: folder of stores, made if needed.
        say: takes a line when a file is corrupt or is downloaded.

    Raises:
        DownloadError: a file is in neither place and cannot be downloaded.
        OSError: the disk is full or fails.
    """
    cache = keras_home() / "datasets" / "fashion-mnist"
    paths = {
        name: find_or_fetch(
            BASE_URL + name, sha256, cache_dir=cache, download_dir=download_dir, say=say
        )
        for name, sha256 in SHA256.items()
    }
    return (
        _read_part(paths[TRAIN_IMAGES], paths[TRAIN_LABELS], store_dir),
        _read_part(paths[TEST_IMAGES], paths[TEST_LABELS], store_dir),
    )


def read_idx(path: Path, *, n_dimensions: int) -> NDArray[np.uint8]:
    """Return the array of a gzipped IDX file of bytes, whose SHA-256 must have been checked.

    Format: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", n_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def _read_part(images: Path, labels: Path, store_dir: Path) -> Table:
    """Open the store of two files, or write it."""
    sums = SHA256[images.name] + SHA256[labels.name]
    directory = store_dir / f"official-{hashlib.sha256(sums.encode()).hexdigest()}"
    table = read_store(directory, str(images), SHA256[images.name])
    if table is not None:
        return table
    pixels = read_idx(images, n_dimensions=3).reshape(-1, N_PIXELS)
    index = read_idx(labels, n_dimensions=1).astype(np.int32)
    classes = np.arange(10, dtype=np.int32), {"label_values": list("0123456789")}
    return write_store(
        directory, str(images), SHA256[images.name], [(pixels, index)], lambda: classes
    )
