"""Parsed pixels and label indices on disk: written once, then memory-mapped.

A store is a folder of `pixels.bin`, `labels.bin` (labelled files only), `facts.json` and
`DONE.json`, whose SHA-256 are checked whenever it is opened. One rename publishes it. If another
program cuts a file while it is mapped, reading ends the process with SIGBUS.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import N_PIXELS
from fmnist_tf.data.images import Table
from fmnist_tf.errors import UsageError
from fmnist_tf.system.checked import CheckedFolder
from fmnist_tf.system.files import remove, remove_leftovers, replacing, require_unlinked

_PIXELS, _LABELS, _FACTS = "pixels.bin", "labels.bin", "facts.json"

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
    folder = CheckedFolder(directory)
    try:
        require_unlinked(directory)
        digests = {name: entry["sha256"] for name, entry in folder.done["files"].items()}
        facts: dict[str, Any] = folder.read_json(_FACTS)
        facts = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
        return Table(
            pixels=_map(folder, _PIXELS, "u1").reshape(-1, N_PIXELS),
            label_index=_map(folder, _LABELS, "<i4") if _LABELS in digests else None,
            path=path,
            sha256=sha256,
            digest=digests[_PIXELS],
            label_digest=digests.get(_LABELS, ""),
            **facts,
        )
    except (UsageError, OSError, ValueError, KeyError, TypeError):
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
        with replacing(directory) as temporary:
            temporary.mkdir()
            _write_files(CheckedFolder(temporary), blocks, finish)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if (table := read_store(directory, path, sha256)) is None:
        raise OSError(errno.EIO, "what was written is not what is read", str(directory))
    return table


def _write_files(folder: CheckedFolder, blocks: Iterable[Block], finish: Finish) -> None:
    codes = []
    with folder.file(_PIXELS).open("wb") as file:
        for pixels, block_codes in blocks:
            file.write(np.ascontiguousarray(pixels).data)
            codes.append(block_codes)
    index_of_code, facts = finish()
    if index_of_code is not None:
        index_of_code[np.concatenate(codes)].astype("<i4").tofile(folder.file(_LABELS))
    folder.write_json(_FACTS, facts)
    folder.write_done()


def _map(folder: CheckedFolder, name: str, dtype: str) -> NDArray[Any]:
    with folder.reading(name) as file:
        return np.memmap(file, dtype, "r")
