"""The HTML pages of a run and of a data set: one file each, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.reporting import curves, plots
from fmnist_tf.reporting.examples import Examples
from fmnist_tf.reporting.record import (
    RunRecord,
    damage_is_bad_input,
    describe_network,
    explain_caveat,
    read_parent_history,
)
from fmnist_tf.reporting.render import blend_heat_map, display_names, write_page
from fmnist_tf.reporting.style import draw_chart
from fmnist_tf.results import analysis
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import SAMPLE, find_caveats
from fmnist_tf.results.rundir import CUTS, RunDir

_CURVES = 10  # classes whose precision-recall curves are drawn, those of the lowest F1


def write_report(run: RunDir, path: Path) -> None:
    """Write the page of one run; all its files but `DONE.json` must be there.

    Raises:
        UsageError: a file is missing or damaged.
    """
    record = RunRecord(run)
    training = _draw_training(record.history, record.chosen, record.steps)
    if not record.is_tested:
        context = {
            "name": record.name,
            "network": record.cells["run"],
            "data": record.provenance["data"],
            "banners": ["Not tested", *record.banners],
            "lead": f"Validation accuracy {record.cells['val']}, epoch {record.chosen.epoch}. "
            "Test it:",
            "command": f"python -m fmnist_tf.evaluate {run.name_in(run.runs_dir)}",
            "training": training,
        }
        write_page(path, "untested.html.jinja", context)
        return
    names, confusion, predictions = record.class_names, record.confusion, record.predictions
    with damage_is_bad_input(run):
        arrays = run.read_arrays("report.npz")
        val = Examples("val", arrays["val_labels"], arrays["val_probabilities"], arrays, names)
        test = Examples("test", *predictions, arrays, names)
        val_issues, test_issues = (
            analysis.find_label_issues(some.labels, some.probabilities, len(some.labels))
            for some in (val, test)
        )
        selected = analysis.select_examples(*predictions)
        scores = analysis.score_classes(confusion)
        by_f1 = sorted(range(len(names)), key=lambda k: (scores.support[k] == 0, scores.f1[k]))
        is_few = len(names) <= analysis.ALL_CLASSES
        curves_of = {k: names[k] for k in by_f1[:_CURVES] if scores.support[k]}
        temperature = record.evaluation.get("calibration", {}).get("temperature")
        context = {
            "run": record,
            "names": names,
            "confusion": confusion,
            "scores": scores,
            "by_f1": by_f1,
            "lowest": by_f1 if is_few else by_f1[: analysis.FEW_CLASSES],
            "change": _describe_change(record.evaluation),
            "shown": analysis.choose_classes(confusion),
            "pairs": analysis.rank_confusions(confusion, 6),
            "cells": [
                (k, j, test.tiles(selected.cells[k, j]))
                for k, j in sorted(selected.cells, key=lambda c: (c[0] == c[1], -confusion[c]))
            ],
            "worst": test.tiles(selected.worst),
            "least_sure": test.tiles(selected.least_sure),
            "n_issues": {"val": len(val_issues), "test": len(test_issues)},
            "issues": val.tiles(val_issues[: analysis.LABEL_ISSUES]),
            "precision_recall": draw_chart(
                "precision-recall", 4.4, plots.plot_precision_recall, *predictions, curves_of
            ),
            "calibration": draw_chart(
                "calibration", 4.4, plots.plot_calibration, *predictions, temperature
            ),
            "projections": [
                draw_chart(
                    f"projection-{kind}", 5.6, plots.plot_projection,
                    kind, arrays, predictions[0], names, dpi=150,
                )
                for kind in ("embeddings", "pixels")
            ],
            "cams": [
                tile | {"heat": blend_heat_map(tile["pixels"], heat)}
                for tile, heat in zip(
                    test.tiles(arrays["cam_rows"]), arrays["cam_maps"], strict=True
                )
            ],
            "cam_cells": arrays["cam_cells"].tolist(),
            "augmented": [np.hstack(row.reshape(-1, 28, 28)) for row in arrays["augmented"]],
            "data": _describe_data(
                record.provenance["data"], DataSummary.from_arrays(arrays), names
            ),
            "training": training,
            "cuts": _draw_cuts(run),
        }  # fmt: skip
        write_page(path, "report.html.jinja", context)


def write_stopped_report(
    run: RunDir, history: Sequence[HistoryRow], best_epoch: int, command: str, path: Path
) -> None:
    """Write the page of a run that was stopped: its training so far, and what finishes it.

    Raises:
        UsageError: a file is missing or damaged.
    """
    config, provenance = run.read_json("config.json"), run.read_json("provenance.json")
    with damage_is_bad_input(run):
        rows = [*read_parent_history(provenance), *history]
        chosen = next(row for row in history if row.epoch == best_epoch)
        kinds = provenance["data"]["kind"], provenance["weights"]["kind"]
        caveats = find_caveats(*kinds, config["phase"])
        stopped = f"Stopped in or after epoch {history[-1].epoch} of {config['epochs']}"
        context = {
            "name": run.path.resolve().name,
            "network": describe_network(config),
            "data": provenance["data"],
            "banners": [stopped, *map(explain_caveat, caveats)],
            "lead": f"Best validation accuracy so far: {chosen.val_accuracy:.2%}, epoch "
            f"{best_epoch}. Finish the run for its test and its page:",
            "command": command,
            "training": _draw_training(rows, chosen),
        }
        write_page(path, "untested.html.jinja", context)


def write_data_page(
    facts: Mapping[str, Any], summary: DataSummary, class_names: Sequence[str], path: Path
) -> None:
    """Write the page of a data set; `facts` are as under "data" in provenance.json."""
    data = _describe_data(facts, summary, display_names(class_names))
    banners = [explain_caveat(SAMPLE)] if facts["kind"] == "sample" else []
    write_page(path, "data.html.jinja", {"data": data, "banners": banners})


def _draw_training(
    rows: Sequence[HistoryRow], chosen: HistoryRow, losses: np.ndarray | None = None
) -> list[dict[str, str]]:
    """Return the charts of accuracy and loss, of the loss of each step, and of learning rates.

    `losses` are those of each step of the last phase, if known.
    """
    charts = [draw_chart("curves", 4.6, curves.plot_curves, rows, chosen)]
    if losses is not None and len(losses):
        charts.append(draw_chart("steps", 2.3, curves.plot_steps, losses, rows[-1]))
    return [*charts, draw_chart("rates", 2.3, curves.plot_learning_rate, rows)]


def _draw_cuts(run: RunDir) -> dict[str, Any] | None:
    """Return the chart and the rows of cuts.csv, or None of a run without `--cut auto`."""
    if not run.file(CUTS).exists():
        return None
    import pandas as pd

    with run.reading(CUTS) as file:
        cuts = pd.read_csv(file)
    chart = draw_chart("cuts", 3.0, plots.plot_cuts, cuts)
    return {"chart": chart, "rows": [*cuts.itertuples()]}


def _describe_change(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the test accuracy differs from the parent's, if that was compared."""
    if (entry := evaluation.get("parent")) is None:
        return None
    test = analysis.McNemar(**entry["mcnemar"])
    verdict = "no significant change"
    if test.is_significant:
        verdict = f"a significant {'rise' if test.points > 0 else 'fall'}"
    return {"run": entry["run"], "test": test, "verdict": verdict}


def _describe_data(
    facts: Mapping[str, Any], summary: DataSummary, names: Sequence[str]
) -> dict[str, Any]:
    """Return the facts on a data set, as in provenance.json, and its summary."""
    train = summary.train_counts
    shown = [*range(len(names))]
    if len(names) > analysis.ALL_CLASSES:
        by_size, half = np.argsort(-train, kind="stable").tolist(), analysis.FEW_CLASSES // 2
        shown = by_size[:half] + by_size[-half:]
    n_examples = np.clip(train, 1, summary.examples.shape[1])
    return {
        **facts,
        # The page has a banner for the sample.
        "warnings": [text for text in facts["warnings"] if not text.startswith("WARNING")],
        "names": names,
        "summary": summary,
        "shown": shown,
        "strips": {
            k: np.hstack([*summary.examples[k, : n_examples[k]].reshape(-1, 28, 28)]) for k in shown
        },
        "histogram": draw_chart("histogram", 2.3, plots.plot_histogram, summary.histogram),
    }
