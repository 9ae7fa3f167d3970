"""The contents of the pages' sections as plain values, sentences, SVG and images.

K classes; `names` are K names for display, `arrays` those of report.npz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.reporting import curves, plots
from fmnist_tf.reporting.cuts import plot_cuts, read_cuts
from fmnist_tf.reporting.record import COLUMNS, N_FACTS, RunRecord
from fmnist_tf.reporting.render import blend_heat_map, format_probability, show_setting, squeeze
from fmnist_tf.reporting.style import inline_svg
from fmnist_tf.results import analysis
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import scale

_CURVES = 10  # classes at most
_DISAGREEMENTS = 12  # images at most


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split, "val" or "test": labels (N,) int64, probabilities (N, K) float32.

    `arrays` have the pixels of the examples that are shown, and the lines of all.
    """

    split: str
    labels: np.ndarray
    probabilities: np.ndarray
    arrays: Mapping[str, np.ndarray]
    names: Sequence[str]

    def tile(self, index: int) -> dict[str, Any]:
        """Return pixels (784,) uint8, captions and place of an example that is shown."""
        (place,) = np.flatnonzero(self.arrays[f"{self.split}_shown"] == index)
        files = self.arrays.get(f"{self.split}_files")
        file = "" if files is None else f"{files[place]} "
        row, label = self.probabilities[index], int(self.labels[index])
        first, second = (int(k) for k in np.argsort(-row, kind="stable")[:2])
        captions = [("true", "", label), ("predicted", "→ ", first)]
        if label == first:
            captions = [("correct", "✓ ", label), ("second", "or ", second)]
        chance = format_probability(row[first])
        return {
            "label": label,
            "pixels": self.arrays[f"{self.split}_pixels"][place],
            "alt": f"{self.names[label]}, predicted {self.names[first]} ({chance})",
            "prediction": self.names[first],
            "captions": [(word, sign, self.names[k], float(row[k])) for word, sign, k in captions],
            "place": f"{file}line {self.arrays[f'{self.split}_lines'][index]}",
        }

    def tiles(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Return the tiles of several examples."""
        return [self.tile(int(index)) for index in indices]


def describe_change(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the test accuracy differs from the parent's, if that was compared."""
    if (entry := evaluation.get("parent")) is None:
        return None
    test = analysis.McNemar(**entry["mcnemar"])
    verdict = "no significant change"
    if test.is_significant:
        verdict = f"a significant {'rise' if test.points > 0 else 'fall'}"
    return {"run": entry["run"], "test": test, "verdict": verdict}


def describe_scores(confusion: np.ndarray) -> dict[str, Any]:
    """Return the scores of all classes, and the classes to name, the lowest F1 first."""
    scores = analysis.score_classes(confusion)
    by_f1 = sorted(range(len(confusion)), key=lambda k: (scores.support[k] == 0, scores.f1[k]))
    lowest = by_f1[: analysis.FEW_CLASSES] if len(confusion) > analysis.ALL_CLASSES else by_f1
    return {"scores": scores, "by_f1": by_f1, "lowest": lowest}


def describe_cells(
    examples: Examples, cells: Mapping[tuple[int, int], np.ndarray], confusion: np.ndarray
) -> list[dict[str, Any]]:
    """Return the filled cells of the confusion matrix with their examples, mistakes first."""
    order = sorted(cells, key=lambda cell: (cell[0] == cell[1], -confusion[cell]))
    return [{"label": k, "prediction": j, "tiles": examples.tiles(cells[k, j])} for k, j in order]


def describe_precision_recall(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], classes: Sequence[int]
) -> dict[str, Any]:
    """Return the curves of some classes, the lowest F1 first."""
    shown = sorted(k for k in classes[:_CURVES] if (labels == k).any())
    traced = {k: analysis.trace_precision_recall(labels, probabilities, k) for k in shown}
    worst = min(traced, key=lambda k: traced[k].average_precision)
    finding = (
        f"Each class against the rest; the number is the average precision, lowest for "
        f"{names[worst]} with {traced[worst].average_precision:.1%}."
    )
    short_names = [squeeze(name, 14) for name in names]
    plot = plots.plot_precision_recall
    return draw_chart("precision-recall", finding, 4.4, plot, traced, short_names)


def describe_label_issues(val: Examples, test: Examples) -> dict[str, Any]:
    """Return how many labels of each split are suspect, and the most suspect val examples."""
    suspects = {
        examples.split: analysis.find_label_issues(
            examples.labels, examples.probabilities, len(examples.labels)
        )
        for examples in (val, test)
    }
    tiles = val.tiles(suspects["val"][: analysis.LABEL_ISSUES])
    return {"counts": {split: len(found) for split, found in suspects.items()}, "tiles": tiles}


def describe_calibration(
    labels: np.ndarray, probabilities: np.ndarray, scaling: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the reliability diagram and what it shows.

    Args:
        labels: (N,) true labels.
        probabilities: (N, K) of the network as trained.
        scaling: `calibration` of evaluation.json; None of an older run.
    """
    calibration = analysis.measure_calibration(labels, probabilities)
    confidence = probabilities.max(axis=1).mean()
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    finding = (
        f"Mean confidence {confidence:.1%}, accuracy {accuracy:.1%}; expected calibration error "
        f"(ECE) {calibration.ece:.1%}, maximum calibration error {calibration.mce:.1%}."
    )
    scaled = None
    if scaling is not None:
        scaled = analysis.measure_calibration(labels, scale(probabilities, scaling["temperature"]))
        finding += (
            f" With its temperature {scaling['temperature']:.3f}, fitted on the validation images, "
            f"which predict, demo and export use, the ECE is {scaled.ece:.1%} "
            "(dots: the nearer to the dashed line, the better)."
        )
    return draw_chart("calibration", finding, 4.4, plots.plot_calibration, calibration, scaled)


def describe_projections(
    arrays: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the projections (PCA) of the embeddings and, for comparison, of the pixels."""
    labels = labels[arrays["projection_rows"]]
    short_names = [squeeze(name, 14) for name in names]
    charts = []
    for kind in ("embeddings", "pixels"):
        points, variance = arrays[f"projection_{kind}"], arrays[f"projection_{kind}_variance"]
        finding = (
            f"{kind.capitalize()} of {len(points):,} test images; the two components explain "
            f"{variance.sum():.0%} of the variance."
        )
        data = (points, labels, short_names)
        name = f"projection-{kind}"
        charts.append(draw_chart(name, finding, 5.6, plots.plot_projection, *data, dpi=150))
    return charts


def describe_cams(arrays: Mapping[str, np.ndarray], test: Examples) -> list[dict[str, Any]]:
    """Return the tiles of the examples with Grad-CAM heat maps, by class, the correct one first."""
    tiles = test.tiles(arrays["cam_rows"])
    return [
        tile | {"heat": blend_heat_map(tile["pixels"], heat)}
        for tile, heat in zip(tiles, arrays["cam_maps"], strict=True)
    ]


def describe_data(
    facts: Mapping[str, Any], summary: DataSummary, names: Sequence[str]
) -> dict[str, Any]:
    """Return the facts on a data set, as in provenance.json, and its summary."""
    train = summary.train_counts
    shown = np.arange(len(names))
    if len(shown) > analysis.ALL_CLASSES:
        by_size = np.argsort(-train, kind="stable")
        half = analysis.FEW_CLASSES // 2
        shown = np.concatenate([by_size[:half], by_size[-half:]])
    n_examples = np.clip(train, 1, summary.examples.shape[1])
    levels = summary.histogram / max(summary.histogram.sum(), 1)
    finding = (
        f"Grey levels of all training pixels: {levels[:32].sum():.0%} are below 32 and "
        f"{levels[224:].sum():.0%} are 224 or more (0 is black, 255 white)."
    )
    return {
        **facts,
        # The page has a banner for the sample.
        "warnings": [text for text in facts["warnings"] if not text.startswith("WARNING")],
        "names": names,
        "summary": summary,
        "shown": shown.tolist(),
        "strips": {
            k: np.hstack(list(summary.examples[k, : n_examples[k]].reshape(-1, 28, 28)))
            for k in shown.tolist()
        },
        "histogram": draw_chart("histogram", finding, 2.3, plots.plot_histogram, summary.histogram),
    }


def describe_training(
    rows: Sequence[HistoryRow], chosen: HistoryRow, losses: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return the charts of accuracy and loss, of the loss of each step, and of learning rates.

    Args:
        rows: the epochs of all phases.
        chosen: the selected one.
        losses: of each step of the last phase, if known.
    """
    phases = " and ".join(dict.fromkeys(row.phase for row in rows))
    finding = (
        f"{phases.capitalize()}: validation accuracy {rows[0].val_accuracy:.2%} in the first "
        f"epoch, {chosen.val_accuracy:.2%} in the selected one, {chosen.phase} epoch "
        f"{chosen.epoch} (ring)."
    )
    charts = [draw_chart("curves", finding, 4.6, curves.plot_curves, rows, chosen.epoch)]
    if losses is not None and len(losses):
        step_finding = f"Training loss of each of the {len(losses):,} {chosen.phase} steps."
        n_epochs = rows[-1].epoch
        charts.append(draw_chart("steps", step_finding, 2.3, curves.plot_steps, losses, n_epochs))
    rates = [row.learning_rate for row in rows if row.epoch]
    rate_finding = f"Learning rate between {min(rates):.3g} and {max(rates):.3g}."
    if min(rates) == max(rates):
        rate_finding = f"Constant learning rate of {rates[0]:.3g}."
    return [*charts, draw_chart("rates", rate_finding, 2.3, curves.plot_learning_rate, rows)]


def describe_cuts(run: RunDir) -> dict[str, Any] | None:
    """Return the chart and the table of `--cut auto`, or None of a run without it."""
    found = read_cuts(run)
    if found is None:
        return None
    cuts, chosen = found
    last = next(c for c in reversed(cuts) if c.image_size == chosen.image_size)
    finding = (
        f"A linear probe is right in {chosen.probe_accuracy:.2%} after {chosen.cut} at "
        f"{chosen.image_size} pixels, the chosen cut, and in {last.probe_accuracy:.2%} after "
        f"{last.cut}."
    )
    chart = draw_chart("cuts", finding, 3.0, plot_cuts, cuts, chosen)
    return {"chart": chart, "rows": cuts, "chosen": chosen}


def describe_differences(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what differs between runs: names and a value for each run; and what does not."""
    facts = [(column, [r.cells[n] for r in records]) for n, column in enumerate(COLUMNS[:N_FACTS])]
    names = dict.fromkeys(name for record in records for name in record.config)
    settings = [
        (name.replace("_", " "), [show_setting(record.config.get(name)) for record in records])
        for name in names
    ]
    # The other facts are summaries of settings.
    rows = [row for row in facts if row[0] in ("data", "backbone weights")] + settings
    return {
        "differ": [row for row in rows if len(set(row[1])) > 1],
        "same": [(name, values[0]) for name, values in facts if len(set(values)) == 1],
    }


def describe_disagreements(first: Examples, second: Examples) -> list[list[dict[str, Any]]]:
    """Return tiles of images that only the first run has right, and that only the second has.

    They are the most confident mistakes of the other run, among the images that either shows.
    """
    stored, places = np.unique(
        np.concatenate([run.arrays["test_shown"] for run in (first, second)]), return_index=True
    )
    arrays = {"test_shown": stored, "test_lines": first.arrays["test_lines"]}
    for name in {"test_pixels", "test_files"} & first.arrays.keys() & second.arrays.keys():
        arrays[name] = np.concatenate([run.arrays[name] for run in (first, second)])[places]
    correct = [run.probabilities.argmax(axis=1) == run.labels for run in (first, second)]
    columns = []
    for is_right, wrong, run in ((*correct, second), (*correct[::-1], first)):
        rows = stored[(is_right & ~wrong)[stored]]
        order = np.argsort(-run.probabilities[rows].max(axis=1), kind="stable")
        columns.append(replace(run, arrays=arrays).tiles(rows[order[:_DISAGREEMENTS]]))
    return columns


def describe_recalls(confusions: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the scores of several runs of the same classes, and the classes that differ most."""
    scores = [analysis.score_classes(confusion) for confusion in confusions]
    recalls = np.stack([score.recall for score in scores])
    spread = np.ptp(recalls, axis=0)
    shown = np.argsort(-spread, kind="stable")
    if len(shown) > analysis.ALL_CLASSES:
        shown = shown[: analysis.FEW_CLASSES]
    return {"scores": scores, "shown": shown.tolist(), "by_class": recalls.T, "spread": spread}


def draw_chart(
    name: str, finding: str, height: float, plot: Callable[..., None], *data: Any, dpi: int = 100
) -> dict[str, Any]:
    """Return `plot(figure, *data)` as inline SVG, and the sentence that tells what it shows."""
    svg = inline_svg(name, finding, height, lambda figure: plot(figure, *data), dpi=dpi)
    return {"svg": svg, "finding": finding}
