"""Parsed pixels and label indices on disk: written once, then memory-mapped.

A store is a directory of `pixels.bin`, `labels.bin` (labelled files only) and `manifest.json`. One
rename publishes it, and its SHA-256 are checked whenever it is opened. Nothing is read through a
link. If another program cuts a file while it is mapped, reading ends the process with SIGBUS.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.images import Table
from fmnist_tf.system.files import (
    json_digest,
    open_regular,
    read_bytes,
    remove,
    remove_leftovers,
    replacing,
    require_unlinked,
)

Block = tuple[NDArray[np.uint8], NDArray[np.int32]]
"""Pixels (R, 784) and label codes (R,) of some rows."""
Finish = Callable[[], tuple[NDArray[np.int32] | None, dict[str, Any]]]
"""Returns the label index of each code, or None if the images are unlabelled; and the other fields
of the `Table`, as JSON values."""


def read_store(directory: Path, path: str, sha256: str) -> Table | None:
    """Open a store; None if it is missing, incomplete or corrupt. All its bytes are read once.

    Args:
        directory: the store.
        path: `Table.path`.
        sha256: `Table.sha256`.
    """
    try:
        require_unlinked(directory)
        manifest = json.loads(read_bytes(directory / "manifest.json"))
        body = manifest["body"]
        if manifest["sha256"] != json_digest(body):
            return None
        return _open(directory, path, sha256, body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_store(
    directory: Path,
    path: str,
    sha256: str,
    blocks: Iterable[Block],
    finish: Finish,
) -> Table:
    """Write a store in place of a corrupt one or none, and open it.

    If another process has published the same store meanwhile, that one is used.

    Args:
        directory: where the store will appear; its parent is made if needed.
        path: `Table.path`.
        sha256: `Table.sha256`.
        blocks: the rows, block by block.
        finish: called after the last block.

    Raises:
        OSError: the disk is full or fails.
    """
    if (table := read_store(directory, path, sha256)) is not None:
        return table
    remove(directory)
    remove_leftovers(directory.parent)
    try:
        with replacing(directory) as folder:
            folder.mkdir()
            body = _write_files(folder, blocks, finish)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if (table := read_store(directory, path, sha256)) is None:
            raise
        return table
    return _open(directory, path, sha256, body)


def _write_files(folder: Path, blocks: Iterable[Block], finish: Finish) -> dict[str, Any]:
    """Write the files of a store, and return the body of its manifest."""
    pixels_digest, codes = hashlib.sha256(), []
    with (folder / "pixels.bin").open("wb") as file:
        for pixels, block_codes in blocks:
            data = np.ascontiguousarray(pixels).data
            file.write(data)
            pixels_digest.update(data)
            codes.append(block_codes)
    index_of_code, facts = finish()
    n_bytes = (folder / "pixels.bin").stat().st_size
    files = {"pixels.bin": (n_bytes, pixels_digest.hexdigest())}
    if index_of_code is not None:
        labels = index_of_code[np.concatenate(codes)].astype("<i4")
        labels.tofile(folder / "labels.bin")
        files["labels.bin"] = labels.nbytes, hashlib.sha256(labels.data).hexdigest()
    body = {"files": files, "facts": facts}
    text = json.dumps({"body": body, "sha256": json_digest(body)}, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return body


def _open(directory: Path, path: str, sha256: str, body: dict[str, Any]) -> Table:
    """Map the files of a store.

    Raises:
        ValueError: a file is not the one that the manifest describes.
        OSError: it is missing, or no file.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, (n_bytes, digest) in body["files"].items():
        with open_regular(directory / name, n_bytes) as file:
            found = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            if found != (n_bytes, digest):
                raise ValueError(f"{name} was changed")
            arrays[name] = np.memmap(file, np.uint8, "r")
    labels = arrays.get("labels.bin")
    facts: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in body["facts"].items()
    }
    return Table(
        pixels=arrays["pixels.bin"].reshape(-1, N_PIXELS),
        label_index=None if labels is None else labels.view("<i4"),
        path=path,
        sha256=sha256,
        digest=body["files"]["pixels.bin"][1],
        label_digest=body["files"].get("labels.bin", (0, ""))[1],
        **facts,
    )
