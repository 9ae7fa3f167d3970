"""Fashion-MNIST's four official files -> the two CSVs that the rest of the project reads.

In: Keras' cache or the official mirror. Out: `fashion-mnist_train.csv` and
`fashion-mnist_test.csv` in Kaggle's layout, in the official files' row order. This module must not
know which source a person asked for.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fmnist_tf.data.downloads import find_or_fetch, keras_home
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.system.files import write_atomically

# The mirror that keras.datasets.fashion_mnist downloads from.
BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
SHA256 = {
    TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
# Kaggle's file names, and the SHA-256 of what `write_official_csvs` makes of the files above.
TRAIN_CSV, TEST_CSV = "fashion-mnist_train.csv", "fashion-mnist_test.csv"
CSV_SHA256 = {
    TRAIN_CSV: "9b4c3051424ce1d78ff509d54017e2673b27260ea874c5ae9b364c0c1dc8a1b1",
    TEST_CSV: "a269a18ad7ac639afde1ab2e65f83dd38a4fc321d057cf7039df1e5cff241e91",
}

_MAX_GZ_BYTES = 32 << 20  # the largest of the four has 26,421,880
_MAX_IDX_BYTES = 64 << 20  # the largest holds 47,040,016 when unpacked
_BLOCK_ROWS = 4096
# The text of each byte value and its comma, padded with zero bytes to four: "7," "42," "255,".
_CELLS = np.frombuffer(b"".join(b"%d," % v + bytes(3 - len(str(v))) for v in range(256)), "<u4")


def find_official_files(download_dir: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Return the path of each of the four files, each with the right SHA-256.

    Keras' cache is looked into and never written; what it lacks is downloaded into
    `download_dir`. A file of the cache with a wrong SHA-256 is named through `say` and left alone.

    Raises:
        DownloadError: a file is in neither place and cannot be downloaded.
        UsageError: a file in `download_dir` is damaged.
    """
    return {
        name: find_or_fetch(
            BASE_URL + name,
            sha256,
            cache_dir=keras_home() / "datasets" / "fashion-mnist",
            download_dir=download_dir,
            max_bytes=_MAX_GZ_BYTES,
            say=say,
        )
        for name, sha256 in SHA256.items()
    }


def write_official_csvs(files: Mapping[str, Path], folder: Path) -> tuple[Path, Path]:
    """Convert the four files (by name) and return the paths of the train and the test CSV.

    The train file is written last: where it exists, both are whole.
    """
    for name, images, labels in (
        (TEST_CSV, TEST_IMAGES, TEST_LABELS),
        (TRAIN_CSV, TRAIN_IMAGES, TRAIN_LABELS),
    ):
        pixels = read_idx(files[images], n_dimensions=3)
        write_csv(
            folder / name,
            pixels.reshape(len(pixels), -1),
            read_idx(files[labels], n_dimensions=1),
        )
    return folder / TRAIN_CSV, folder / TEST_CSV


def read_idx(path: Path, *, n_dimensions: int) -> np.ndarray:
    """Read a gzipped IDX file of bytes (http://yann.lecun.com/exdb/mnist/, "the IDX file format").

    Returns:
        uint8 of the header's shape, read-only. At most `_MAX_IDX_BYTES` are ever unpacked.

    Raises:
        UsageError: not such a file, or of another length than its header says.
    """

    def refused(found: str) -> UsageError:
        return UsageError(
            f"{printable(str(path), 200)}: {found}; expected a gzipped IDX file of bytes with "
            f"{n_dimensions} dimensions. hint: remove it and fetch it again"
        )

    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * n_dimensions)
            if header[:4] != bytes([0, 0, 8, n_dimensions]) or len(header) < 4 + 4 * n_dimensions:
                raise refused(f"its first bytes are {header[:4].hex(' ') or 'missing'}")
            shape = tuple(int(side) for side in np.frombuffer(header, ">u4", offset=4))
            n_bytes = math.prod(shape)
            if n_bytes > _MAX_IDX_BYTES:
                raise refused(f"its header announces {n_bytes} bytes")
            body = file.read(n_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise refused(f"damaged gzip data ({error})") from None
    if len(body) != n_bytes:
        more = "more than " if len(body) > n_bytes else ""
        raise refused(f"{more}{min(len(body), n_bytes)} bytes where {n_bytes} are announced")
    return np.frombuffer(body, np.uint8).reshape(shape)


def write_csv(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write `label,pixel1,...,pixel784` and a line per image, atomically.

    Args:
        path: the file; its folder is made when missing.
        pixels: (N, 784) uint8.
        labels: (N,) integers in 0..255.
    """
    with write_atomically(path) as file:
        for piece in csv_pieces(pixels, labels):
            file.write(piece)


def csv_pieces(pixels: np.ndarray, labels: np.ndarray) -> Iterable[bytes]:
    """Yield the bytes of that CSV, header first, some megabytes at a time."""
    names = ["label", *(f"pixel{i}" for i in range(1, pixels.shape[1] + 1))]
    yield ",".join(names).encode() + b"\n"
    for start in range(0, len(pixels), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        cells = _CELLS[np.column_stack([labels[rows].astype(np.uint8), pixels[rows]])]
        text = cells.view(np.uint8).reshape(len(cells), -1)
        last = text[:, -4:]
        last[last == ord(",")] = ord("\n")
        yield text[text != 0].tobytes()
