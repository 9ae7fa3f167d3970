"""The figure of `--cut auto`: what each place to cut the backbone costs, and what it gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from fmnist_tf.reporting.style import COLOURS, INK, Heading, png_figure
from fmnist_tf.results.rundir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CUTS = "cuts.csv"


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
    """Write the PNG: probe accuracy over seconds, and over bytes."""
    with png_figure(path, heading, width=9.0, height=4.0) as figure:
        plot_cuts(figure, cuts, chosen)


def plot_cuts(figure: Figure, cuts: Sequence[Candidate], chosen: Candidate) -> None:
    """Plot probe accuracy over seconds, and over bytes; one line for each image size."""
    axes_of = figure.subplots(1, 2, sharey=True)
    columns = {"seconds_per_1000": "seconds per 1,000 images", "stored_bytes": "bytes per image"}
    for axes, (column, label) in zip(axes_of, columns.items(), strict=True):
        for number, size in enumerate(dict.fromkeys(cut.image_size for cut in cuts)):
            of_size = [cut for cut in cuts if cut.image_size == size]
            x = [getattr(cut, column) for cut in of_size]
            y = [100 * cut.probe_accuracy for cut in of_size]
            axes.plot(x, y, "o-", ms=4, color=COLOURS[number], label=f"{size} pixels")
            for place, height, cut in zip(x, y, of_size, strict=True):
                offset = {"xytext": (0, 5), "textcoords": "offset points"}
                axes.annotate(cut.cut, (place, height), **offset, fontsize=7, ha="center")
        at = getattr(chosen, column), 100 * chosen.probe_accuracy
        axes.plot(*at, "o", ms=12, mfc="none", color=INK, label="chosen")
        axes.set(xscale="log", xlabel=label)
        axes.margins(0.1, 0.12)
        axes.grid()
    axes_of[0].set_ylabel("accuracy of a linear probe, %")
    axes_of[0].legend()


def read_cuts(run: RunDir) -> tuple[list[Candidate], Candidate] | None:
    """Return the candidates in a run's cuts.csv and the chosen one; None if there is no such file.

    Raises:
        UsageError: the file is damaged or was changed.
    """
    if not run.file(CUTS).exists():
        return None
    with run.reading(CUTS) as file:
        rows = list(csv.DictReader(io.StringIO(file.read().decode())))
        kinds = get_type_hints(Candidate)
        cuts = [Candidate(**{name: kinds[name](row[name]) for name in kinds}) for row in rows]
        return cuts, cuts[[row["chosen"] for row in rows].index("1")]
