"""An HDF5 file of weights -> a network, after its arrays have been compared with the network's.

In: a network and a file's path. Out: the network with the file's weights, or one error that says
what was expected and found. This module must not know specs or where files come from.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import keras

from fmnist_tf.errors import UsageError


def read_weights_file(network: keras.Model, path: Path, name: str) -> None:
    """Load a weights file into `network`, in place.

    Args:
        network: in the layout of the file.
        path: the file, in Keras' HDF5 layout, old (whole model) or new (`.weights.h5`).
        name: what a message calls the network.

    Raises:
        UsageError: the file is missing, damaged, or of another network.
    """
    hint = (
        f"expected weights of {name} without top in Keras' layout, as "
        "`model.save_weights('NAME.weights.h5')` writes them"
    )
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file; {hint}")
    if path.suffix != ".h5":
        raise UsageError(f"--weights {path}: the name does not end in .h5; {hint}")
    expected = Counter(tuple(weight.shape) for weight in network.weights)
    found: Counter[tuple[int, ...]] = Counter()

    def count(name: str, item: h5py.Group | h5py.Dataset) -> None:
        # An optimizer's state and a compiled model's counters are no weights.
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found[tuple(item.shape)] += 1

    try:
        with h5py.File(path, "r") as file:
            file.visititems(count)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"--weights {path}: not a readable HDF5 file; {hint}") from error
    if found != expected:
        missing, surplus = expected - found, found - expected
        difference = "; ".join(
            f"{word} {next(iter(shapes))}"
            + (f" and {shapes.total() - 1} more" if shapes.total() > 1 else "")
            for word, shapes in (
                ("lacks an array of shape", missing),
                ("has one too many of shape", surplus),
            )
            if shapes
        )
        raise UsageError(
            f"--weights {path}: {hint}, that is {expected.total()} arrays; found "
            f"{found.total()} arrays, of which it {difference}"
        )
    try:
        network.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights {path}: {hint}; Keras says: {reason}") from error
