"""Fashion-MNIST's four official files, from Keras' cache or the mirror that Keras uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fmnist_tf.data.downloads import find_or_fetch, keras_home
from fmnist_tf.data.images import Table
from fmnist_tf.data.tables import read_table

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

    See `find_or_fetch`, also for what is raised.
    """
    cache = keras_home() / "datasets" / "fashion-mnist"
    paths = {
        name: find_or_fetch(
            BASE_URL + name, sha256, cache_dir=cache, download_dir=download_dir, say=say
        )
        for name, sha256 in SHA256.items()
    }
    return (
        read_table(paths[TRAIN_IMAGES], store_dir, labels=paths[TRAIN_LABELS]),
        read_table(paths[TEST_IMAGES], store_dir, labels=paths[TEST_LABELS]),
    )
