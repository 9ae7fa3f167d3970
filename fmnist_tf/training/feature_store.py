"""Backbone features on disk, in checksummed shards that are memory-mapped for reading.

Files of one entry: `<key>/shard-00000.bin`, `<key>/shard-00001.bin`, ... and `.lock`. A shard has
`SHARD_ROWS` rows, the last one the rest, of little-endian bfloat16, followed by a checksum of
16 bytes: XXH3-128 of the entry's name, the shard's number and its rows. It detects damage, not
malice, at the speed of memory. A shard that matches its checksum is valid whatever else is in the
folder: an interrupted computation continues after the last shard, and corrupt or foreign shards,
and what is no file, are computed again. If another program cuts a shard while it is mapped, reading
ends the process with SIGBUS.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import xxhash

from fmnist_tf.system import signals
from fmnist_tf.system.files import open_regular, remove, require_unlinked, write_atomically

FEATURE_DTYPE = np.dtype(ml_dtypes.bfloat16)
# A kill costs the shard in work. All entries have shards of the same rows, so that one pass can
# fill several. A power of two, so that batches divide it.
SHARD_ROWS = 256
READ_BYTES = 1 << 20
MAX_MAPPED = 1 << 14  # of two views; Linux maps 65,530 files in one process
# Threads that compute or verify: one works while another starts, ends or is copied.
N_THREADS = 2
# The disk also needs room for the run directory and for other programs.
FREE_SPACE_MARGIN, FREE_BYTES = 1.1, 10**9

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FeatureStore:
    """Features of N rows on disk, complete or not. Implements `batches.RowSource`.

    bfloat16 has the range of float32; features stay 16 bits wide until the device has them.

    Attributes:
        path: the entry's folder, which is no link; its name is the entry's key.
        n_rows: N.
        row_shape: the shape of one row's features.
        rows_per_shard: a power of two.
        part: (i, n): this process keeps shards i, i+n, i+2n, ...; n-1 others keep the rest.
    """

    path: Path
    n_rows: int
    row_shape: tuple[int, ...]
    rows_per_shard: int = SHARD_ROWS
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        require_unlinked(self.path)

    @property
    def digest(self) -> str:
        """The key, which stands for the content."""
        return self.path.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """bfloat16."""
        return FEATURE_DTYPE

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return math.prod(self.row_shape) * FEATURE_DTYPE.itemsize

    @property
    def n_bytes(self) -> int:
        """The size of the rows that are kept, without the checksums of 16 bytes a shard."""
        return self.n_kept * self.row_bytes

    @cached_property
    def shards(self) -> list[range]:
        """The row numbers of each shard."""
        step = self.rows_per_shard
        return [
            range(start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)
        ]

    @property
    def kept_shards(self) -> range:
        """The numbers of the shards that this process keeps."""
        return range(self.part[0], len(self.shards), self.part[1])

    @property
    def n_kept(self) -> int:
        """Rows that this process keeps."""
        return sum(len(self.shards[number]) for number in self.kept_shards)

    def keepers(self, rows: Any) -> Any:
        """Return the number of the process that keeps each row, of this view or of another.

        Args:
            rows: numbers in `StackedRows`, (B,) of NumPy or TensorFlow.
        """
        return rows % self.n_rows // self.rows_per_shard % self.part[1]

    def shard_path(self, number: int) -> Path:
        """Return the path of one shard."""
        return self.path / f"shard-{number:05d}.bin"

    @cached_property
    def _map(self) -> Callable[[int], np.ndarray]:
        @lru_cache(MAX_MAPPED)
        def map_shard(number: int) -> np.ndarray:
            shape = len(self.shards[number]), *self.row_shape
            # NumPy copies integers faster than bfloat16.
            return np.memmap(self.shard_path(number), np.uint16, "r", shape=shape).view(np.ndarray)

        return map_shard

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of these rows, which this process keeps, (B, *row_shape) bfloat16."""
        taken = np.empty((len(rows), *self.row_shape), np.uint16)
        for place, row in enumerate(rows.tolist()):
            number, row_within = divmod(row, self.rows_per_shard)
            taken[place] = self._map(number)[row_within]
        return taken.view(FEATURE_DTYPE)

    def is_complete(self) -> bool:
        """Return whether every kept shard is valid. Reads every byte, unless bytes are missing."""
        return bytes_on_disk(self.path) >= self.n_bytes and not self.find_invalid_shards()

    def find_invalid_shards(self) -> list[int]:
        """Return the numbers of the shards that should be kept and are missing or corrupt."""
        numbers = self.kept_shards
        with closing(map_ahead(self.is_valid, numbers)) as answers:
            return [number for number, valid in zip(numbers, answers, strict=True) if not valid]

    def is_valid(self, number: int) -> bool:
        """Return whether this shard matches its checksum; reads every byte."""
        left, checksum = len(self.shards[number]) * self.row_bytes, self._start_checksum(number)
        n_bytes = left + checksum.digest_size
        try:
            with open_regular(self.shard_path(number), n_bytes) as file:
                if os.fstat(file.fileno()).st_size < n_bytes:
                    return False
                while left and (content := file.read(min(left, READ_BYTES))):
                    checksum.update(content)
                    left -= len(content)
                return file.read() == checksum.digest()
        except OSError:
            return False

    @contextmanager
    def writing_shard(self, number: int) -> Iterator[Callable[[np.ndarray], None]]:
        """Give a function that writes the next rows of a shard, (B, *row_shape) bfloat16.

        The shard appears when the context is left, and not if an exception leaves it.
        """
        checksum = self._start_checksum(number)
        remove(self.shard_path(number))  # a folder would not be replaced
        with write_atomically(self.shard_path(number)) as file:

            def write(batch: np.ndarray) -> None:
                content = batch.view(np.uint8).data
                checksum.update(content)
                file.write(content)

            yield write
            file.write(checksum.digest())

    def _start_checksum(self, number: int) -> xxhash.xxh3_128:
        return xxhash.xxh3_128(f"{self.path.name} {number} ".encode())


def bytes_on_disk(folder: Path) -> int:
    """Return the size of all shards in the folder of one entry or of all entries."""
    return sum(path.lstat().st_size for path in folder.rglob("shard-*.bin"))


def fits_on_disk(stores: Sequence[FeatureStore], margin: float = FREE_SPACE_MARGIN) -> bool:
    """Return whether `margin` times what is missing of these entries fits on their disk."""
    folder = stores[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(store.n_bytes - bytes_on_disk(store.path) for store in stores)
    return shutil.disk_usage(folder).free > missing * margin + FREE_BYTES


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield `function(item)` in the items' order, computed by `N_THREADS` threads.

    At most `N_THREADS` results are computed ahead of the consumer. Closing the generator waits for
    those and starts no more.

    Raises:
        StoppedError: a signal stops this process.
    """
    waiting: Iterator[Item] = iter(items)
    with ThreadPoolExecutor(N_THREADS) as threads:
        running = deque(threads.submit(function, item) for item in islice(waiting, N_THREADS))
        while running:
            result = running.popleft().result()
            running.extend(threads.submit(function, item) for item in islice(waiting, 1))
            signals.check()
            yield result
