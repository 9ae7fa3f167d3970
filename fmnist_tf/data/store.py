"""Parsed pixels and label codes on disk: written once, then memory-mapped.

In: blocks of rows. Out: a directory `pixels.npy`, `labels.npy` (labelled files only) and
`manifest.json`, published by one rename and checked by digest whenever it is read. This module must
not know CSV.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.system.files import file_digest

STALE_SECONDS = 24 * 3600
"""Age after which an unpublished directory is taken for the leftover of a killed process."""

_CODES_PER_READ = 1 << 20


@dataclass(frozen=True)
class StoredPixels:
    """A published store.

    Attributes:
        pixels: (N, 784), read-only memory map.
        label_index: (N,), read-only memory map, or None.
        facts: what the writer wanted to remember, as JSON types.
    """

    pixels: NDArray[np.uint8]
    label_index: NDArray[np.int32] | None
    facts: dict[str, Any]


def read_store(directory: Path) -> StoredPixels | None:
    """Open a store; None if it is missing, incomplete, damaged or not ours.

    All its bytes are read once for their digests: a third of what hashing the CSV itself costs.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        body = manifest["body"]
        if manifest["sha256"] != _json_digest(body):
            return None
        for name, digest in body["files"].items():
            if file_digest(directory / name) != digest:
                return None
        return _open_arrays(directory, body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


class StoreWriter:
    """Fills a private directory beside the store's place; a context manager.

    Whatever happens, leaving the context removes the private directory. Nothing is flushed to the
    disk by force: a store that a power failure damaged fails its digests and is written again.
    """

    def __init__(self, directory: Path, row_values: int, is_labelled: bool) -> None:
        """Remember the place and the shape.

        Args:
            directory: where the store is to appear; its parent is made if needed.
            row_values: values in a row of pixels.
            is_labelled: whether `publish` will be told the order of labels.
        """
        self._final = directory
        self._partial = directory.with_name(f".{uuid.uuid4().hex}.partial")
        self._row_values = row_values
        self._is_labelled = is_labelled
        self._rows = 0
        self._files: list[BinaryIO] = []

    def __enter__(self) -> StoreWriter:
        self._final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self._final.parent)
        self._partial.mkdir()
        try:
            for name in ("pixels.npy", "codes.bin"):
                self._files.append(open(self._partial / name, "wb"))
            self._write_header(self._files[0], np.dtype(np.uint8), (0, self._row_values))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for file in self._files:
                file.close()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, pixels: NDArray[np.uint8], codes: NDArray[np.int32]) -> None:
        """Write rows.

        Args:
            pixels: (R, row_values).
            codes: (R,), places in the `new_code` of `publish`.

        Raises:
            OSError: the disk is full or fails.
        """
        self._files[0].write(np.ascontiguousarray(pixels).data)
        if self._is_labelled:
            self._files[1].write(codes.data)
        self._rows += len(pixels)

    def publish(self, new_code: NDArray[np.int32], facts: dict[str, Any]) -> StoredPixels:
        """Finish the files and rename the directory to its place.

        Another process that publishes the same place meanwhile is no fault: its store is used.

        Args:
            new_code: (K,): the label index that replaces each code.
            facts: JSON types to keep in the manifest.

        Raises:
            OSError: the disk is full or fails.
        """
        pixel_file, code_file = self._files
        # NumPy pads headers so that the number of rows can grow in place.
        pixel_file.seek(0)
        self._write_header(pixel_file, np.dtype(np.uint8), (self._rows, self._row_values))
        pixel_file.close()
        code_file.close()
        names = ["pixels.npy"]
        if self._is_labelled:
            names.append("labels.npy")
            self._write_labels(new_code)
        os.unlink(self._partial / "codes.bin")
        files = {name: file_digest(self._partial / name) for name in names}
        body = {"files": files, "facts": facts}
        text = json.dumps({"body": body, "sha256": _json_digest(body)}, indent=1, sort_keys=True)
        (self._partial / "manifest.json").write_text(text, encoding="utf-8")
        self._rename()
        return _open_arrays(self._final, body)

    def _write_labels(self, new_code: NDArray[np.int32]) -> None:
        with (
            open(self._partial / "codes.bin", "rb") as codes,
            open(self._partial / "labels.npy", "wb") as labels,
        ):
            self._write_header(labels, np.dtype(np.int32), (self._rows,))
            while len(part := np.fromfile(codes, np.int32, _CODES_PER_READ)):
                labels.write(new_code[part].data)

    @staticmethod
    def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)

    def _rename(self) -> None:
        """Move the finished directory to its place, unless a sound store has come there first."""
        for _ in range(3):
            try:
                os.rename(self._partial, self._final)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if read_store(self._final) is not None:
                return
            _remove(self._final)
        raise OSError(errno.EBUSY, "others keep writing to the store's place", str(self._final))


def _open_arrays(directory: Path, body: dict[str, Any]) -> StoredPixels:
    arrays = [
        np.load(directory / name, mmap_mode="r", allow_pickle=False)
        for name in ("pixels.npy", "labels.npy")
        if name in body["files"]
    ]
    return StoredPixels(arrays[0], arrays[1] if len(arrays) > 1 else None, body["facts"])


def _remove(path: Path) -> None:
    """Remove whatever is at `path`, out of the others' way first."""
    aside = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _remove_stale(parent: Path) -> None:
    for leftover in parent.glob(".*.partial"):
        try:
            is_stale = time.time() - leftover.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            continue
        if is_stale:
            shutil.rmtree(leftover, ignore_errors=True)


def _json_digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
