"""Plots of predictions and pixels; `plot_...` returns a sentence that says what it shows.

N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.data.images import PixelRows
from fmnist_tf.reporting.render import squeeze
from fmnist_tf.reporting.style import (
    BLUE,
    COLOURS,
    FAINT,
    GRID,
    HIT,
    INK,
    MISS,
    ORANGE,
    PAPER,
    TIP,
    Heading,
    drawable_names,
    png_figure,
)
from fmnist_tf.results.analysis import measure_calibration
from fmnist_tf.results.evaluation import Evaluation, worst_mistakes
from fmnist_tf.results.temperature import scale

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MAX_COUNTED, _MAX_NAMED = 30, 60  # classes up to which cells have room for counts, axes for names
_N_MISTAKES = 36
_MAX_POINTS = 200  # of a precision-recall curve


def write_confusion(
    path: Path, heading: Heading, evaluation: Evaluation, class_names: Sequence[str]
) -> None:
    """Write the PNG of a confusion matrix: counts as text, fractions of the row as colour.

    The diagonal is blue, mistakes are orange, as on the page.
    It stays within about 13 inches: beyond 30 classes it has no counts, beyond 60 the axes have
    class numbers instead of names.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import MaxNLocator

    counts = evaluation.confusion
    n_classes = len(counts)
    names = drawable_names(class_names, 20)
    # The square root makes rare mistakes visible.
    shades = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[..., None]
    is_hit = np.eye(n_classes, dtype=bool)[..., None]
    colours = np.where(is_hit, to_rgb(HIT), to_rgb(MISS))
    colours = np.array(to_rgb(PAPER)) * (1 - shades) + colours * shades
    side = min(max(0.62 * n_classes, 3.6), 10.0)
    cell_points = 72 * side / n_classes
    low, high = evaluation.interval_95
    subtitle = (
        f"accuracy {evaluation.accuracy:.4f} ({evaluation.correct:,} of {evaluation.total:,}), "
        f"95 % interval {low:.4f} to {high:.4f}"
    )
    with png_figure(
        path, heading, subtitle, width=max(side + 1.7, 6.2), height=side + 1.2
    ) as figure:
        axes = figure.add_subplot(xlabel="prediction", ylabel="true label")
        axes.spines[:].set_visible(False)
        axes.imshow(colours)
        if n_classes <= _MAX_NAMED:
            size = min(9.0, 0.75 * cell_points)
            axes.set_yticks(range(n_classes), names, fontsize=size)
            axes.set_xticks(range(n_classes), names, fontsize=size)
            if max(map(len, names)) * 0.7 * size > cell_points:
                for label in axes.get_xticklabels():
                    label.set(rotation=45, ha="right", va="top", rotation_mode="anchor")
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        if n_classes <= _MAX_COUNTED:
            size = min(10.0, 0.5 * cell_points, 1.4 * cell_points / len(f"{counts.max()}"))
            for row, column in np.argwhere(counts):
                text = axes.text(column, row, f"{counts[row, column]}", fontsize=size)
                # In its cell anyway; to lay out 900 texts is slow.
                text.set(ha="center", va="center", in_layout=False)


def write_mistakes(
    path: Path,
    heading: Heading,
    pixels: PixelRows,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Write the PNG of the 36 worst mistakes, each with true label, prediction and probabilities.

    N images: pixels (N, 784) uint8, 0 is drawn white; labels (N,) integers, probabilities (N, K).
    """
    names = drawable_names(class_names, 15)
    predictions = probabilities.argmax(axis=1)
    n_mistakes = int((predictions != labels).sum())
    worst = worst_mistakes(labels, probabilities, _N_MISTAKES)
    columns = min(6, max(len(worst), 3))
    rows = max(1, math.ceil(len(worst) / columns))
    subtitle = f"{n_mistakes:,} of {len(labels):,} predictions are wrong"
    subtitle += f"; the {len(worst)} worst" if n_mistakes > len(worst) else ""
    with png_figure(path, heading, subtitle, width=1.9 * columns, height=2.3 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, index in zip(grid, worst, strict=False):
            axes.imshow(pixels[index].reshape(28, 28), cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=GRID)
            captions = (("true", labels[index], BLUE), ("pred", predictions[index], ORANGE))
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


def plot_calibration(
    figure: Figure, labels: np.ndarray, probabilities: np.ndarray, temperature: float | None
) -> str:
    """Draw accuracy against confidence by bin (a reliability diagram), and the size of the bins.

    With a temperature, dots are the accuracy at the mean confidence of each bin after scaling.
    """
    calibration = measure_calibration(labels, probabilities)
    filled = calibration.counts > 0
    left, width = calibration.edges[:-1][filled], 0.92 * np.diff(calibration.edges)[filled]
    fractions = calibration.counts[filled] / calibration.counts.sum()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    bars = upper.bar(left, calibration.accuracy[filled], width, align="edge", color=BLUE, alpha=0.6)
    columns = (calibration.confidence, calibration.accuracy, calibration.counts)
    for bar, *values in zip(bars, *(column[filled] for column in columns), strict=True):
        bar.set_gid(TIP + "confidence {:.1%}, accuracy {:.1%}, {:,} images".format(*values))
    lower.bar(left, fractions, width, align="edge", color=FAINT, alpha=0.6)
    confidence = calibration.confidence[filled]
    upper.hlines(confidence, left, left + width, color=ORANGE, linewidth=2.5)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    finding = (
        f"Mean confidence {probabilities.max(axis=1).mean():.1%}, accuracy {accuracy:.1%}; "
        f"expected calibration error (ECE) {calibration.ece:.1%}, maximum calibration error "
        f"{calibration.mce:.1%}."
    )
    if temperature is not None:
        scaled = measure_calibration(labels, scale(probabilities, temperature))
        upper.plot(scaled.confidence, scaled.accuracy, "o", color=INK, ms=4)
        finding += (
            f" With its temperature {temperature:.3f}, fitted on the validation images, "
            f"which predict, demo and export use, the ECE is {scaled.ece:.1%} "
            "(dots: the nearer to the dashed line, the better)."
        )
    upper.plot((0, 1), (0, 1), color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="accuracy")
    lower.set(xlabel="probability of the prediction", ylabel="images")
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return finding


def plot_precision_recall(
    figure: Figure, labels: np.ndarray, probabilities: np.ndarray, names: Mapping[int, str]
) -> str:
    """Draw precision over recall of the classes in `names`, each in the colour of its number."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    averages = {}
    for k in sorted(names):
        is_label, scores = labels == k, probabilities[:, k]
        averages[k] = average_precision_score(is_label, scores)
        precision, recall, _ = precision_recall_curve(is_label, scores, drop_intermediate=True)
        kept = np.unique(np.linspace(0, len(recall) - 1, _MAX_POINTS).astype(int))
        (line,) = axes.plot(recall[kept], precision[kept], color=COLOURS[k % len(COLOURS)], lw=1.8)
        name = squeeze(names[k], 14)
        line.set_label(f"{name} {averages[k]:.2f}")
        line.set_gid(f"{TIP}{name}: average precision {averages[k]:.1%}")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=1)
    worst = min(averages, key=averages.__getitem__)
    return (
        f"Each class against the rest; the number is the average precision, lowest for "
        f"{names[worst]} with {averages[worst]:.1%}."
    )


def plot_projection(
    figure: Figure,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
) -> str:
    """Draw the projection in report.npz of the `kind` "embeddings" or "pixels", coloured by class.

    The number of a class stands at its mean. Of more than 20 classes only the largest are coloured
    and named. `labels` are (N,) of all test images.
    """
    points, labels = arrays[f"projection_{kind}"], labels[arrays["projection_rows"]]
    sizes = np.bincount(labels, minlength=len(names))
    shown = np.sort(np.argsort(-sizes, kind="stable")[: len(COLOURS)])
    shown = shown[sizes[shown] > 0]
    colours = np.full(len(names), FAINT, dtype=object)
    colours[shown] = COLOURS[: len(shown)]
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    order = np.argsort(np.isin(labels, shown), kind="stable")  # the grey ones below
    x, y = points[order].T
    axes.scatter(x, y, s=7, c=colours[labels[order]], alpha=0.55, lw=0, rasterized=True)
    for k in shown:
        mean, label = points[labels == k].mean(axis=0), f"{k} {squeeze(names[k], 14)}"
        axes.plot(*mean, "o", ms=6, color=colours[k], mec=INK, label=label)
        note = axes.annotate(f"{k}", mean, (0, 9), textcoords="offset points", ha="center")
        note.set_fontweight("bold")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, handletextpad=0.2)
    return (
        f"{kind.capitalize()} of {len(points):,} test images; the two components explain "
        f"{arrays[f'projection_{kind}_variance'].sum():.0%} of the variance."
    )


def plot_histogram(figure: Figure, counts: np.ndarray) -> str:
    """Draw the fraction of the pixels in each of 32 equal ranges of the 256 grey levels."""
    axes = figure.add_subplot(xlabel="grey level", ylabel="pixels", xticks=[0, 64, 128, 192, 255])
    fractions = counts.reshape(32, 8).sum(axis=1) / max(counts.sum(), 1)
    axes.bar(np.arange(32) * 8, fractions, 7.2, align="edge", color=BLUE, alpha=0.7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y")
    return (
        f"Grey levels of all training pixels: {fractions[:4].sum():.0%} are below 32 and "
        f"{fractions[28:].sum():.0%} are 224 or more (0 is black, 255 white)."
    )


def write_cuts(path: Path, heading: Heading, cuts: pd.DataFrame) -> None:
    """Write the PNG of `plot_cuts`."""
    with png_figure(path, heading, width=9.0, height=4.0) as figure:
        plot_cuts(figure, cuts)


def plot_cuts(figure: Figure, cuts: pd.DataFrame) -> str:
    """Draw probe accuracy over seconds, and over bytes, of the candidates of `--cut auto`.

    `cuts` are as in cuts.csv; there is a line for each image size.
    """
    axes_of = figure.subplots(1, 2, sharey=True)
    columns = {"seconds_per_1000": "seconds per 1,000 images", "stored_bytes": "bytes per image"}
    chosen = cuts[cuts["chosen"] == 1].iloc[0]
    for axes, (column, label) in zip(axes_of, columns.items(), strict=True):
        for number, (size, of) in enumerate(cuts.groupby("image_size", sort=False)):
            x, y = of[column], 100 * of["probe_accuracy"]
            axes.plot(x, y, "o-", ms=4, color=COLOURS[number], label=f"{size} pixels")
            for *place, cut in zip(x, y, of["cut"], strict=True):
                offset = {"xytext": (0, 5), "textcoords": "offset points"}
                axes.annotate(cut, place, **offset, fontsize=7, ha="center")
        at = chosen[column], 100 * chosen["probe_accuracy"]
        axes.plot(*at, "o", ms=12, mfc="none", color=INK, label="chosen")
        axes.set(xscale="log", xlabel=label)
        axes.margins(0.1, 0.12)
        axes.grid()
    axes_of[0].set_ylabel("accuracy of a linear probe, %")
    axes_of[0].legend()
    last = cuts[cuts["image_size"] == chosen["image_size"]].iloc[-1]
    return (
        f"The linear probe's accuracy is {chosen['probe_accuracy']:.2%} after {chosen['cut']} at "
        f"{chosen['image_size']} pixels, the chosen cut, and {last['probe_accuracy']:.2%} after "
        f"{last['cut']}."
    )
