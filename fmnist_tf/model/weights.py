"""Load the weights of a backbone: published, from a file, or random.

A file's array shapes are compared with the network's before Keras loads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras

from fmnist_tf.data.downloads import DownloadError, find_or_fetch, keras_home
from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BackboneSpec
from fmnist_tf.model.networks import copy_weights
from fmnist_tf.system.files import file_digest


@dataclass(frozen=True)
class WeightsSource:
    """Where a backbone's weights came from; part of provenance.json.

    Attributes:
        kind: imagenet, file or random.
        path: the weights file, or None.
        sha256: of that file, or None.
        trained_on: the training data of published weights; None for a user's file.
        warning: to show to the user, or None.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    trained_on: str | None = None
    warning: str | None = None


def read_backbone_weights(
    backbone: keras.Model,
    spec: BackboneSpec,
    choice: str,
    *,
    download_dir: Path,
    say: Callable[[str], None],
) -> WeightsSource:
    """Load weights into `backbone`, in place, and return where they came from.

    Args:
        backbone: the result of `spec.build`.
        spec: its spec.
        choice: auto, imagenet, random or a path. auto falls back to random weights.
        download_dir: folder for published weights that are not in Keras' cache.
        say: called with one line about a download.

    Raises:
        UsageError: the file is missing, corrupt, or of another network.
        DownloadError: choice is imagenet, and the published weights are not available.
    """
    if choice == "random":
        return WeightsSource("random")
    if choice not in ("auto", "imagenet"):
        path = Path(choice)
        _load(backbone, spec, path)
        return WeightsSource("file", str(path), file_digest(path))
    if spec.pretrained is None:
        if choice == "imagenet":
            raise UsageError(f"--weights imagenet: none are published for {spec.name}")
        if not backbone.weights:
            return WeightsSource("random")
        return WeightsSource(
            "random",
            warning=f"The {spec.name} backbone has RANDOM weights: none are published for it. "
            "Train them with --phase scratch, or load others with --weights PATH.",
        )
    try:
        path = find_or_fetch(
            spec.pretrained.url,
            spec.pretrained.digest,
            cache_dir=keras_home() / "models",
            download_dir=download_dir,
            say=say,
        )
    except DownloadError as error:
        if choice == "imagenet":
            raise
        return WeightsSource(
            "random",
            warning=f"The {spec.name} backbone has RANDOM weights: its pretrained weights are not "
            f"available ({error}). The accuracy of this run is not that of transfer learning. "
            "Connect to a network, or name a file with --weights PATH.",
        )
    _load(backbone, spec, path)
    return WeightsSource("imagenet", str(path), file_digest(path), spec.pretrained.trained_on)


def _load(backbone: keras.Model, spec: BackboneSpec, path: Path) -> None:
    if spec.build_published is None:
        read_weights_file(backbone, path, spec.name)
    else:
        published = spec.build_published(backbone.input_shape[1])
        read_weights_file(published, path, spec.name)
        copy_weights(published, backbone)


def read_weights_file(network: keras.Model, path: Path, name: str) -> None:
    """Load a weights file into `network`, in place.

    Args:
        network: has the arrays of the file.
        path: HDF5 as Keras writes it, a whole model or `.weights.h5`.
        name: of the network, for messages.

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
