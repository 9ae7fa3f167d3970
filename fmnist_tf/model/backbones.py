"""One card per backbone: how to build it, what it eats, its stages, where its weights come from.

In: a card's name and a choice of weights. Out: a Keras model without top, with verified weights,
and a record of where they came from. This module must not know data, heads, phases or runs.
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
from fmnist_tf.files import file_digest
from fmnist_tf.model.preprocessing import CAFFE, ValueRange


@dataclass(frozen=True)
class PretrainedWeights:
    """A published weights file in Keras' layout without top.

    Attributes:
        url: where it is published.
        digest: `algorithm:hex`, as its publisher states it.
        n_bytes: its size.
        trained_on: the data it was trained on.
        licence: its licence.
    """

    url: str
    digest: str
    n_bytes: int
    trained_on: str
    licence: str


@dataclass(frozen=True)
class BackboneCard:
    """All that must be known to use one backbone.

    Attributes:
        name: what `--backbone` calls it.
        build: side in pixels -> Keras model (B, S, S, 3) float32 -> (B, H, W, C) float32 without
            top, with fresh random weights.
        least_side: smallest input side in pixels that the network accepts.
        usual_side: the side it was trained at.
        value_range: grey 0..255 -> the input that its weights expect.
        stages: stage name -> prefixes of its layers' names, from the stem to the deepest.
        pretrained: the published weights, or None.
    """

    name: str
    build: Callable[[int], keras.Model]
    least_side: int
    usual_side: int
    value_range: ValueRange
    stages: dict[str, tuple[str, ...]]
    pretrained: PretrainedWeights | None

    def stage_of(self, layer_name: str) -> str:
        """Return the stage that a layer of this backbone belongs to; its input is of the stem."""
        for stage, prefixes in self.stages.items():
            if layer_name.startswith(prefixes):
                return stage
        return next(iter(self.stages))


@dataclass(frozen=True)
class WeightsSource:
    """Where a backbone's weights came from, for provenance.json.

    Attributes:
        kind: imagenet, file or random.
        path: the file read, or None.
        sha256: of that file, or None.
        trained_on: what its card says of it; unknown for a file of the user's.
        warning: what a person must be told, or None.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    trained_on: str | None = None
    warning: str | None = None


def _build_resnet50(side: int) -> keras.Model:
    return keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(side, side, 3), name="resnet50"
    )


RESNET50 = BackboneCard(
    name="resnet50",
    build=_build_resnet50,
    least_side=32,
    usual_side=224,
    value_range=CAFFE,
    stages={
        "stem": ("conv1_", "pool1_"),
        "conv2": ("conv2_",),
        "conv3": ("conv3_",),
        "conv4": ("conv4_",),
        "conv5": ("conv5_",),
    },
    pretrained=PretrainedWeights(
        url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        # keras.applications.resnet.WEIGHTS_HASHES states MD5 and nothing stronger; the SHA-256 of
        # the file that was read goes into provenance.json.
        digest="md5:4d473c1dd8becc155b73f8504c6f6626",
        n_bytes=94_765_736,
        trained_on="ImageNet",
        licence="MIT (He et al., https://github.com/KaimingHe/deep-residual-networks)",
    ),
)

BACKBONES = {card.name: card for card in (RESNET50,)}


def find_card(name: str, side: int | None) -> tuple[BackboneCard, int]:
    """Return a backbone's card and the side to use.

    Raises:
        UsageError: the name is unknown, or the side is below the network's least.
    """
    card = BACKBONES.get(name)
    if card is None:
        raise UsageError(f"--backbone {name}: expected one of {', '.join(BACKBONES)}")
    side = card.usual_side if side is None else side
    if side < card.least_side:
        raise UsageError(
            f"--image-size {side}: {name} needs at least {card.least_side} pixels a side"
        )
    return card, side


def read_backbone_weights(
    backbone: keras.Model,
    card: BackboneCard,
    choice: str,
    *,
    download_dir: Path,
    say: Callable[[str], None],
) -> WeightsSource:
    """Load weights into `backbone`, in place, and say where they came from.

    Args:
        backbone: as `card.build` returned it.
        card: its card.
        choice: auto, imagenet, random or a path; only auto falls back (to random).
        download_dir: where published weights go that Keras' cache lacks.
        say: receives one line about a download.

    Raises:
        UsageError: the file is missing, damaged, or of another network.
        DownloadError: the published weights were named and could not be had.
    """
    if choice == "random":
        return WeightsSource("random")
    if choice not in ("auto", "imagenet"):
        path = Path(choice)
        _load_checked(backbone, card, path)
        return WeightsSource("file", str(path), file_digest(path))
    if card.pretrained is None:
        if choice == "imagenet":
            raise UsageError(f"--weights imagenet: none are published for {card.name}")
        return WeightsSource("random", warning=_random_warning(card, "none are published"))
    try:
        path = find_or_fetch(
            card.pretrained.url,
            card.pretrained.digest,
            cache_dir=keras_home() / "models",
            download_dir=download_dir,
            max_bytes=card.pretrained.n_bytes,
            say=say,
        )
    except DownloadError as error:
        if choice == "imagenet":
            raise
        return WeightsSource("random", warning=_random_warning(card, str(error)))
    _load_checked(backbone, card, path)
    return WeightsSource("imagenet", str(path), file_digest(path), card.pretrained.trained_on)


def _random_warning(card: BackboneCard, why: str) -> str:
    return (
        f"The {card.name} backbone has RANDOM weights: its pretrained weights could not be had "
        f"({why}). This run shows that the machinery works; its accuracy is not that of transfer "
        "learning. With a network, or with --weights PATH, it is."
    )


def _load_checked(backbone: keras.Model, card: BackboneCard, path: Path) -> None:
    """Load a weights file after comparing the shapes of its arrays with the network's."""
    hint = (
        f"expected weights of {card.name} without top in Keras' layout, as "
        "`model.save_weights('NAME.weights.h5')` writes them"
    )
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file; {hint}")
    if path.suffix != ".h5":
        raise UsageError(f"--weights {path}: the name does not end in .h5; {hint}")
    expected = Counter(tuple(weight.shape) for weight in backbone.weights)
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
        backbone.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--weights {path}: {hint}; Keras says: {reason}") from error
