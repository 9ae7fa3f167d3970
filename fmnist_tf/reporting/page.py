"""The pages people judge a run by: one HTML file each, without scripts, with nothing from outside.

In: finished run directories, or the facts on a data set. Out: a file that opens from disk. This
module must not know models, and reads no data set: the run directory is enough. What a part of the
page lacks (an older run has no `report.npz`) is said in its place.

Class, file and run names are anybody's text: they are escaped, cut, and drawn by the browser alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.errors import UsageError, printable
from fmnist_tf.reporting import charts, sections
from fmnist_tf.results import analysis
from fmnist_tf.results.evaluation import check_predictions
from fmnist_tf.results.provenance import RANDOM, SAMPLE, find_caveats
from fmnist_tf.results.rundir import HistoryRow, RunDir
from fmnist_tf.system.files import replacing

REPORT, ARRAYS = "report.html", "report.npz"
COLUMNS = ("run", "data", "backbone weights", "trained on", "val", "test", "95 % interval", "time")
_DESCRIPTIONS = ("config", "evaluation", "provenance")
_NAME_LIMIT = 32  # characters of a class name; narrow places cut further


@dataclass(frozen=True, eq=False)
class _Facts:
    """What the files of one run say.

    Attributes:
        name: of the run.
        config: config.json.
        evaluation: evaluation.json.
        provenance: provenance.json.
        cells: its row in the table of runs.
        confusion: (K, K) int64 counts on the test images.
        split: SHA-256 of the train file and of its division into train and val.
        test_file: how many data files there were, and the SHA-256 of the last, which the test
            images are of.
        tested_at: in words; None in an older run.
        history: of all phases.
        chosen: the epoch kept.
        label_map: labels.json.
        class_names: the same names, fit to be shown.
        labels: (N,) int64, of the test images.
        probabilities: (N, K) float32.
        arrays: of report.npz; empty for a run without.
    """

    name: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    provenance: dict[str, Any]
    cells: list[str]
    confusion: np.ndarray
    split: tuple[str, str]
    test_file: tuple[int, str]
    tested_at: str | None
    history: list[HistoryRow]
    chosen: HistoryRow
    label_map: dict[str, Any]
    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    arrays: dict[str, np.ndarray]


def write_report(run: RunDir, path: Path) -> None:
    """Write the page of one run, atomically; all its files but `DONE.json` must be there.

    Raises:
        UsageError: a file is missing or damaged.
    """
    with _damage_is_bad_input(run):
        facts = _read_facts(run)
        arrays, names, confusion = facts.arrays, facts.class_names, facts.confusion
        test = sections.Part.of_arrays("test", facts.labels, facts.probabilities, arrays, names)
        parts = {"test": test}
        if arrays:
            of_val = arrays["val_labels"], arrays["val_probabilities"]
            parts["val"] = sections.Part.of_arrays("val", *of_val, arrays, names)
        chosen = analysis.select_examples(test.labels, test.probabilities)
        text = _render(
            "report.html.jinja",
            {
                **sections.describe_scores(confusion, names),
                "run": facts,
                "row": dict(zip(COLUMNS, facts.cells, strict=True)),
                "banners": _banners(facts.config, facts.provenance),
                "has_arrays": bool(arrays),
                "matrix": sections.describe_matrix(confusion, names),
                "pairs": sections.describe_pairs(chosen, confusion, test),
                "worst": test.tiles(chosen.worst),
                "least_sure": test.tiles(chosen.least_sure),
                "n_tested": int((facts.confusion.sum(axis=1) > 0).sum()),
                "issues": {part: sections.describe_label_issues(of) for part, of in parts.items()},
                "calibration": sections.describe_calibration(test.labels, test.probabilities),
                "maps": sections.describe_maps(arrays, test.labels, names),
                "cams": sections.describe_cams(arrays, test),
                "cam_cells": arrays.get("cam_cells", np.zeros(0, np.int64)).tolist(),
                "data": sections.describe_data(
                    facts.provenance["data"],
                    DataSummary.from_arrays(arrays) if arrays else None,
                    names,
                ),
                "training": sections.describe_training(
                    facts.history, facts.chosen, facts.provenance
                ),
                "invert": bool(arrays) and facts.provenance["data"].get("background", 0) < 128,
            },
        )
    _write(path, text)


def write_comparison(runs: Sequence[RunDir], path: Path) -> list[str]:
    """Write the page that compares finished runs, atomically.

    Returns:
        For each pair of runs what the McNemar test says, or why it does not apply.

    Raises:
        UsageError: a run is incomplete or damaged.
    """
    all_facts = []
    for run in runs:
        with _damage_is_bad_input(run):
            _check_complete(run)
            all_facts.append(_read_facts(run))
    marks = [_mark(number) for number in range(len(runs))]
    pairs = [
        _compare(first, second, (marks[a], marks[b]))
        for (a, first), (b, second) in combinations(enumerate(all_facts), 2)
    ]
    kept = [facts.chosen.val_accuracy for facts in all_facts]
    finding = (
        f"Validation accuracy by epoch; that of the epochs kept lies between {min(kept):.2%} and "
        f"{max(kept):.2%}."
    )
    if len({facts.split for facts in all_facts}) > 1:
        finding += " Not all runs were validated on the same rows."
    colours = [charts.COLOURS[number % len(charts.COLOURS)] for number in range(len(runs))]
    banners = [_banners(facts.config, facts.provenance) for facts in all_facts]
    context = {
        "columns": COLUMNS,
        "rows": list(zip(marks, colours, all_facts, strict=True)),
        "banners": [
            f"{mark}: {note}" for mark, own in zip(marks, banners, strict=True) for note in own
        ],
        "curves": charts.chart_overlay([facts.history for facts in all_facts], marks, finding),
        "finding": finding,
        "pairs": pairs,
        "recalls": sections.describe_recalls(
            [facts.confusion for facts in all_facts], all_facts[0].class_names
        )
        if all(facts.label_map == all_facts[0].label_map for facts in all_facts)
        else None,
        "marks": marks,
        "invert": False,
    }
    _write(path, _render("comparison.html.jinja", context))
    return [pair["text"] for pair in pairs]


def write_data_page(
    facts: Mapping[str, Any], summary: DataSummary, class_names: Sequence[str], path: Path
) -> None:
    """Write the page on a data set alone, atomically.

    Args:
        facts: as under "data" in provenance.json: name, kind, files, decisions, warnings,
            background.
        summary: of all its images.
        class_names: K names.
        path: where the page goes.
    """
    data = sections.describe_data(facts, summary, show_names(class_names))
    banners = [_explain(SAMPLE)] if facts["kind"] == "sample" else []
    context = {"data": data, "banners": banners, "invert": facts["background"] < 128}
    _write(path, _render("data.html.jinja", context))


def describe_run(run: RunDir) -> list[str]:
    """Return one row of the table of runs, as `COLUMNS` names its cells.

    Raises:
        UsageError: the run is incomplete or damaged.
    """
    with _damage_is_bad_input(run):
        _check_complete(run)
        return _cells(*(run.read_json(f"{name}.json") for name in _DESCRIPTIONS))


def _cells(
    config: Mapping[str, Any], evaluation: Mapping[str, Any], provenance: Mapping[str, Any]
) -> list[str]:
    val, test, weights = evaluation["val"], evaluation["test"], provenance["weights"]
    low, high = test["interval_95"]
    stages = f", {'+'.join(config['unfreeze'])}" if config["unfreeze"] else ""
    trained = "all" if config["phase"] == "scratch" else f"head{stages}"
    if "n_train" in provenance["data"]:  # which an older run does not say
        trained += f"; {provenance['data']['n_train']:,} images"
    flip = ", test-time flip" if config.get("test_time_flip") else ""
    source = weights["kind"]
    if source == "file":
        source = f"{Path(weights['path']).name} ({weights['sha256'][:8]})"
    cells = [
        f"{config['phase']} {config['backbone']} at {config['image_size']}, {config['head']}{flip}",
        f"{evaluation['dataset']}, {val['total']:,} val, {test['total']:,} test",
        source,
        trained,
        f"{val['accuracy']:.4f} ({val['correct']}/{val['total']})",
        f"{test['accuracy']:.4f} ({test['correct']}/{test['total']})",
        f"{low:.4f} to {high:.4f}",
        f"{sum(provenance['seconds'].values()) / 60:.1f} min",
    ]
    return [printable(cell, 90) for cell in cells]


def show_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return names fit to be shown, none empty, no two the same."""
    shown = [
        printable(name.strip(), _NAME_LIMIT) or f"class {k}" for k, name in enumerate(class_names)
    ]
    often = Counter(shown)
    return tuple(f"{name} [{k}]" if often[name] > 1 else name for k, name in enumerate(shown))


def _check_complete(run: RunDir) -> None:
    if not run.is_complete:
        raise UsageError(
            f"{printable(str(run.path), 200)}: incomplete (no DONE.json); expected a finished run"
        )


def _read_facts(run: RunDir) -> _Facts:
    config, evaluation, provenance, label_map = (
        run.read_json(f"{name}.json") for name in (*_DESCRIPTIONS, "labels")
    )
    tested_at = evaluation.get("tested_at")
    if tested_at is not None:
        tested_at = f"{datetime.fromisoformat(tested_at):%Y-%m-%d %H:%M} UTC"
    own, files = run.read_history(), provenance["data"]["files"]
    labels, probabilities = run.read_predictions()
    check_predictions(labels, probabilities)
    return _Facts(
        name=printable(run.path.resolve().name, 64),
        config=config,
        evaluation=evaluation,
        provenance=provenance,
        cells=_cells(config, evaluation, provenance),
        confusion=np.array(evaluation["test"]["confusion"], np.int64),
        split=(files[0]["sha256"], provenance["data"]["split_sha256"]),
        test_file=(len(files), files[-1]["sha256"]),
        tested_at=tested_at,
        history=[HistoryRow(**row) for row in provenance.get("parent_history", ())] + own,
        chosen=next(row for row in own if row.epoch == evaluation["chosen_epoch"]),
        label_map=label_map,
        class_names=show_names([label_map[str(k)] for k in range(probabilities.shape[1])]),
        labels=labels,
        probabilities=probabilities,
        arrays=run.read_arrays(ARRAYS) if run.file(ARRAYS).is_file() else {},
    )


@contextmanager
def _damage_is_bad_input(run: RunDir) -> Iterator[None]:
    """Say which run is at fault when its files lack something or contradict one another."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        raise UsageError(
            f"{printable(str(run.path), 200)}: expected the files of a finished run, found one "
            f"without {printable(str(error))}; it is damaged, or of another version"
        ) from error


_EXPLAINED = {
    SAMPLE: "an accuracy on it shows that everything runs; it says nothing about Fashion-MNIST.",
    RANDOM: "no figure here says what pretrained weights can do.",
}


def _banners(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """Return what no reader of a figure may miss."""
    kinds = provenance["data"]["kind"], provenance["weights"]["kind"]
    return [_explain(caveat) for caveat in find_caveats(*kinds, config["phase"])]


def _explain(caveat: str) -> str:
    return f"{caveat[0].upper()}{caveat[1:]}: {_EXPLAINED[caveat]}"


def _compare(first: _Facts, second: _Facts, marks: tuple[str, str]) -> dict[str, Any]:
    """Return what the McNemar test says of two runs, or why it does not apply."""
    names = f"{marks[0]} {first.name} and {marks[1]} {second.name}"
    why = None
    if first.test_file != second.test_file:
        why = "the recorded test data differ (SHA-256)"
    elif first.label_map != second.label_map:
        why = "the classes differ"
    elif not np.array_equal(first.labels, second.labels):
        why = "the test labels differ"
    if why:
        return {"test": None, "marks": marks, "text": f"{names}: not compared, {why}"}
    test = analysis.compare_runs(first.labels, first.probabilities, second.probabilities)
    better = marks[0] if test.only_first > test.only_second else marks[1]
    verdict = (
        f"{better} makes fewer mistakes, beyond chance"
        if test.p_value < 0.05
        else "no difference beyond chance is shown"
    )
    text = (
        f"{names}: of {len(first.labels):,} test images {test.only_first:,} are right in "
        f"{marks[0]} alone and {test.only_second:,} in {marks[1]} alone, McNemar "
        f"p = {test.p_value:.2g}; {verdict}"
    )
    return {"test": test, "marks": marks, "text": text, "verdict": verdict}


def _mark(number: int) -> str:
    """Return A, B, ... Z, A2, B2, ... for 0, 1, ..."""
    letter = chr(ord("A") + number % 26)
    return letter if number < 26 else f"{letter}{number // 26 + 1}"


def _render(template: str, context: Mapping[str, Any]) -> str:
    """Return the page's text; what the templates miss in the context is a KeyError."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

    page = Environment(
        autoescape=True,
        loader=PackageLoader("fmnist_tf.reporting"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page.filters.update(
        cut=lambda value, limit: printable(str(value), limit),
        pct=lambda share, digits=1: f"{share:.{digits}%}",
        squeeze=sections.squeeze,
        rough=sections.say_probability,
        count=lambda number: f"{number:,}",
        seconds=lambda number: f"{number / 60:.1f} min" if number >= 120 else f"{number:.1f} s",
    )
    try:
        return page.get_template(template).render(context)
    except UndefinedError as error:
        raise KeyError(error.message) from error


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        # A lone surrogate, from a file name that is no UTF-8, has no bytes of its own.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.chmod(0o600)  # it shows images, which may be private
