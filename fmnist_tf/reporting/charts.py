"""Charts and pictures of the report, as text that an HTML page can hold.

In: epochs, counts, coordinates, pixels. Out: inline SVG whose ink are the page's CSS variables (so
that it follows the theme), and PNGs as data URIs; the same text for the same input. This module
must not know where runs lie nor what the page says about a chart.

Names come as text fit to be shown; the browser draws them, in whatever font has their letters.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from fmnist_tf.reporting.figures import (
    BLUE,
    FAINT,
    GRID,
    INK,
    ORANGE,
    STYLE,
    place_phases,
    plot_curves,
)
from fmnist_tf.results.analysis import Calibration
from fmnist_tf.results.history import HistoryRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mid-tones, to be told apart on white and on black; the first ten after Tableau's.
COLOURS = (
    "#4e79a7", "#f28e2b", "#e15759", "#59a14f", "#b07aa1", "#2fa8a0", "#c9a227", "#9c6b4a",
    "#ef7fa5", "#7f8c8d", "#7a5fd0", "#a3b93b", "#c2410c", "#4cc3e6", "#8b2f6b", "#3d6b35",
    "#d98f8f", "#5b6b8f", "#b5651d", "#00b894",
)  # fmt: skip
GREY = "#8c8c8c"
_INKS = {BLUE: "--blue", ORANGE: "--orange", INK: "--ink", FAINT: "--faint", GRID: "--rule"}
_WIDTH = 5.0  # inches of 72 units; a unit is about a pixel on a phone


def draw_image(pixels: np.ndarray) -> str:
    """Return uint8 pixels, (784,), (H, W) or (H, W, 3), as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    array = pixels.reshape(28, 28) if pixels.ndim == 1 else pixels
    Image.fromarray(array).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def draw_heat(pixels: np.ndarray, heat: np.ndarray) -> str:
    """Return a grey image under its heat map as a PNG in a data URI.

    Args:
        pixels: (784,) uint8.
        heat: (28, 28) uint8; 0 leaves the image grey, 255 is bright yellow.
    """
    import matplotlib

    grey = pixels.reshape(28, 28, 1).astype(np.float64)
    warm = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    share = 0.75 * (heat / 255)[..., None] ** 0.7
    return draw_image(np.rint(0.85 * grey * (1 - share) + warm * share).astype(np.uint8))


def chart_curves(rows: Sequence[HistoryRow], chosen_epoch: int, label: str) -> Markup:
    """Draw accuracy and loss over the epochs of all phases; a ring marks the epoch kept."""
    places, last = place_phases(rows)[-1]
    chosen = next(pair for pair in zip(places, last, strict=True) if pair[1].epoch == chosen_epoch)
    return _chart("curves", label, 4.6, lambda figure: plot_curves(figure, rows, chosen))


def chart_rates(rows: Sequence[HistoryRow], label: str) -> Markup:
    """Draw the learning rate at the end of each epoch; a starting point has none."""

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "epoch", "learning rate")
        for places, phase_rows in place_phases(rows):
            pairs = zip(places, phase_rows, strict=True)
            trained = [(x, row.learning_rate) for x, row in pairs if row.epoch]
            axes.plot(
                *zip(*trained, strict=True) if trained else ((), ()), "o-", color=BLUE, ms=3.5
            )
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))

    return _chart("rates", label, 2.3, draw)


def chart_calibration(calibration: Calibration, label: str) -> Markup:
    """Draw accuracy against confidence by bin, the gap between them, and the size of the bins."""
    filled = calibration.counts > 0
    left, width = calibration.edges[:-1][filled], np.diff(calibration.edges)[filled]
    shares = calibration.counts[filled] / calibration.counts.sum()
    confidence = calibration.confidence[filled]

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        heights = (calibration.accuracy[filled], shares)
        for axes, height, colour in ((upper, heights[0], BLUE), (lower, heights[1], FAINT)):
            axes.bar(left, height, 0.92 * width, align="edge", color=colour, alpha=0.6, linewidth=0)
        upper.hlines(confidence, left, left + 0.92 * width, color=ORANGE, linewidth=2.5)
        upper.plot((0, 1), (0, 1), color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
        upper.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="share right")
        lower.set(xlabel="probability of the guess", ylabel="images")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return _chart("calibration", label, 4.4, draw)


def chart_map(
    points: np.ndarray, labels: np.ndarray, names: Sequence[str], kind: str, label: str
) -> Markup:
    """Draw (P, 2) points coloured by class, and each class' name at the middle of its points.

    Beyond `len(COLOURS)` classes only the largest are coloured and named.
    """
    sizes = np.bincount(labels, minlength=len(names))
    shown = np.sort(np.argsort(-sizes, kind="stable")[: len(COLOURS)])
    shown = shown[sizes[shown] > 0]
    colours = np.full(len(names), GREY, dtype=object)
    colours[shown] = COLOURS[: len(shown)]
    low, high = points.min(axis=0), points.max(axis=0)
    reach = max(float((high - low).max()) * 0.54, 1e-6)

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(low + high)[0] / 2 + np.array([-reach, reach]))
        axes.set(ylim=(low + high)[1] / 2 + np.array([-reach, reach]))
        order = np.argsort(np.isin(labels, shown), kind="stable")  # the grey ones below
        axes.scatter(
            points[order, 0],
            points[order, 1],
            s=7,
            c=colours[labels[order]],
            alpha=0.55,
            lw=0,
            rasterized=True,
        )
        middles = np.array([points[labels == k].mean(axis=0) for k in shown])
        spots = _part(
            figure,
            axes,
            middles,
            [names[k] for k in shown],
            dots=8 * (len(shown) <= 12),
            shift=(0, 12),
        )
        for k, middle, spot in zip(shown, middles, spots, strict=True):
            axes.annotate(
                names[k],
                middle,
                (spot[0], spot[1]),
                textcoords="figure points",
                ha="center",
                va="center",
                fontsize=10,
                fontweight="bold",
                arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.7, "shrinkA": 2, "shrinkB": 3},
                in_layout=False,
            )
            axes.plot(*middle, "o", ms=6, color=colours[k], mec=INK, mew=0.8)

    return _chart(f"map-{kind}", label, _WIDTH, draw, resolution=150)


def chart_histogram(counts: np.ndarray, label: str) -> Markup:
    """Draw the share of the pixels in each of 32 equal ranges of the 256 grey levels."""

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "grey level", "pixels")
        shares = counts.reshape(32, 8).sum(axis=1) / max(counts.sum(), 1)
        axes.bar(np.arange(32) * 8, shares, 7.2, align="edge", color=BLUE, alpha=0.7, linewidth=0)
        axes.set_xticks([0, 64, 128, 192, 255])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return _chart("histogram", label, 2.3, draw)


def chart_overlay(runs: Sequence[Sequence[HistoryRow]], marks: Sequence[str], label: str) -> Markup:
    """Draw the validation accuracy of several runs, each with its mark where it ends."""

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "epoch", "accuracy on validation rows")
        ends = []
        for number, rows in enumerate(runs):
            colour = COLOURS[number % len(COLOURS)]
            phases = place_phases(rows)
            for places, phase_rows in phases:
                y = [row.val_accuracy for row in phase_rows]
                axes.plot(places, y, "o-", color=colour, ms=3.5, lw=1.8)
            ends.append((phases[-1][0][-1], phases[-1][1][-1].val_accuracy))
        axes.margins(x=0.08)
        spots = _part(figure, axes, np.array(ends), marks, dots=0, shift=(12, 0))
        for number, (mark, spot) in enumerate(zip(marks, spots, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            axes.annotate(
                mark,
                (spot[0], spot[1]),
                xycoords="figure points",
                ha="center",
                va="center",
                color=colour,
                fontweight="bold",
                in_layout=False,
            )

    return _chart("overlay", label, 3.4, draw)


def _axes(figure: Figure, x_label: str, y_label: str) -> Axes:
    """Return the one set of axes of a plain chart whose x axis counts."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    return axes


def _part(
    figure: Figure,
    axes: Axes,
    points: np.ndarray,
    names: Sequence[str],
    *,
    dots: float,
    shift: tuple[float, float],
) -> np.ndarray:
    """Return where to put the names of points: (n, 2) figure points, apart from one another.

    Args:
        figure: laid out here.
        axes: on it.
        points: (n, 2) data coordinates.
        names: n of them.
        dots: side of the square around each point that names keep off.
        shift: from a point to its name, in figure points.
    """
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * 72
    centres: np.ndarray = axes.transData.transform(points) * 72 / figure.dpi
    half = np.array([3.3 * len(name) + 2 for name in names])
    spots = centres + shift
    spots[:, 0] = np.clip(spots[:, 0], half, np.maximum(width - half, half))
    sizes = [(side, 6.5) for side in half] + [(dots / 2, dots / 2)] * (len(centres) if dots else 0)
    for _ in range(300):
        boxes = np.concatenate([spots, centres]) if dots else spots
        for a, b in combinations(range(len(boxes)), 2):
            across = sizes[a][0] + sizes[b][0] - abs(boxes[b, 0] - boxes[a, 0])
            apart = boxes[b, 1] - boxes[a, 1]
            push = sizes[a][1] + sizes[b][1] - abs(apart)
            if a < len(spots) and across > 0 and push > 0.1:
                towards = 0.6 * push if apart >= 0 else -0.6 * push
                spots[a, 1] -= towards
                if b < len(spots):
                    spots[b, 1] += towards
    spots[:, 1] = np.clip(spots[:, 1], 8, height - 8)
    return spots


def _chart(
    name: str, label: str, height: float, draw: Callable[[Figure], None], resolution: int = 100
) -> Markup:
    """Return what `draw` leaves on an empty figure as inline SVG with an accessible label."""
    import matplotlib.style
    from matplotlib.figure import Figure

    look = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}
    stream = io.StringIO()
    with matplotlib.style.context(["default", STYLE, look]), warnings.catch_warnings():
        # The font of the layout need not have the letters: the browser's will.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata, dpi=resolution)
    svg = stream.getvalue()
    svg = re.sub(r"\s*<(style|metadata)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    # Only tags are touched: in a text matplotlib has escaped what could end one.
    svg = re.sub(r"<[^>]+>", lambda tag: _adapt(tag[0], used), svg)
    size = f'viewBox="0 0 {_WIDTH * 72:g} {height * 72:g}"'
    head = f'<svg class="chart {name}" role="img" aria-label="{escape(label)}" {size}>'
    return Markup(head + svg[svg.index(">") + 1 :])


def _adapt(tag: str, used: set[str]) -> str:
    """Return an SVG tag with the page's inks and font, and without an id that nothing refers to."""
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    for colour, variable in _INKS.items():
        tag = tag.replace(f": {colour.lower()}", f": var({variable})")
    return re.sub(r"\s+", " ", tag)
