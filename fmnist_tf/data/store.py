"""Parsed pixels and label indices on disk: written once, then memory-mapped.

A store is a directory of `pixels.bin`, `labels.bin` (labelled files only) and `manifest.json`. One
rename publishes it, and its SHA-256 are checked whenever it is opened.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.system.files import file_digest

STALE_SECONDS = 24 * 3600
"""Age at which an unpublished directory counts as the leftover of a killed process."""


@dataclass(frozen=True)
class StoredPixels:
    """A published store.

    Attributes:
        pixels: (N, 784), read-only memory map.
        label_index: (N,), read-only memory map, or None.
        digest: SHA-256 of the bytes of `pixels`.
        label_digest: SHA-256 of the bytes of `label_index`; empty if unlabelled.
        facts: JSON values that the writer added.
    """

    pixels: NDArray[np.uint8]
    label_index: NDArray[np.int32] | None
    digest: str
    label_digest: str
    facts: dict[str, Any]


def read_store(directory: Path) -> StoredPixels | None:
    """Open a store; None if it is missing, incomplete or corrupt. All its bytes are read once."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        body = manifest["body"]
        if manifest["sha256"] != _json_digest(body):
            return None
        for name, digest in body["files"].items():
            if file_digest(directory / name) != digest:
                return None
        return _open_arrays(directory, body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class StoreWriter:
    """Writes a store; a context manager.

    The files are filled in a private directory beside the store's place, which is removed on
    leaving the context. Nothing is forced to the disk: a store that a power failure corrupts fails
    its checksums and is written again.
    """

    def __init__(self, directory: Path, is_labelled: bool) -> None:
        """Prepare a store.

        Args:
            directory: where the store will appear; its parent is made if needed.
            is_labelled: whether the images have labels.
        """
        self._final = directory
        self._partial = directory.with_name(f".{uuid.uuid4().hex}.partial")
        self._digest = hashlib.sha256()
        self._codes: list[NDArray[np.int32]] | None = [] if is_labelled else None

    def __enter__(self) -> StoreWriter:
        self._final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self._final.parent)
        self._partial.mkdir()
        try:
            self._file = open(self._partial / "pixels.bin", "wb")
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, pixels: NDArray[np.uint8], codes: NDArray[np.int32]) -> None:
        """Write rows.

        Args:
            pixels: (R, 784).
            codes: (R,) indices into the `new_code` of `publish`; unused in an unlabelled store.

        Raises:
            OSError: the disk is full or fails.
        """
        data = np.ascontiguousarray(pixels).data
        self._file.write(data)
        self._digest.update(data)
        if self._codes is not None:
            self._codes.append(codes)

    def publish(self, new_code: NDArray[np.int32], facts: dict[str, Any]) -> StoredPixels:
        """Finish the files and rename the directory to its place.

        If another process has published the same store meanwhile, that one is used.

        Args:
            new_code: (K,): the label index of each code.
            facts: JSON values to keep in the manifest.

        Raises:
            OSError: the disk is full or fails.
        """
        self._file.close()
        files = {"pixels.bin": self._digest.hexdigest()}
        if self._codes is not None:
            labels = new_code[np.concatenate(self._codes)].astype("<i4")
            labels.tofile(self._partial / "labels.bin")
            files["labels.bin"] = hashlib.sha256(labels.data).hexdigest()
        body = {"files": files, "facts": facts}
        text = json.dumps({"body": body, "sha256": _json_digest(body)}, indent=1, sort_keys=True)
        (self._partial / "manifest.json").write_text(text, encoding="utf-8")
        self._rename()
        return _open_arrays(self._final, body)

    def _rename(self) -> None:
        """Move the finished directory to its place, unless a valid store is there already."""
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
    pixels = np.memmap(directory / "pixels.bin", np.uint8, "r").reshape(-1, N_PIXELS)
    labels = None
    if "labels.bin" in body["files"]:
        labels = np.memmap(directory / "labels.bin", "<i4", "r")
        if len(labels) != len(pixels):
            raise ValueError(f"{len(labels)} labels of {len(pixels)} images")
    files = body["files"]
    return StoredPixels(
        pixels, labels, files["pixels.bin"], files.get("labels.bin", ""), body["facts"]
    )


def _remove(path: Path) -> None:
    """Remove whatever is at `path`, renamed first so that no other process opens a part of it."""
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
