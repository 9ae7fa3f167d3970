"""The trials of a sweep compared: ranking, table and figures."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization import matplotlib as figures

from fmnist_tf.errors import printable
from fmnist_tf.reporting.style import ORANGE
from fmnist_tf.results.rundir import RunDir

_MIN_FOR_IMPORTANCES = 8  # complete trials


def rank(trials: pd.DataFrame, n_points: int) -> list[pd.DataFrame]:
    """Return the trials of each point, the best point first, equal ones in the plan's order.

    Points whose seeds are all complete come first, by mean val accuracy, then by mean loss; pruned
    and failed points come last.

    Args:
        trials: those that ended, with the columns of trials.csv.
        n_points: how many points there are; trial `n_points + 1` repeats the first.
    """
    points = trials.groupby((trials["trial"] - 1) % n_points)
    # Means of counts: means of fractions can differ by rounding where those are equal.
    scores = points[["correct", "loss"]].mean()
    scores["is_complete"] = points["correct"].count() == points.size()
    scores["state"] = points["state"].first()
    by = ["is_complete", "correct", "loss", "state"]  # "failed" < "pruned"
    ordered = scores.sort_values(by, ascending=[False, False, True, False])
    by_place = dict(iter(points))
    return [by_place[place] for place in ordered.index]


def describe_accuracy(complete: pd.DataFrame, prefix: str = "") -> str:
    """Return the mean accuracy of complete trials, with `test_` that on test rows: `0.9012`.

    Of several, with the sample standard deviation: `0.9012 ± 0.0021`.
    """
    values = (complete[f"{prefix}correct"] / complete[f"{prefix}total"]).dropna()
    if values.empty:
        return "-"
    return f"{values.mean():.4f}" + (f" ± {values.std():.4f}" if len(values) > 1 else "")


def summarize(points: Sequence[pd.DataFrame], varied: Collection[str]) -> pd.DataFrame:
    """Return the printed table, a row of text for each point."""
    rows = []
    for point in points:
        complete, errors = point.dropna(subset="correct"), point["error"].dropna()
        accuracy = describe_accuracy(complete)
        if not errors.empty:
            accuracy = f"failed: {printable(errors.iloc[-1], 40)}"
        elif complete.empty:
            accuracy = f"pruned after epoch {point['epoch'].iloc[-1]}"
        row = {"trials": ",".join(map(str, point["trial"]))}
        for name in varied:
            value = point[name].iloc[0]
            row[name] = f"{value:.6g}" if isinstance(value, float) else printable(str(value))
        row["val accuracy"] = accuracy
        if not varied:
            row["test accuracy"] = describe_accuracy(complete, "test_")
        row["n"] = str(len(complete))
        row["best epoch"] = ",".join(map(str, complete["epoch"])) or "-"
        rows.append({**row, "seconds": f"{point['seconds'].sum():.0f}"})
    return pd.DataFrame(rows)


def plot_trials(directory: RunDir, study: optuna.Study, banner: str) -> None:
    """Draw Optuna's figures of the complete trials, `optimization_history.png` and others.

    One trial or more must be complete; the banner's caveats stand on every figure.
    """
    complete = [trial for trial in study.trials if trial.value is not None]
    names = complete[0].params
    varied = [name for name in names if len({trial.params[name] for trial in complete}) > 1]
    plots: dict[str, partial[Any]] = {
        "optimization_history": partial(figures.plot_optimization_history)
    }
    if varied:
        plots["slice"] = partial(figures.plot_slice, params=varied)
    is_flat = len({trial.value for trial in complete}) == 1
    if len(varied) > 1 and len(complete) >= _MIN_FOR_IMPORTANCES and not is_flat:
        fanova = FanovaImportanceEvaluator(seed=0)
        plots["param_importances"] = partial(figures.plot_param_importances, evaluator=fanova)
    plt.switch_backend("agg")
    # Optuna changes the style for good, and warns that these functions are experimental.
    with plt.rc_context(), warnings.catch_warnings(action="ignore"):
        for name, plot in plots.items():
            figure = np.ravel(plot(study, target_name="val accuracy"))[0].figure
            figure.text(0, 0, banner, color=ORANGE, va="top")
            with directory.writing(f"{name}.png") as temporary:
                figure.savefig(temporary, bbox_inches="tight")
            plt.close(figure)
