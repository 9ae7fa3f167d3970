"""Parsed pixels and label indices on disk: written once, then memory-mapped.

A store is a folder of `pixels.bin`, `labels.bin` (labelled files only), `facts.json` and
`DONE.json`, whose SHA-256 are checked whenever it is opened. One rename publishes it. If another
program cuts a file while it is mapped, reading ends the process with SIGBUS.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
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

Write = Callable[[NDArray[np.uint8]], object]
"""Takes the pixels (R, 784) of the next rows."""
Content = tuple[NDArray[np.int32] | None, dict[str, Any]]
"""The label indices (N,), None if unlabelled, and the other fields of the `Table` as JSON takes
them."""


def open_store(directory: Path, path: str, sha256: str, read: Callable[[Write], Content]) -> Table:
    """Open a store; if it is missing, incomplete or corrupt, write it first.

    If another process has published the same store meanwhile, that one is used.

    Args:
        directory: of the store; its parent is made if needed.
        path: `Table.path`.
        sha256: `Table.sha256`.
        read: writes the pixels; called if there is no valid store.

    Raises:
        OSError: the disk is full or fails.
    """
    if (table := _open(directory, path, sha256)) is not None:
        return table
    remove(directory)
    remove_leftovers(directory.parent)
    try:
        with replacing(directory) as temporary:
            temporary.mkdir()
            folder = CheckedFolder(temporary)
            with folder.file(_PIXELS).open("wb") as file:
                labels, facts = read(lambda rows: file.write(np.ascontiguousarray(rows).data))
            if labels is not None:
                labels.astype("<i4").tofile(folder.file(_LABELS))
            folder.write_json(_FACTS, facts)
            folder.write_done()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if (table := _open(directory, path, sha256)) is None:
        raise OSError(errno.EIO, "what was written is not what is read", str(directory))
    return table


def _open(directory: Path, path: str, sha256: str) -> Table | None:
    """Return the table of a valid store, or None. All its bytes are read once."""
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


def _map(folder: CheckedFolder, name: str, dtype: str) -> NDArray[Any]:
    with folder.reading(name) as file:
        return np.memmap(file, dtype, "r")
