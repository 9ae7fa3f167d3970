"""The HTML page of a run and of a data set: one file each, no script, nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.reporting import sections
from fmnist_tf.reporting.record import RunRecord, damage_is_bad_input, explain_caveat
from fmnist_tf.reporting.render import display_names, write_page
from fmnist_tf.results import analysis
from fmnist_tf.results.provenance import SAMPLE
from fmnist_tf.results.rundir import RunDir


def write_report(run: RunDir, path: Path) -> None:
    """Write the page of one run; all its files but `DONE.json` must be there.

    Raises:
        UsageError: a file is missing or damaged.
    """
    with damage_is_bad_input(run):
        record = RunRecord(run)
        names, arrays, confusion = record.class_names, record.arrays, record.confusion
        test = sections.Examples("test", *record.predictions, arrays, names)
        val = sections.Examples(
            "val", arrays["val_labels"], arrays["val_probabilities"], arrays, names
        )
        selected = analysis.select_examples(*record.predictions)
        summary, facts = DataSummary.from_arrays(arrays), record.provenance["data"]
        context = {
            "run": record,
            "scores": sections.describe_scores(confusion, names),
            "matrix": sections.describe_matrix(confusion, names),
            "pairs": sections.describe_pairs(selected, confusion, test),
            "worst": test.tiles(selected.worst),
            "least_sure": test.tiles(selected.least_sure),
            "issues": [sections.describe_label_issues(examples) for examples in (val, test)],
            "calibration": sections.describe_calibration(*record.predictions),
            "projections": sections.describe_projections(arrays, record.predictions[0], names),
            "cams": sections.describe_cams(arrays, test),
            "cam_cells": arrays["cam_cells"].tolist(),
            "data": sections.describe_data(facts, summary, names),
            "training": sections.describe_training(
                record.history, record.chosen, record.provenance
            ),
            "invert": facts["background"] < 128,
        }
        write_page(path, "report.html.jinja", context)


def write_data_page(
    facts: Mapping[str, Any], summary: DataSummary, class_names: Sequence[str], path: Path
) -> None:
    """Write the page of a data set.

    Args:
        facts: as under "data" in provenance.json: name, kind, files, decisions, warnings,
            background.
        summary: of all its images.
        class_names: K names.
        path: of the page.
    """
    data = sections.describe_data(facts, summary, display_names(class_names))
    banners = [explain_caveat(SAMPLE)] if facts["kind"] == "sample" else []
    context = {"data": data, "banners": banners, "invert": facts["background"] < 128}
    write_page(path, "data.html.jinja", context)
