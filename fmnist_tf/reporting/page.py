"""The HTML pages of a run, of several runs and of a data set: one file each, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.reporting import curves, sections
from fmnist_tf.reporting.record import (
    COLUMNS,
    N_FACTS,
    RunRecord,
    damage_is_bad_input,
    describe_caveats,
    describe_run,
    explain_caveat,
    read_complete,
)
from fmnist_tf.reporting.render import display_names, write_page
from fmnist_tf.reporting.style import COLOURS
from fmnist_tf.results import analysis
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.provenance import SAMPLE
from fmnist_tf.results.rundir import RunDir

_SHOWN_WITH = 4  # runs whose images are compared with those of the first


def write_report(run: RunDir, path: Path) -> None:
    """Write the page of one run; all its files but `DONE.json` must be there.

    Raises:
        UsageError: a file is missing or damaged.
    """
    record = RunRecord(run)
    if not record.is_tested:
        context = {
            "run_name": record.name,
            "cells": record.cells,
            "provenance": record.provenance,
            "banners": ["Not tested", *record.banners],
            "lead": f"Validation accuracy {record.cells[4]}, epoch {record.chosen.epoch}. Test it:",
            "command": f"python -m fmnist_tf.evaluate {run.name_in(run.runs_dir)}",
            "training": sections.describe_training(record.history, record.chosen, record.steps),
            "invert": record.provenance["data"]["background"] < 128,
        }
        write_page(path, "untested.html.jinja", context)
        return
    names, arrays, confusion = record.class_names, run.read_arrays("report.npz"), record.confusion
    with damage_is_bad_input(run):
        test = sections.Examples("test", *record.predictions, arrays, names)
        val_predictions = arrays["val_labels"], arrays["val_probabilities"]
        val = sections.Examples("val", *val_predictions, arrays, names)
        selected = analysis.select_examples(*record.predictions)
        summary, facts = DataSummary.from_arrays(arrays), record.provenance["data"]
        scores = sections.describe_scores(confusion)
        context = {
            "run": record,
            "names": names,
            "confusion": confusion,
            **scores,
            "change": sections.describe_change(record.evaluation),
            "shown": analysis.choose_classes(confusion),
            "pairs": analysis.rank_confusions(confusion, 6),
            "cells": sections.describe_cells(test, selected.cells, confusion),
            "worst": test.tiles(selected.worst),
            "least_sure": test.tiles(selected.least_sure),
            "issues": sections.describe_label_issues(val, test),
            "precision_recall": sections.describe_precision_recall(
                *record.predictions, names, scores["by_f1"]
            ),
            "calibration": sections.describe_calibration(
                *record.predictions, record.evaluation.get("calibration")
            ),
            "projections": sections.describe_projections(arrays, record.predictions[0], names),
            "cams": sections.describe_cams(arrays, test),
            "cam_cells": arrays["cam_cells"].tolist(),
            "augmented": [np.hstack(row.reshape(-1, 28, 28)) for row in arrays["augmented"]],
            "data": sections.describe_data(facts, summary, names),
            "training": sections.describe_training(record.history, record.chosen, record.steps),
            "cuts": sections.describe_cuts(run),
            "invert": facts["background"] < 128,
        }
        write_page(path, "report.html.jinja", context)


def write_stopped_report(
    run: RunDir, history: Sequence[HistoryRow], best_epoch: int, command: str, path: Path
) -> list[str]:
    """Write the page of a run that was stopped: its training so far.

    Args:
        run: has config.json and provenance.json.
        history: of its epochs.
        best_epoch: one of them.
        command: finishes the run.
        path: of the page.

    Returns:
        The run's row in the table of runs.

    Raises:
        UsageError: a file is missing or damaged.
    """
    config, provenance = run.read_json("config.json"), run.read_json("provenance.json")
    with damage_is_bad_input(run):
        data = provenance["data"]
        before = [HistoryRow(**row) for row in provenance.get("parent_history", ())]
        chosen = next(row for row in history if row.epoch == best_epoch)
        last = f"epoch {history[-1].epoch} of {config['epochs']}"
        figures = [f"{chosen.val_accuracy:.4f} so far", f"stopped in or after {last}", "none"]
        cells = describe_run(config, provenance, (data["n_val"], data["n_test"]), figures)
        context = {
            "run_name": run.path.resolve().name,
            "cells": cells,
            "provenance": provenance,
            "banners": [f"Stopped in or after {last}", *describe_caveats(config, provenance)],
            "lead": f"Best validation accuracy so far: {chosen.val_accuracy:.2%}, epoch "
            f"{best_epoch}. Finish the run for its test and its page:",
            "command": command,
            "training": sections.describe_training([*before, *history], chosen),
            "invert": data["background"] < 128,
        }
        write_page(path, "untested.html.jinja", context)
    return cells


def write_data_page(
    facts: Mapping[str, Any], summary: DataSummary, class_names: Sequence[str], path: Path
) -> None:
    """Write the page of a data set; `facts` are as under "data" in provenance.json."""
    data = sections.describe_data(facts, summary, display_names(class_names))
    banners = [explain_caveat(SAMPLE)] if facts["kind"] == "sample" else []
    context = {"data": data, "banners": banners, "invert": facts["background"] < 128}
    write_page(path, "data.html.jinja", context)


def write_comparison(runs: Sequence[RunDir], path: Path) -> list[str]:
    """Write the page that compares complete runs.

    Returns:
        For each pair of runs the result of McNemar's test, or why it does not apply.

    Raises:
        UsageError: a run is incomplete or damaged.
    """
    records = [read_complete(run) for run in runs]
    # A, B, ... Z, A2, B2, ...
    marks = [f"{ascii_uppercase[n % 26]}{n // 26 + 1 if n >= 26 else ''}" for n in range(len(runs))]
    pairs = [_compare(*pair) for pair in combinations(zip(marks, records, strict=True), 2)]
    selected = [record.chosen.val_accuracy for record in records]
    finding = (
        "Validation accuracy by epoch. In the selected epochs it is between "
        f"{min(selected):.2%} and {max(selected):.2%}."
    )
    if len({record.split for record in records}) > 1:
        finding += " Not all runs used the same validation rows."
    chart = (curves.plot_overlay, [record.history for record in records], marks)
    same_classes = all(
        record.is_tested and record.label_map == records[0].label_map for record in records
    )
    confusions = [record.confusion for record in records]
    context = {
        "columns": COLUMNS[N_FACTS:],
        "rows": [
            (mark, COLOURS[number % len(COLOURS)], record)
            for number, (mark, record) in enumerate(zip(marks, records, strict=True))
        ],
        **sections.describe_differences(records),
        "curves": sections.draw_chart("overlay", finding, 3.4, *chart),
        "pairs": pairs,
        "changes": [None, *(pair["test"] for pair in pairs[: len(runs) - 1])],
        "images": _show_disagreements(runs, records, pairs),
        "recalls": sections.describe_recalls(confusions) if same_classes else None,
        "names": records[0].class_names,
        "invert": records[0].provenance["data"]["background"] < 128,
    }
    write_page(path, "comparison.html.jinja", context)
    return [pair["text"] for pair in pairs]


def _show_disagreements(
    runs: Sequence[RunDir], records: Sequence[RunRecord], pairs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, list[Any]]]:
    """Return marks and tiles of the first run with each of the next that have its test images."""

    def read(number: int) -> sections.Examples:
        record, arrays = records[number], runs[number].read_arrays("report.npz")
        return sections.Examples("test", *record.predictions, arrays, record.class_names)

    with_first = list(enumerate(pairs[: min(len(runs) - 1, _SHOWN_WITH)], start=1))
    return [
        (*pair["marks"], sections.describe_disagreements(read(0), read(number)))
        for number, pair in with_first
        if pair["test"]
    ]


def _compare(first: tuple[str, RunRecord], second: tuple[str, RunRecord]) -> dict[str, Any]:
    """Return the result of McNemar's test on two runs, or why it does not apply."""
    (mark_a, a), (mark_b, b) = first, second
    names, marks = f"{mark_a} {a.name} and {mark_b} {b.name}", (mark_a, mark_b)
    if not (a.is_tested and b.is_tested):
        text = f"{names}: not compared, not both were tested"
        return {"test": None, "marks": marks, "text": text}
    (labels, probabilities), (other_labels, other_probabilities) = a.predictions, b.predictions
    for is_same, why in (
        (a.test_data == b.test_data, "the recorded test data differ (SHA-256)"),
        (a.label_map == b.label_map, "the classes differ"),
        (np.array_equal(labels, other_labels), "the test labels differ"),
    ):
        if not is_same:
            return {"test": None, "marks": marks, "text": f"{names}: not compared, {why}"}
    test = analysis.compare_runs(labels, probabilities, other_probabilities)
    verdict = "no significant difference"
    if test.is_significant:
        verdict = f"{mark_b if test.points > 0 else mark_a} is significantly better"
    text = (
        f"{names}: of {len(labels):,} test images {test.only_first:,} are correct only in {mark_a} "
        f"and {test.only_second:,} only in {mark_b}, McNemar p = {test.p_value:.2g}; {verdict}"
    )
    return {"test": test, "marks": marks, "text": text, "verdict": verdict}
