"""Curves over epochs and steps: accuracy, loss, learning rate; the learning-rate finder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_tf.reporting.style import BLUE, COLOURS, FAINT, INK, ORANGE, TIP, Heading, png_figure
from fmnist_tf.results.history import HistoryRow

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fmnist_tf.reporting.record import RunRecord

_MAX_POINTS = 300  # of the curve of steps


def write_curves(
    path: Path, heading: Heading, rows: Sequence[HistoryRow], chosen_epoch: int
) -> None:
    """Write the PNG of `plot_curves`; the chosen epoch is one of the last phase."""
    chosen = next(row for row in reversed(rows) if row.epoch == chosen_epoch)
    subtitle = (
        f"ring: selected weights, {chosen.phase} epoch {chosen_epoch}, "
        f"val accuracy {chosen.val_accuracy:.4f}, val loss {chosen.val_loss:.4f}"
    )
    with png_figure(path, heading, subtitle, width=8.2, height=6.0) as figure:
        plot_curves(figure, rows, chosen)


def plot_curves(figure: Figure, rows: Sequence[HistoryRow], chosen: HistoryRow) -> str:
    """Draw accuracy above loss over the epochs of all phases, training dashed, validation solid.

    A ring marks the chosen epoch; tooltips tell the numbers of each.
    """
    table = _tabulate(rows)
    phases = {str(phase): of for phase, of in table.groupby("phase", sort=False)}
    x_chosen = table["x"][rows.index(chosen)]
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, metric in ((upper, "accuracy"), (lower, "loss")):
        for split, prefix, colour, dash in (
            ("train", "", BLUE, (0, (4, 2))),
            ("val", "val_", ORANGE, "solid"),
        ):
            for number, of in enumerate(phases.values()):
                (line,) = axes.plot(of["x"], of[prefix + metric], color=colour, marker="o", ms=3.5)
                # One entry in the legend.
                line.set(linestyle=dash, label=f"_{split}" if number else split)
        axes.plot(x_chosen, getattr(chosen, f"val_{metric}"), "o", ms=11, mfc="none", mec=INK)
        axes.grid(axis="y")
        _add_tips(axes, table)
        for of in [*phases.values()][1:]:
            between = of.index[0] - 1, of.index[0]
            axes.axvline(table["x"][[*between]].mean(), color=FAINT, linestyle=":")
    upper.set_ylabel("accuracy")
    upper.legend(labelcolor="linecolor")
    lower.set_ylabel("loss (nats)")
    _count_epochs(lower, table)
    for phase, of in phases.items() if len(phases) > 1 else ():
        place, coordinates = ((of["x"].min() + of["x"].max()) / 2, 1.02), ("data", "axes fraction")
        upper.annotate(phase, place, xycoords=coordinates, ha="center", color=FAINT)
    return (
        f"{' and '.join(phases).capitalize()}: validation accuracy {rows[0].val_accuracy:.2%} in "
        f"the first epoch, {chosen.val_accuracy:.2%} in the selected one, {chosen.phase} epoch "
        f"{chosen.epoch} (ring)."
    )


def plot_learning_rate(figure: Figure, rows: Sequence[HistoryRow]) -> str:
    """Draw the learning rate at the end of each epoch, without starting points (epoch 0)."""
    axes = figure.add_subplot(ylabel="learning rate")
    table = _tabulate(rows).query("epoch > 0")
    for _, of in table.groupby("phase", sort=False):
        axes.plot(of["x"], of["learning_rate"], "o-", color=BLUE, ms=3.5)
    _add_tips(axes, table)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(axis="y")
    _count_epochs(axes, table)
    low, high = table["learning_rate"].agg(["min", "max"])
    if low == high:
        return f"Constant learning rate of {low:.3g}."
    return f"Learning rate between {low:.3g} and {high:.3g}."


def plot_steps(figure: Figure, losses: np.ndarray, last: HistoryRow) -> str:
    """Draw the loss of each step, (S,), up to an epoch; of many steps means of neighbours."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot(xlabel="epoch", ylabel="loss of a step (nats)", yscale="log")
    parts = np.array_split(losses, min(len(losses), _MAX_POINTS))
    y = np.array([part.mean() for part in parts])
    x = np.cumsum([len(part) for part in parts]) * last.epoch / len(losses)
    axes.plot(x, y, color=BLUE, lw=1.2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    axes.margins(x=0.01)
    return f"Training loss of each of the {len(losses):,} {last.phase} steps."


def plot_overlay(figure: Figure, runs: Mapping[str, RunRecord]) -> str:
    """Draw the validation accuracy of runs, named by their marks in the legend."""
    axes = figure.add_subplot(ylabel="validation accuracy")
    tables = [_tabulate(run.history) for run in runs.values()]
    for number, (mark, table) in enumerate(zip(runs, tables, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(table["x"], table["val_accuracy"], "o-", color=colour, ms=3.5, lw=1.8, label=mark)
    axes.legend(labelcolor="linecolor", ncols=1 + len(runs) // 8)
    axes.grid(axis="y")
    _count_epochs(axes, max(tables, key=lambda table: table["x"].max()))
    chosen = [run.chosen.val_accuracy for run in runs.values()]
    differ = len({run.split for run in runs.values()}) > 1
    return (
        "Validation accuracy by epoch. In the selected epochs it is between "
        f"{min(chosen):.2%} and {max(chosen):.2%}."
        + (" Not all runs used the same validation rows." if differ else "")
    )


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
    subtitle = f"one step at each learning rate; {suggested}"
    with png_figure(path, heading, subtitle, width=6.4, height=4.0) as figure:
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


def _tabulate(rows: Sequence[HistoryRow]) -> pd.DataFrame:
    """Return a row for each epoch, with `x`, its number counted over all phases."""
    import pandas as pd

    table = pd.DataFrame(rows)
    lengths = table.groupby("phase", sort=False)["epoch"].last()
    table["x"] = table["epoch"] + table["phase"].map(lengths.cumsum() - lengths)
    return table


def _add_tips(axes: Axes, table: pd.DataFrame) -> None:
    """Give each epoch an invisible band over the height of the axes, with its numbers."""
    for row in table.to_dict("records"):
        lines = [
            "{phase} epoch {epoch}",
            "validation loss {val_loss:.4f}, accuracy {val_accuracy:.2%}",
        ]
        if row["epoch"]:
            lines.insert(1, "training loss {loss:.4f}, accuracy {accuracy:.2%}")
            lines.append("learning rate {learning_rate:.3g}")
        tip = TIP + "\n".join(lines).format_map(row)
        axes.axvspan(row["x"] - 0.5, row["x"] + 0.5, alpha=0, gid=tip)


def _count_epochs(axes: Axes, table: pd.DataFrame) -> None:
    """Give the x axis whole numbers and a label."""
    from matplotlib.ticker import MaxNLocator

    last = table.iloc[-1]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlim(table["x"].min() - 0.4, last["x"] + 0.4)
    axes.set_xlabel("epoch, counted over all phases" if last["x"] != last["epoch"] else "epoch")
