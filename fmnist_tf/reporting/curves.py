"""Curves over epochs (accuracy, loss, learning rate) and over learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.reporting.style import BLUE, COLOURS, FAINT, INK, ORANGE, TIP, Heading, png_figure
from fmnist_tf.results.history import HistoryRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 300  # of the curve of steps
_Phases = list[tuple[list[int], list[HistoryRow]]]  # x coordinates and rows of each phase


def write_curves(
    path: Path, heading: Heading, rows: Sequence[HistoryRow], chosen_epoch: int
) -> None:
    """Write the PNG of `plot_curves`."""
    _, chosen = _find_chosen(rows, chosen_epoch)
    subtitle = (
        f"ring: selected weights, {chosen.phase} epoch {chosen_epoch}, "
        f"val accuracy {chosen.val_accuracy:.4f}, val loss {chosen.val_loss:.4f}"
    )
    with png_figure(path, replace(heading, subtitle=subtitle), width=8.2, height=6.0) as figure:
        plot_curves(figure, rows, chosen_epoch)


def plot_curves(figure: Figure, rows: Sequence[HistoryRow], chosen_epoch: int) -> None:
    """Draw accuracy above loss over the epochs of all phases, training dashed, validation solid.

    A ring marks the chosen epoch; tooltips tell the numbers of each.

    Raises:
        ValueError: the last phase has no such epoch.
    """
    phases = _place_phases(rows)
    x_chosen, chosen = _find_chosen(rows, chosen_epoch)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, metric in ((upper, "accuracy"), (lower, "loss")):
        for split, prefix, colour, dash in (
            ("train", "", BLUE, (0, (4, 2))),
            ("val", "val_", ORANGE, "solid"),
        ):
            for number, (x, phase_rows) in enumerate(phases):
                y = [getattr(row, prefix + metric) for row in phase_rows]
                label = f"_{split}" if number else split  # one entry in the legend
                axes.plot(x, y, color=colour, linestyle=dash, marker="o", ms=3.5, label=label)
        y_chosen = getattr(chosen, f"val_{metric}")
        axes.plot(x_chosen, y_chosen, "o", markersize=11, mfc="none", mec=INK)
        axes.grid(axis="y")
        _add_tips(axes, phases)
        for (before, _), (after, _) in pairwise(phases):
            axes.axvline((before[-1] + after[0]) / 2, color=FAINT, linestyle=":")
    upper.set_ylabel("accuracy")
    upper.legend(labelcolor="linecolor")
    lower.set_ylabel("loss (nats)")
    _count_epochs(lower, phases)
    for x, phase_rows in phases if len(phases) > 1 else []:
        place = ((x[0] + x[-1]) / 2, 1.02)
        coordinates = ("data", "axes fraction")
        upper.annotate(phase_rows[0].phase, place, xycoords=coordinates, ha="center", color=FAINT)


def plot_learning_rate(figure: Figure, rows: Sequence[HistoryRow]) -> None:
    """Draw the learning rate at the end of each epoch, without starting points (epoch 0)."""
    axes = figure.add_subplot(ylabel="learning rate")
    phases = _place_phases([row for row in rows if row.epoch])
    for x, phase_rows in phases:
        axes.plot(x, [row.learning_rate for row in phase_rows], "o-", color=BLUE, ms=3.5)
    _add_tips(axes, phases)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(axis="y")
    _count_epochs(axes, phases)


def plot_steps(figure: Figure, losses: np.ndarray, n_epochs: int) -> None:
    """Draw the loss of each step, (S,), over the epochs; of many steps means of neighbours."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot(xlabel="epoch", ylabel="loss of a step (nats)", yscale="log")
    parts = np.array_split(losses, min(len(losses), _MAX_POINTS))
    y = np.array([part.mean() for part in parts])
    x = np.cumsum([len(part) for part in parts]) * n_epochs / len(losses)
    axes.plot(x, y, color=BLUE, lw=1.2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    axes.margins(x=0.01)


def plot_overlay(
    figure: Figure, histories: Sequence[Sequence[HistoryRow]], marks: Sequence[str]
) -> None:
    """Draw the validation accuracy of several runs, named by their marks in the legend."""
    axes = figure.add_subplot(ylabel="validation accuracy")
    longest = max((_place_phases(rows) for rows in histories), key=lambda phases: phases[-1][0][-1])
    for number, (rows, mark) in enumerate(zip(histories, marks, strict=True)):
        phases = _place_phases(rows)
        x = [place for places, _ in phases for place in places]
        y = [row.val_accuracy for row in rows]
        axes.plot(x, y, "o-", color=COLOURS[number % len(COLOURS)], ms=3.5, lw=1.8, label=mark)
    axes.legend(labelcolor="linecolor", ncols=1 + len(marks) // 8)
    axes.grid(axis="y")
    _count_epochs(axes, longest)


def write_lr_finder(
    path: Path,
    heading: Heading,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> None:
    """Write the PNG of a learning-rate finder: loss over learning rate.

    `losses` are of the first of the ascending rates, one step each; `smoothed` are the same.
    """
    suggested = "none suggested" if suggestion is None else f"suggested: {suggestion:.3g}"
    heading = replace(heading, subtitle=f"one step at each learning rate; {suggested}")
    with png_figure(path, heading, width=6.4, height=4.0) as figure:
        axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
        tried = rates[: len(losses)]
        axes.plot(tried, losses, color=FAINT, linewidth=1, label="each step")
        axes.plot(tried, smoothed, color=BLUE, linewidth=2, label="smoothed")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        if suggestion is not None:
            axes.axvline(suggestion, color=ORANGE, linestyle="--", label="suggested")
        # Without a limit the diverging end would flatten the rest.
        axes.set_ylim(top=1.5 * max(smoothed[0], min(smoothed)))
        axes.legend()


def _add_tips(axes: Axes, phases: _Phases) -> None:
    """Give each epoch an invisible band over the height of the axes, with its numbers."""
    for x, rows in phases:
        for place, row in zip(x, rows, strict=True):
            lines = [f"{row.phase} epoch {row.epoch}"]
            if row.epoch:
                lines.append(f"training loss {row.loss:.4f}, accuracy {row.accuracy:.2%}")
            lines.append(f"validation loss {row.val_loss:.4f}, accuracy {row.val_accuracy:.2%}")
            lines += [f"learning rate {row.learning_rate:.3g}"] if row.epoch else []
            axes.axvspan(place - 0.5, place + 0.5, alpha=0, gid=TIP + "\n".join(lines))


def _place_phases(rows: Sequence[HistoryRow]) -> _Phases:
    """Return for each phase the x coordinates of its epochs, and its rows.

    A phase that counts its epochs from the start again continues where the one before ended.
    """
    phases: _Phases = []
    shift = 0
    for _, group in groupby(rows, key=lambda row: row.phase):
        phase_rows = list(group)
        if phases and phase_rows[0].epoch + shift <= phases[-1][0][-1]:
            shift = phases[-1][0][-1]
        phases.append(([row.epoch + shift for row in phase_rows], phase_rows))
    return phases


def _find_chosen(rows: Sequence[HistoryRow], chosen_epoch: int) -> tuple[int, HistoryRow]:
    """Return x coordinate and row of an epoch of the last phase."""
    for x, row in zip(*_place_phases(rows)[-1], strict=True) if rows else ():
        if row.epoch == chosen_epoch:
            return x, row
    raise ValueError(f"chosen_epoch: found {chosen_epoch}, which the last phase does not have")


def _count_epochs(axes: Axes, phases: _Phases) -> None:
    """Give the x axis whole numbers and a label."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlim(phases[0][0][0] - 0.4, phases[-1][0][-1] + 0.4)
    restarts = phases[-1][0][-1] != phases[-1][1][-1].epoch
    axes.set_xlabel("epoch, counted over all phases" if restarts else "epoch")
