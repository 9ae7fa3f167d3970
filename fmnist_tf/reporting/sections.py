"""The contents of the pages' sections as plain values, sentences, SVG and images.

K classes; `names` are K names for display, `arrays` those of report.npz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.reporting import curves, plots
from fmnist_tf.reporting.images import encode_heat_map, encode_image
from fmnist_tf.reporting.render import format_probability, squeeze
from fmnist_tf.reporting.style import inline_svg
from fmnist_tf.results import analysis
from fmnist_tf.results.history import HistoryRow

_ALL_CLASSES = 30  # up to this many classes, tables show every class
_FEW_CLASSES = 20  # of more classes they show this many


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split.

    Attributes:
        split: "val" or "test".
        labels: (N,) int64.
        probabilities: (N, K) float32.
        arrays: have the pixels of the examples that are shown, and the lines of all.
        names: of the classes.
    """

    split: str
    labels: np.ndarray
    probabilities: np.ndarray
    arrays: Mapping[str, np.ndarray]
    names: Sequence[str]

    def pixels(self, index: int) -> np.ndarray:
        """Return (784,) uint8 of an example that is shown."""
        (place,) = np.flatnonzero(self.arrays[f"{self.split}_shown"] == index)
        pixels: np.ndarray = self.arrays[f"{self.split}_pixels"][place]
        return pixels

    def tile(self, index: int) -> dict[str, Any]:
        """Return image, captions and line of an example."""
        row, label = self.probabilities[index], int(self.labels[index])
        first, second = (int(k) for k in np.argsort(-row, kind="stable")[:2])
        said = f"{self.names[label]}, predicted {self.names[first]}"
        captions = [("true", "", label), ("predicted", "→ ", first)]
        if label == first:
            captions = [("correct", "✓ ", label), ("second", "or ", second)]
        return {
            "src": encode_image(self.pixels(index)),
            "alt": f"{said} ({format_probability(row[first])})",
            "prediction": self.names[first],
            "is_correct": label == first,
            "captions": [(word, sign, self.names[k], float(row[k])) for word, sign, k in captions],
            "line": int(self.arrays[f"{self.split}_lines"][index]),
        }

    def tiles(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Return the tiles of several examples."""
        return [self.tile(int(index)) for index in indices]


def describe_scores(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of all classes; of many classes also those with the lowest F1."""
    scores = analysis.score_classes(confusion)
    columns = {
        "name": names,
        "support": scores.support.tolist(),
        "n_predicted": confusion.sum(axis=0).tolist(),
        "n_correct": confusion.diagonal().tolist(),
        "recall": scores.recall.tolist(),
        "precision": scores.precision.tolist(),
        "f1": scores.f1.tolist(),
    }
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    tested = sorted((row for row in rows if row["support"]), key=lambda row: row["recall"])
    by_f1 = sorted(tested, key=lambda row: row["f1"])
    return {
        "rows": rows,
        "lowest": by_f1[:_FEW_CLASSES] if len(rows) > _ALL_CLASSES else [],
        "n_tested": len(tested),
        "weakest": tested[0],
        "strongest": tested[-1],
        "macro_f1": scores.macro_f1,
    }


def describe_matrix(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix; of many classes only the most confused.

    The page has a table instead of the PNG: screen readers read it, it can be copied, and on a
    phone it scrolls.
    """
    shown = list(range(len(names)))
    if len(shown) > _ALL_CLASSES:
        pairs = analysis.rank_confusions(confusion, len(shown))
        ranked = dict.fromkeys(k for pair in pairs for k in (pair.label, pair.prediction))
        shown = sorted(list(ranked)[:_FEW_CLASSES]) or shown[:_FEW_CLASSES]
    support = confusion.sum(axis=1)
    rows = []
    for label in shown:
        counts = confusion[label, shown]
        fractions = counts / max(support[label], 1)
        is_diagonal = [k == label for k in shown]
        cells = list(zip(counts.tolist(), fractions.tolist(), is_diagonal, strict=True))
        rows.append((names[label], cells, int(support[label] - counts.sum()), int(support[label])))
    return {"names": [names[k] for k in shown], "rows": rows, "n_classes": len(names)}


def describe_pairs(
    selected: analysis.Selection, confusion: np.ndarray, test: Examples
) -> list[dict[str, Any]]:
    """Return the most confused pairs of classes, the first of them with examples."""
    examples = {(pair.label, pair.prediction): rows for pair, rows in selected.confused}
    return [
        {
            "label": test.names[pair.label],
            "prediction": test.names[pair.prediction],
            "count": pair.count,
            "support": int(confusion[pair.label].sum()),
            "fraction": pair.fraction,
            "tiles": test.tiles(examples.get((pair.label, pair.prediction), np.array([], int))),
        }
        for pair in analysis.rank_confusions(confusion, 10)
    ]


def describe_label_issues(examples: Examples) -> dict[str, Any]:
    """Return how many labels of a split are suspect, and the most suspect examples."""
    n_examples = len(examples.labels)
    suspects = analysis.find_label_issues(examples.labels, examples.probabilities, n_examples)
    return {
        "n_examples": n_examples,
        "n_suspects": len(suspects),
        "tiles": examples.tiles(suspects[: analysis.LABEL_ISSUES]),
    }


def describe_calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return the reliability diagram and what it shows."""
    calibration = analysis.measure_calibration(labels, probabilities)
    confidence = f"{probabilities.max(axis=1).mean():.1%}"
    accuracy = f"{(probabilities.argmax(axis=1) == labels).mean():.1%}"
    finding = (
        f"Mean confidence {confidence}, accuracy {accuracy}; expected calibration error (ECE) "
        f"{calibration.ece:.1%}, maximum calibration error {calibration.mce:.1%}."
    )
    plot = partial(plots.plot_calibration, calibration=calibration)
    return {"svg": inline_svg("calibration", finding, 4.4, plot), "finding": finding}


def describe_projections(
    arrays: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the projections (PCA) of the embeddings and, for comparison, of the pixels."""
    labels = labels[arrays["projection_rows"]]
    short_names = [squeeze(name, 14) for name in names]
    projections = []
    for kind in ("embeddings", "pixels"):
        points, variance = arrays[f"projection_{kind}"], arrays[f"projection_{kind}_variance"]
        finding = (
            f"{kind.capitalize()} of {len(points):,} test images; the two components explain "
            f"{variance.sum():.0%} of the variance."
        )
        plot = partial(plots.plot_projection, points=points, labels=labels, names=short_names)
        svg = inline_svg(f"projection-{kind}", finding, 5.6, plot, dpi=150)
        projections.append({"svg": svg, "finding": finding})
    return projections


def describe_cams(arrays: Mapping[str, np.ndarray], test: Examples) -> list[dict[str, Any]]:
    """Return by class its examples with Grad-CAM heat maps, the correct one first."""
    classes: dict[int, list[dict[str, Any]]] = {}
    for index, heat in zip(arrays["cam_rows"].tolist(), arrays["cam_maps"], strict=True):
        tile = test.tile(index) | {"heat": encode_heat_map(test.pixels(index), heat)}
        classes.setdefault(int(test.labels[index]), []).append(tile)
    return [
        {"name": test.names[k], "tiles": sorted(tiles, key=lambda tile: not tile["is_correct"])}
        for k, tiles in sorted(classes.items())
    ]


def describe_data(
    facts: Mapping[str, Any], summary: DataSummary, names: Sequence[str]
) -> dict[str, Any]:
    """Return the facts on a data set, as in provenance.json, and its summary."""
    train, test = summary.train_counts, summary.test_counts
    shown = np.arange(len(names))
    if len(shown) > _ALL_CLASSES:
        by_size = np.argsort(-train, kind="stable")
        shown = np.concatenate([by_size[: _FEW_CLASSES // 2], by_size[-_FEW_CLASSES // 2 :]])
    rows = []
    for k in shown.tolist():
        n_examples = min(int(train[k]), summary.examples.shape[1])
        images = summary.examples[k].reshape(-1, 28, 28)[: max(n_examples, 1)]
        rows.append(
            {
                "name": names[k],
                "train": int(train[k]),
                "test": int(test[k]),
                "width": float(train[k] / max(train.max(), 1)),
                "mean": encode_image(summary.mean_images[k]),
                "examples": encode_image(np.hstack(images)),
                "n_examples": n_examples,
            }
        )
    levels = summary.histogram / max(summary.histogram.sum(), 1)
    finding = (
        f"Grey levels of all training pixels: {levels[:32].sum():.0%} are below 32 and "
        f"{levels[224:].sum():.0%} are 224 or more (0 is black, 255 white)."
    )
    return {
        **facts,
        # The page has a banner for the sample.
        "warnings": [text for text in facts["warnings"] if not text.startswith("WARNING")],
        "rows": rows,
        "n_classes": len(names),
        "n_train_images": int(train.sum()),
        "n_test_images": int(test.sum()),
        "largest": (names[int(train.argmax())], int(train.max())),
        "smallest": (names[int(train.argmin())], int(train.min())),
        "duplicates": summary.duplicates.tolist(),
        "histogram": inline_svg(
            "histogram", finding, 2.3, partial(plots.plot_histogram, counts=summary.histogram)
        ),
        "finding": finding,
    }


def describe_training(
    rows: Sequence[HistoryRow], chosen: HistoryRow, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return curves, learning rates, seconds and parameter counts; `rows` are of all phases."""
    phases = " and ".join(dict.fromkeys(row.phase for row in rows))
    plot_curves = partial(curves.plot_curves, rows=rows, chosen_epoch=chosen.epoch)
    plot_rates = partial(curves.plot_learning_rate, rows=rows)
    finding = (
        f"{phases.capitalize()}: validation accuracy {rows[0].val_accuracy:.2%} in the first "
        f"epoch, {chosen.val_accuracy:.2%} in the selected one, {chosen.phase} epoch "
        f"{chosen.epoch} (ring)."
    )
    rates = [row.learning_rate for row in rows if row.epoch]
    rate_finding = f"Learning rate between {min(rates):.3g} and {max(rates):.3g}."
    if min(rates) == max(rates):
        rate_finding = f"Constant learning rate of {rates[0]:.3g}."
    seconds, before = provenance["seconds"], provenance.get("parent_seconds", {})
    longest = max(seconds.values())
    return {
        "finding": finding,
        "curves": inline_svg("curves", finding, 4.6, plot_curves),
        "rate_finding": rate_finding,
        "rates": inline_svg("rates", rate_finding, 2.3, plot_rates),
        "stages": [
            (
                stage.replace("_", " "),
                before.get(stage),
                seconds.get(stage),
                seconds.get(stage, 0) / max(longest, 1e-9),
            )
            for stage in dict.fromkeys([*before, *seconds])
        ],
        "total": sum(seconds.values()),
        "total_before": sum(before.values()) if before else None,
        "parameters": provenance["trained"],
    }


def describe_recalls(confusions: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Return the recall of each class in each of several runs of the same classes."""
    scores = [analysis.score_classes(confusion) for confusion in confusions]
    recalls = np.stack([score.recall for score in scores])
    spread = np.ptp(recalls, axis=0)
    shown = np.arange(len(names))
    if len(shown) > _ALL_CLASSES:
        shown = np.argsort(-spread, kind="stable")[:_FEW_CLASSES]
    rows = []
    for k in shown.tolist():
        cells = [
            (float(score.recall[k]), int(confusion[k, k]), int(score.support[k]))
            for confusion, score in zip(confusions, scores, strict=True)
        ]
        rows.append((names[k], cells, float(recalls[:, k].max())))
    return {
        "rows": rows,
        "n_classes": len(names),
        "widest": names[int(spread.argmax())],
        "spread": float(spread.max()),
    }
