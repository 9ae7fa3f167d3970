"""The figure of a sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tf.reporting.style import BLUE, FAINT, GRID, ORANGE, Heading, drawable, png_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_VALUE_TICKS = 6  # values up to which each gets its tick


def write_trials(
    path: Path,
    values: Mapping[str, Sequence[Any]],
    accuracies: Sequence[float],
    is_best: Sequence[bool],
    title: str,
    *,
    banner: str | None = None,
) -> None:
    """Draw what each varied setting does: a panel each, a dot a trial, the best ones ringed.

    Args:
        path: where the PNG goes.
        values: setting -> its value in each trial; numbers or texts.
        accuracies: 0..1 on the validation images, of each trial.
        is_best: of each trial, whether it is of the best point; one is at least.
        title: one line above the figure.
        banner: a warning that has to be seen.

    Raises:
        ValueError: no setting, or no trial.
    """
    if not values or not any(is_best):
        raise ValueError("expected at least one setting and one trial, the best")
    n_columns = min(3, len(values))
    n_rows = math.ceil(len(values) / n_columns)
    # Trials far below the rest would press the others, which are to be told apart, into one line.
    best, middle = max(accuracies), statistics.median(accuracies)
    least = best - 4 * (best - middle)
    shown = [max(accuracy, least) for accuracy in accuracies]
    is_below = [accuracy < least for accuracy in accuracies]
    subtitle = "a dot a trial; ring: the best" + ("; triangle: below" if any(is_below) else "")
    width, height = 0.8 + 3.2 * n_columns, 2.9 * n_rows
    heading = Heading(title, banner, subtitle)
    with png_figure(path, heading, width=width, height=height) as figure:
        panels = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
        for axes, (name, settings) in zip(panels, values.items(), strict=False):
            x = _place_settings(axes, settings)
            axes.grid(axis="y", color=GRID)
            points = list(zip(x, shown, strict=True))
            dots = list(compress(points, (not below for below in is_below)))
            axes.scatter(*zip(*dots, strict=True), s=22, color=BLUE, alpha=0.7, zorder=2)
            ring = {"s": 90, "facecolors": "none", "edgecolors": ORANGE, "linewidths": 1.8}
            axes.scatter(*zip(*compress(points, is_best), strict=True), **ring, zorder=3)
            if any(is_below):
                low = list(compress(points, is_below))
                axes.scatter(*zip(*low, strict=True), s=30, color=FAINT, marker="v", zorder=2)
            axes.set_xlabel(drawable(name, 40, "?"))
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel("val accuracy")
        for axes in panels[len(values) :]:
            axes.set_axis_off()


def _place_settings(axes: Axes, settings: Sequence[Any]) -> list[float]:
    """Return each setting's place on the x axis; numbers over a decade lie on a logarithmic one."""
    if all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in settings):
        low, high = min(settings), max(settings)
        if low > 0 and high >= 10 * low:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        distinct = sorted(set(settings))
        if len(distinct) <= _MAX_VALUE_TICKS:
            axes.set_xticks(distinct, [f"{value:g}" for value in distinct])
            axes.minorticks_off()
        return [float(setting) for setting in settings]
    texts = list(dict.fromkeys(str(setting) for setting in settings))
    axes.set_xticks(range(len(texts)), [drawable(text, 24, "?") for text in texts])
    axes.set_xlim(-0.6, len(texts) - 0.4)
    return [float(texts.index(str(setting))) for setting in settings]
