"""The HTML page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from fmnist_tf.reporting import curves
from fmnist_tf.reporting.examples import Examples, find_disagreements
from fmnist_tf.reporting.record import FACTS, RunRecord
from fmnist_tf.reporting.render import show_setting, write_page
from fmnist_tf.reporting.style import COLOURS, draw_chart
from fmnist_tf.results import analysis

_SHOWN_WITH = 4  # runs whose images are compared with those of the first


def write_comparison(records: Sequence[RunRecord], path: Path) -> list[str]:
    """Write the page that compares complete runs.

    Returns:
        For each pair of runs the result of McNemar's test, or why it does not apply.

    Raises:
        UsageError: a run is damaged.
    """
    # A, B, ... Z, A2, B2, ...
    runs = {
        f"{ascii_uppercase[n % 26]}{n // 26 + 1 if n >= 26 else ''}": record
        for n, record in enumerate(records)
    }
    first, *others = records
    pairs = [_compare(*pair) for pair in combinations(runs.items(), 2)]

    def read_examples(mark: str) -> Examples:
        record, arrays = runs[mark], runs[mark].directory.read_arrays("report.npz")
        return Examples("test", *record.predictions, arrays, record.class_names)

    context = {
        "runs": runs,
        "colours": COLOURS,
        **_describe_differences(records),
        "curves": draw_chart("overlay", 3.4, curves.plot_overlay, runs),
        "pairs": pairs,
        "changes": [None, *(pair["test"] for pair in pairs[: len(others)])],
        "images": [
            (*pair["marks"], find_disagreements(*map(read_examples, pair["marks"])))
            for pair in pairs[: min(len(others), _SHOWN_WITH)]
            if pair["test"]
        ],
        "recalls": _describe_recalls(records),
        "names": first.class_names,
        "data": first.provenance["data"],
    }
    write_page(path, "comparison.html.jinja", context)
    return [pair["text"] for pair in pairs]


def _compare(first: tuple[str, RunRecord], second: tuple[str, RunRecord]) -> dict[str, Any]:
    """Return the result of McNemar's test on two runs, or why it does not apply."""
    (mark_a, a), (mark_b, b) = first, second
    names, marks = f"{mark_a} {a.name} and {mark_b} {b.name}", (mark_a, mark_b)
    why = None
    if not (a.is_tested and b.is_tested):
        why = "not both were tested"
    elif a.test_data != b.test_data:
        why = "the recorded test data differ (SHA-256)"
    elif a.label_map != b.label_map:
        why = "the classes differ"
    elif not np.array_equal(a.predictions[0], b.predictions[0]):
        why = "the test labels differ"
    if why:
        return {"test": None, "marks": marks, "text": f"{names}: not compared, {why}"}
    test = analysis.compare_runs(*a.predictions, b.predictions[1])
    verdict = "no significant difference"
    if test.is_significant:
        verdict = f"{mark_b if test.points > 0 else mark_a} is significantly better"
    text = (
        f"{names}: of {len(a.predictions[0]):,} test images {test.only_first:,} are correct only "
        f"in {mark_a} and {test.only_second:,} only in {mark_b}, McNemar p = {test.p_value:.2g}; "
        f"{verdict}"
    )
    return {"test": test, "marks": marks, "text": text, "verdict": verdict}


def _describe_differences(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what differs between runs: names and a value for each run; and what does not."""
    facts = {name: [record.cells[name] for record in records] for name in FACTS}
    # The other facts are summaries of settings.
    rows = [(name, facts[name]) for name in ("data", "backbone weights")]
    for name in dict.fromkeys(name for record in records for name in record.config):
        values = [show_setting(record.config.get(name)) for record in records]
        rows.append((name.replace("_", " "), values))
    return {
        "differ": [row for row in rows if len(set(row[1])) > 1],
        "same": {name: values[0] for name, values in facts.items() if len(set(values)) == 1},
        "results": [name for name in records[0].cells if name not in FACTS],
    }


def _describe_recalls(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Return the recalls (K, R) of R runs, and the classes whose recalls differ most.

    None if the runs are not tested or have different classes.
    """
    if not all(run.is_tested and run.label_map == records[0].label_map for run in records):
        return None
    scores = [analysis.score_classes(record.confusion) for record in records]
    recalls = np.stack([score["recall"] for score in scores], axis=1)
    spread = np.ptp(recalls, axis=1)
    shown = np.argsort(-spread, kind="stable").tolist()
    if len(shown) > analysis.ALL_CLASSES:
        shown = shown[: analysis.FEW_CLASSES]
    support = scores[0]["support"]
    return {"support": support, "shown": shown, "by_class": recalls, "spread": spread}
