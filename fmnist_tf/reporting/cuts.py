"""The figure of `--cut auto`: what each place to cut the backbone costs, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmnist_tf.reporting.style import COLOURS, INK, Heading, png_figure


@dataclass(frozen=True)
class Candidate:
    """A place to cut, and what was measured there.

    Attributes:
        image_size: side of the backbone's input, in pixels.
        cut: the stage after which the backbone ends.
        n_features: of an image, as the head gets them.
        stored_bytes: of an image's features in bfloat16.
        seconds_per_1000: to compute the features of 1,000 images, after warm-up.
        probe_accuracy: fraction of training rows that a linear classifier gets right, each left
            out of its training.
    """

    image_size: int
    cut: str
    n_features: int
    stored_bytes: int
    seconds_per_1000: float
    probe_accuracy: float


def write_cuts(path: Path, heading: Heading, cuts: Sequence[Candidate], chosen: Candidate) -> None:
    """Write the PNG: probe accuracy over seconds, and over bytes; one line for each image size."""
    with png_figure(path, heading, width=9.0, height=4.0) as figure:
        axes_of = figure.subplots(1, 2, sharey=True)
        columns = (
            ("seconds_per_1000", "seconds per 1,000 images"),
            ("stored_bytes", "bytes stored per image"),
        )
        for axes, (column, label) in zip(axes_of, columns, strict=True):
            for number, size in enumerate(dict.fromkeys(cut.image_size for cut in cuts)):
                of_size = [cut for cut in cuts if cut.image_size == size]
                x = [getattr(cut, column) for cut in of_size]
                y = [100 * cut.probe_accuracy for cut in of_size]
                axes.plot(x, y, "o-", color=COLOURS[number], label=f"{size} pixels")
                for place, height, cut in zip(x, y, of_size, strict=True):
                    axes.annotate(
                        cut.cut, (place, height), (0, 5), textcoords="offset points", fontsize=8
                    )
            at = getattr(chosen, column), 100 * chosen.probe_accuracy
            axes.plot(*at, "o", ms=14, mfc="none", color=INK, label="chosen")
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.grid()
        axes_of[0].set_ylabel("accuracy of a linear probe, %")
        axes_of[0].legend()
