"""The figures of a run: curves, confusion matrix, worst mistakes, learning rates.

In: epochs, an `Evaluation`, images with their labels and probabilities. Out: one PNG,
the same bytes for the same input. This module must not know where runs lie.

Class names come from a stranger's CSV: they are never read as mathematical notation, and a name
the font cannot draw is replaced by the number of its class.

matplotlib is imported inside the functions (it takes half a second) and only its object interface
is used: no global figure, no window, no display.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.errors import printable
from fmnist_tf.results.evaluation import Evaluation, check_predictions, worst_mistakes
from fmnist_tf.results.rundir import HistoryRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito: distinct to colour-blind eyes too
INK, FAINT, GRID = "#222222", "#8a8a8a", "#e6e6e6"
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so the same on every machine
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
_DPI = 130
_MAX_CELL_TEXTS = 30  # classes up to which a cell has room for its count
_MAX_NAMED_TICKS = 60  # classes up to which an axis has room for every name


def write_curves(
    path: Path,
    rows: Sequence[HistoryRow],
    title: str,
    *,
    chosen_epoch: int | None = None,
    banner: str | None = None,
) -> None:
    """Draw accuracy and loss over the epochs, training dashed and validation solid.

    Args:
        path: where the PNG goes.
        rows: at least one epoch, in order; several phases may follow one another.
        title: one line above the figure.
        chosen_epoch: the epoch of the last phase whose weights were kept; gets a mark.
        banner: a warning that has to be seen, such as that the data is not real.

    Raises:
        ValueError: no row, or the last phase has no epoch `chosen_epoch`.
    """
    if not rows:
        raise ValueError("rows: expected at least one epoch, found none")
    phases = place_phases(rows)
    chosen = None
    subtitle = ""
    if chosen_epoch is not None:
        x_last, rows_last = phases[-1]
        matches = [
            pair for pair in zip(x_last, rows_last, strict=True) if pair[1].epoch == chosen_epoch
        ]
        if not matches:
            raise ValueError(f"chosen_epoch: {chosen_epoch} is no epoch of {rows[-1].phase}")
        chosen = matches[0]
        subtitle = (
            f"ring: the weights kept, {chosen[1].phase} epoch {chosen_epoch}, "
            f"val accuracy {chosen[1].val_accuracy:.4f}, val loss {chosen[1].val_loss:.4f}"
        )
    with _figure(path, title, subtitle, banner, width=8.2, height=6.0) as figure:
        plot_curves(figure, rows, chosen)


def plot_curves(
    figure: Figure, rows: Sequence[HistoryRow], chosen: tuple[int, HistoryRow] | None
) -> None:
    """Draw accuracy above loss, each over the epochs of all phases, on an empty figure.

    Args:
        figure: to draw on.
        rows: at least one epoch.
        chosen: place on the x axis and row of the epoch that gets a ring.
    """
    from matplotlib.ticker import MaxNLocator

    phases = place_phases(rows)
    last_x = phases[-1][0][-1]
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name in ((upper, "accuracy"), (lower, "loss")):
        for prefix, colour, dash in (("", BLUE, (0, (4, 2))), ("val_", ORANGE, "solid")):
            for x, phase_rows in phases:
                y = [getattr(row, prefix + name) for row in phase_rows]
                axes.plot(x, y, color=colour, linestyle=dash, marker="o", markersize=3.5)
        if chosen:
            y_chosen = getattr(chosen[1], f"val_{name}")
            axes.plot(chosen[0], y_chosen, "o", markersize=11, mfc="none", mec=INK)
        _label_ends(axes, getattr(rows[-1], name), getattr(rows[-1], f"val_{name}"))
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        for (x_before, _), (x_after, _) in pairwise(phases):
            axes.axvline((x_before[-1] + x_after[0]) / 2, color=FAINT, linestyle=":")
    upper.set_ylabel("accuracy")
    lower.set_ylabel("loss (nats)")
    lower.set_xlabel("epoch" if last_x == rows[-1].epoch else "epoch, counted over all phases")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    lower.set_xlim(phases[0][0][0] - 0.4, last_x + 0.4)
    for x, phase_rows in phases if len(phases) > 1 else []:
        upper.annotate(
            phase_rows[0].phase,
            ((x[0] + x[-1]) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            color=FAINT,
        )


def write_confusion(
    path: Path,
    evaluation: Evaluation,
    class_names: Sequence[str],
    title: str,
    *,
    banner: str | None = None,
) -> None:
    """Draw the confusion matrix: counts as text, the share of the true class as colour.

    The figure stays within about 13 inches for any number of classes: beyond 30 the counts are
    left out, beyond 60 the axes carry class numbers in place of names.

    Args:
        path: where the PNG goes.
        evaluation: the counts, (K, K).
        class_names: K names.
        title: one line above the figure.
        banner: a warning that has to be seen.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    counts = evaluation.confusion
    n_classes = len(counts)
    names = _drawable_names(class_names, n_classes, limit=20)
    of_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(of_class, 1)  # a class without examples is a row of zeros
    side = min(max(0.62 * n_classes, 3.6), 10.0)
    cell_points = 72 * side / n_classes
    low, high = evaluation.interval_95
    subtitle = (
        f"accuracy {evaluation.accuracy:.4f} ({evaluation.correct:,} of {evaluation.total:,}), "
        f"95 % interval {low:.4f} to {high:.4f}"
    )
    with _figure(path, title, subtitle, banner, width=side + 2.6, height=side + 1.2) as figure:
        axes = figure.subplots()
        # The square root lifts the rare mistakes, which are what one looks for, off the ground.
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        picture = axes.imshow(shares, cmap="Blues", norm=norm)
        bar = figure.colorbar(picture, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        axes.set_xlabel("guess")
        axes.set_ylabel("truth")
        axes.spines[:].set_visible(False)
        if n_classes <= _MAX_NAMED_TICKS:
            size = min(9.0, 0.75 * cell_points)
            ticks = range(n_classes)
            axes.set_yticks(ticks, names, fontsize=size)
            axes.set_xticks(ticks, names, fontsize=size)
            if max(map(len, names)) * 0.7 * size > cell_points:
                slant = {"rotation": 45, "ha": "right", "va": "top", "rotation_mode": "anchor"}
                axes.tick_params(axis="x", pad=2)
                for label in axes.get_xticklabels():
                    label.set(**slant)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
            axes.set_xlabel("guess (class number)")
            axes.set_ylabel("truth (class number)")
        if n_classes <= _MAX_CELL_TEXTS:
            digits = len(f"{counts.max()}")
            size = min(10.0, 0.5 * cell_points, 1.4 * cell_points / digits)
            for row, column in np.argwhere(counts):
                dark = norm(shares[row, column]) > 0.6
                axes.text(
                    column,
                    row,
                    f"{counts[row, column]}",
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if dark else INK,
                    in_layout=False,  # within its cell anyway; measuring 900 texts is slow
                )


def write_mistakes(
    path: Path,
    pixels: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str,
    *,
    count: int = 36,
    banner: str | None = None,
) -> None:
    """Draw the worst mistakes, worst first, each with truth, guess and their probabilities.

    Args:
        path: where the PNG goes.
        pixels: (N, 784) uint8, 0 = background, drawn as white.
        labels: (N,) integers 0..K-1, the truth.
        probabilities: (N, K) floats 0..1.
        class_names: K names.
        title: one line above the figure.
        count: how many to draw at most, 1 or more.
        banner: a warning that has to be seen.

    Raises:
        ValueError: the arrays do not fit together.
    """
    check_predictions(labels, probabilities)
    if pixels.shape != (len(labels), 784):
        raise ValueError(f"pixels: expected shape ({len(labels)}, 784), found {pixels.shape}")
    names = _drawable_names(class_names, probabilities.shape[1], limit=15)
    guesses = probabilities.argmax(axis=1)
    n_mistakes = int((guesses != labels).sum())
    worst = worst_mistakes(labels, probabilities, count)
    columns = min(6, max(len(worst), 3))
    rows = max(1, math.ceil(len(worst) / columns))
    subtitle = f"{n_mistakes:,} of {len(labels):,} images are guessed wrong"
    subtitle += f"; these are the {len(worst)} worst" if n_mistakes > len(worst) else ""
    with _figure(path, title, subtitle, banner, width=1.9 * columns, height=2.3 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, index in zip(grid, worst, strict=False):
            axes.imshow(pixels[index].reshape(28, 28), cmap="gray_r", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set(visible=True, color=GRID)
            captions = (("truth", labels[index], BLUE), ("guess", guesses[index], ORANGE))
            for line, (word, k, colour) in enumerate(captions):
                for x, side, text in (
                    (0, "left", f"{word} {names[k]}"),
                    (1, "right", f"{probabilities[index, k]:.1%}"),
                ):
                    axes.annotate(
                        text,
                        (x, 0),
                        (0, -11 - 10 * line),
                        xycoords="axes fraction",
                        textcoords="offset points",
                        ha=side,
                        color=colour,
                        fontsize=7.5,
                    )
        for axes in grid[len(worst) :]:
            axes.set_axis_off()
        if not n_mistakes:
            figure.text(0.5, 0.4, "no mistakes", ha="center", fontsize=16, color=FAINT)


def write_lr_finder(
    path: Path,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    title: str,
    *,
    banner: str | None = None,
) -> None:
    """Draw the range test: loss over the learning rate, and the rate that it suggests.

    Args:
        path: where the PNG goes.
        rates: rising, above 0.
        losses: of the first steps at these rates; as many or fewer.
        smoothed: the same number, smoothed.
        suggestion: gets a line; None where there is none.
        title: one line above the figure.
        banner: a warning that has to be seen.
    """
    suggested = "none suggested" if suggestion is None else f"suggested: {suggestion:.3g}"
    subtitle = f"one step at each rate; {suggested}"
    with _figure(path, title, subtitle, banner, width=6.4, height=4.0) as figure:
        axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
        tried = rates[: len(losses)]
        axes.plot(tried, losses, color="#bbbbbb", linewidth=1, label="each step")
        axes.plot(tried, smoothed, color=BLUE, linewidth=2, label="smoothed")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        if suggestion is not None:
            axes.axvline(suggestion, color=ORANGE, linestyle="--", label="suggested")
        # The range that matters: what explodes would flatten the rest.
        axes.set_ylim(top=1.5 * max(smoothed[0], min(smoothed)))
        axes.legend()


@contextlib.contextmanager
def _figure(
    path: Path, title: str, subtitle: str, banner: str | None, *, width: float, height: float
) -> Iterator[Figure]:
    """Yield a figure with `width` x `height` inches to draw on below its header; then write it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    lines: list[tuple[str, dict[str, Any], float]] = [
        (title, {"fontsize": 13, "fontweight": "bold"}, 0.34)
    ]
    if banner:
        box = {"facecolor": "#fff3cd", "edgecolor": ORANGE, "boxstyle": "round,pad=0.4"}
        lines.insert(0, (banner, {"fontsize": 11, "color": ORANGE, "bbox": box}, 0.44))
    if subtitle:
        lines.append((subtitle, {"fontsize": 9, "color": "#555555"}, 0.24))
    header = 0.12 + sum(inches for _, _, inches in lines)
    # "default" first: a person's own matplotlibrc must not change what a run leaves behind.
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height + header), dpi=_DPI)
        bottom = 0.1 / (height + header)
        below_header = (0.1 / width, bottom, 1 - 0.2 / width, height / (height + header) - bottom)
        figure.set_layout_engine("constrained", rect=below_header)
        from_top = 0.0
        for text, look, inches in lines:
            from_top += inches
            y = 1 - from_top / (height + header)
            limit = int(72 * (width - 0.3) / (0.7 * look["fontsize"]))  # a letter's width in points
            figure.text(0.15 / width, y, _drawable(text, limit) or "?", **look)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def place_phases(rows: Sequence[HistoryRow]) -> list[tuple[list[int], list[HistoryRow]]]:
    """Return for each phase its places on the x axis and its rows.

    A phase that counts its epochs from the start again is moved to where the one before ended.
    """
    phases: list[tuple[list[int], list[HistoryRow]]] = []
    shift = 0
    for _, group in groupby(rows, key=lambda row: row.phase):
        phase_rows = list(group)
        if phases and phase_rows[0].epoch + shift <= phases[-1][0][-1]:
            shift = phases[-1][0][-1]
        phases.append(([row.epoch + shift for row in phase_rows], phase_rows))
    return phases


def _label_ends(axes: Axes, train: float, val: float) -> None:
    """Name both lines at their right ends, with their last values, apart from one another."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    y_train, y_val = train, val
    if abs(train - val) < gap:
        middle, sign = (train + val) / 2, 1 if train >= val else -1
        y_train, y_val = middle + sign * gap / 2, middle - sign * gap / 2
    for name, value, y, colour in (("train", train, y_train, BLUE), ("val", val, y_val, ORANGE)):
        if math.isfinite(value):
            axes.annotate(
                f"{name} {value:.4f}",
                (1.01, y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=colour,
                fontweight="bold",
                annotation_clip=False,
            )


def _drawable_names(class_names: Sequence[str], n_classes: int, limit: int) -> list[str]:
    """Return one drawable name of at most `limit` characters for each class."""
    if len(class_names) != n_classes:
        raise ValueError(f"class_names: expected {n_classes} names, found {len(class_names)}")
    return [_drawable(name, limit) or f"class {k}" for k, name in enumerate(class_names)]


def _drawable(text: str, limit: int) -> str:
    """Return `text` on one line, at most `limit` characters; empty if the font lacks one."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    shown = printable(text.strip(), limit)
    return shown if all(font.get_char_index(ord(c)) for c in shown) else ""
