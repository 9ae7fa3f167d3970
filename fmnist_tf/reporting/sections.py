"""What each part of a page says: computed facts in plain values, sentences, charts, pictures.

In: counts, probabilities, arrays of a finished run, the facts on a data set. Out: what the
templates show, ready but for its layout. This module must not know where a run lies.

Names are fit to be shown already; `arrays` are those of `report.npz`, or empty. K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_tf.data.summary import DataSummary
from fmnist_tf.errors import printable
from fmnist_tf.reporting import charts
from fmnist_tf.results import analysis
from fmnist_tf.results.rundir import HistoryRow

_ALL_CLASSES = 30  # up to so many classes, tables show every class
_FEW_CLASSES = 20  # of more classes they show so many


@dataclass(frozen=True, eq=False)
class Part:
    """The examples of one split.

    Attributes:
        labels: (N,) int64, the truth.
        probabilities: (N, K) float32.
        lines: (N,) int64, lines of the file; empty where they are not known.
        pixels: (784,) uint8 of those examples that are shown, by index.
        names: K names.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    lines: np.ndarray
    pixels: dict[int, np.ndarray]
    names: Sequence[str]

    @classmethod
    def of_arrays(
        cls,
        split: str,
        labels: np.ndarray,
        probabilities: np.ndarray,
        arrays: Mapping[str, np.ndarray],
        names: Sequence[str],
    ) -> Part:
        """Return the split "val" or "test" with what `report.npz` has of it; `arrays` may be {}."""
        shown = arrays.get(f"{split}_shown", np.zeros(0, np.int64))
        pixels = arrays.get(f"{split}_pixels", np.zeros((0, 784), np.uint8))
        lines = arrays.get(f"{split}_lines", np.zeros(0, np.int64))
        by_index = dict(zip(shown.tolist(), pixels, strict=True))
        return cls(labels, probabilities, lines, by_index, names)

    def tile(self, index: int) -> dict[str, Any]:
        """Return an example as the templates show it: picture, captions, line of its file."""
        row, truth = self.probabilities[index], int(self.labels[index])
        first, second = (int(k) for k in np.argsort(-row, kind="stable")[:2])
        captions = [("truth", "", truth), ("guess", "→ ", first)]
        said = f"{self.names[truth]}, taken for {self.names[first]} ({say_probability(row[first])})"
        if truth == first:
            captions = [("right", "✓ ", truth), ("next", "or ", second)]
            said = f"{self.names[truth]}, recognised ({say_probability(row[first])})"
        pixels = self.pixels.get(index)
        return {
            "src": None if pixels is None else charts.draw_image(pixels),
            "alt": said,
            "guess": self.names[first],
            "is_right": truth == first,
            "captions": [(word, sign, self.names[k], float(row[k])) for word, sign, k in captions],
            "line": int(self.lines[index]) if len(self.lines) else None,
        }

    def tiles(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Return several examples."""
        return [self.tile(int(index)) for index in indices]


def describe_scores(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of all classes; of many, the weakest apart."""
    scores = analysis.score_classes(confusion)
    guessed = confusion.sum(axis=0)
    rows: list[dict[str, Any]] = [
        {
            "name": names[k],
            "support": int(scores.support[k]),
            "guessed": int(guessed[k]),
            "hits": int(confusion[k, k]),
            "recall": float(scores.recall[k]),
            "precision": float(scores.precision[k]),
            "f1": float(scores.f1[k]),
        }
        for k in range(len(names))
    ]
    tested = sorted((row for row in rows if row["support"]), key=lambda row: row["recall"])
    few = sorted(tested, key=lambda row: row["f1"])[:_FEW_CLASSES]
    few = few if len(rows) > _ALL_CLASSES else []
    return {
        "scores": few or rows,
        "all_scores": rows if few else [],
        "weakest": tested[0],
        "strongest": tested[-1],
        "macro_f1": scores.macro_f1,
    }


def describe_matrix(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix, or that of the most confused classes when there are many."""
    shown = list(range(len(names)))
    if len(shown) > _ALL_CLASSES:
        pairs = analysis.rank_confusions(confusion, len(shown))
        ranked = dict.fromkeys(k for pair in pairs for k in (pair.truth, pair.guess))
        shown = sorted(list(ranked)[:_FEW_CLASSES]) or shown[:_FEW_CLASSES]
    support = confusion.sum(axis=1)
    rows = []
    for truth in shown:
        shares = confusion[truth] / max(support[truth], 1)
        cells = [(int(confusion[truth, k]), float(shares[k]), k == truth) for k in shown]
        elsewhere = int(support[truth] - confusion[truth, shown].sum())
        rows.append((names[truth], cells, elsewhere, int(support[truth])))
    return {"names": [names[k] for k in shown], "rows": rows, "n_classes": len(names)}


def describe_pairs(
    chosen: analysis.Selection, confusion: np.ndarray, test: Part
) -> list[dict[str, Any]]:
    """Return the most frequent confusions, the first ones with examples."""
    examples = {(pair.truth, pair.guess): rows for pair, rows in chosen.confused}
    support, none = confusion.sum(axis=1), np.zeros(0, np.int64)
    return [
        {
            "truth": test.names[pair.truth],
            "guess": test.names[pair.guess],
            "count": pair.count,
            "support": int(support[pair.truth]),
            "share": pair.share,
            "tiles": [
                t for t in test.tiles(examples.get((pair.truth, pair.guess), none)) if t["src"]
            ],
        }
        for pair in analysis.rank_confusions(confusion, 10)
    ]


def describe_label_issues(part: Part) -> dict[str, Any]:
    """Return how many labels of a split are suspected, and the surest of these suspects."""
    suspects = analysis.find_label_issues(part.labels, part.probabilities, len(part.labels))
    return {"total": len(suspects), "tiles": part.tiles(suspects[: analysis.LABEL_ISSUES])}


def describe_calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return the reliability diagram and what it says."""
    calibration = analysis.measure_calibration(labels, probabilities)
    confidence = float(probabilities.max(axis=1).mean())
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    leaning = "over-confident" if confidence > accuracy else "under-confident"
    if f"{confidence:.1%}" == f"{accuracy:.1%}":
        leaning = "neither over- nor under-confident"
    gaps = np.nan_to_num(np.abs(calibration.accuracy - calibration.confidence))
    finding = (
        f"The mean probability of a guess is {confidence:.1%}, the share of right guesses "
        f"{accuracy:.1%}: on the whole the network is {leaning}. Expected calibration error (ECE) "
        f"{calibration.ece:.1%}; the widest gap, {calibration.mce:.1%}, is in a range that holds "
        f"{calibration.counts[gaps.argmax()]:,} of {len(labels):,} images."
    )
    return {"svg": charts.chart_calibration(calibration, finding), "finding": finding}


def describe_maps(
    arrays: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the map of the features and that of the pixels; none without arrays."""
    maps = []
    for kind, title in (("features", "What the network sees"), ("pixels", "The pixels themselves")):
        if not arrays:
            break
        points, of_points = arrays[f"map_{kind}"], labels[arrays["map_rows"]]
        variance = arrays[f"map_{kind}_variance"]
        present = np.unique(of_points)
        middles = np.stack([points[of_points == k].mean(axis=0) for k in present])
        gaps = ((points[:, None] - middles[None]) ** 2).sum(axis=2)
        near = float((present[gaps.argmin(axis=1)] == of_points).mean())
        finding = (
            f"{title}: {len(points):,} test images on the two directions in which their {kind} "
            f"vary most; these hold {variance.sum():.0%} of the variance. {near:.0%} of the images "
            "lie nearest to the middle of their own class."
        )
        svg = charts.chart_map(
            points, of_points, [squeeze(name, 14) for name in names], kind, finding
        )
        maps.append({"svg": svg, "finding": finding, "title": title})
    return maps


def describe_cams(arrays: Mapping[str, np.ndarray], test: Part) -> list[dict[str, Any]]:
    """Return by class its explained examples, the correct one first."""
    classes: dict[int, list[dict[str, Any]]] = {}
    for index, heat in zip(arrays.get("cam_rows", ()), arrays.get("cam_maps", ()), strict=True):
        tile = test.tile(int(index))
        tile["heat"] = charts.draw_heat(test.pixels[int(index)], heat)
        classes.setdefault(int(test.labels[index]), []).append(tile)
    return [
        {"name": test.names[k], "tiles": sorted(tiles, key=lambda tile: not tile["is_right"])}
        for k, tiles in sorted(classes.items())
    ]


def describe_data(
    facts: Mapping[str, Any], summary: DataSummary | None, names: Sequence[str]
) -> dict[str, Any]:
    """Return what is known of a data set: as in provenance.json, and summed up if it was."""
    # The sample's box is said by the banner.
    warnings = [warning for warning in facts["warnings"] if not warning.startswith("WARNING")]
    about = {
        "name": printable(facts["name"]),
        "kind": facts["kind"],
        "files": facts["files"],
        "decisions": [printable(decision, 400) for decision in facts["decisions"]],
        "warnings": [printable(warning.strip(), 400) for warning in warnings],
        "n_used": [facts[key] for key in ("n_train", "n_val", "n_test")]
        if "n_train" in facts
        else None,
        "summary": None,
    }
    if summary is None:
        return about
    train, test = summary.train_counts, summary.test_counts
    shown = np.arange(len(names))
    if len(shown) > _ALL_CLASSES:
        by_size = np.argsort(-train, kind="stable")
        shown = np.concatenate([by_size[: _FEW_CLASSES // 2], by_size[-_FEW_CLASSES // 2 :]])
    rows = [
        {
            "name": names[k],
            "train": int(train[k]),
            "test": int(test[k]),
            "width": float(train[k] / max(train.max(), 1)),
            "mean": charts.draw_image(summary.mean_images[k]),
            "examples": charts.draw_image(
                np.hstack(summary.examples[k].reshape(-1, 28, 28)[: max(int(train[k]), 1)])
            ),
            "n_examples": min(int(train[k]), summary.examples.shape[1]),
        }
        for k in shown.tolist()
    ]
    dark = summary.histogram[:32].sum() / max(summary.histogram.sum(), 1)
    bright = summary.histogram[224:].sum() / max(summary.histogram.sum(), 1)
    finding = (
        f"Grey levels of all training pixels: {dark:.0%} are below 32 and {bright:.0%} are 224 or "
        "more (0 is black, 255 white)."
    )
    return about | {
        "summary": summary,
        "rows": rows,
        "n_classes": len(names),
        "n_train": int(train.sum()),
        "n_test": int(test.sum()),
        "largest": (names[int(train.argmax())], int(train.max())),
        "smallest": (names[int(train.argmin())], int(train.min())),
        "duplicates": [int(count) for count in summary.duplicates],
        "histogram": charts.chart_histogram(summary.histogram, finding),
        "finding": finding,
    }


def describe_training(
    rows: Sequence[HistoryRow], chosen: HistoryRow, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return curves, learning rates, seconds and counts; `rows` are of all phases."""
    phases = " and ".join(dict.fromkeys(row.phase for row in rows))
    finding = (
        f"{phases.capitalize()}: validation accuracy went from {rows[0].val_accuracy:.2%} in the "
        f"first epoch shown to {chosen.val_accuracy:.2%} in the one kept, {chosen.phase} epoch "
        f"{chosen.epoch} (ring)."
    )
    trained = [row for row in rows if row.epoch]
    rates = [row.learning_rate for row in trained]
    steady = len(set(rates)) == 1
    pace = (
        f"The learning rate is {rates[0]:.3g} in every epoch."
        if steady
        else f"The learning rate lies between {min(rates):.3g} and {max(rates):.3g}; "
        f"it ends at {rates[-1]:.3g}."
    )
    seconds, before = provenance["seconds"], provenance.get("parent_seconds", {})
    stages = dict.fromkeys([*before, *seconds])
    longest = max(seconds.values())
    return {
        "finding": finding,
        "curves": charts.chart_curves(rows, chosen.epoch, finding),
        "pace": pace,
        "rates": charts.chart_rates(trained, pace),
        "stages": [
            (
                stage.replace("_", " "),
                before.get(stage),
                seconds.get(stage),
                seconds.get(stage, 0) / max(longest, 1e-9),
            )
            for stage in stages
        ],
        "total": sum(seconds.values()),
        "total_before": sum(before.values()) if before else None,
        "slowest": max(seconds, key=lambda stage: seconds[stage]).replace("_", " "),
        "trained": provenance.get("trained"),
    }


def describe_recalls(confusions: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Return the recall of each class in each of several runs of the same classes."""
    scores = [analysis.score_classes(confusion) for confusion in confusions]
    recalls = np.stack([score.recall for score in scores])
    spread = np.ptp(recalls, axis=0)
    shown = np.arange(len(names))
    if len(shown) > _ALL_CLASSES:
        shown = np.argsort(-spread, kind="stable")[:_FEW_CLASSES]
    rows = [
        (
            names[k],
            [
                (float(score.recall[k]), int(confusion[k, k]), int(score.support[k]))
                for confusion, score in zip(confusions, scores, strict=True)
            ],
            float(recalls[:, k].max()),
        )
        for k in shown.tolist()
    ]
    widest = int(spread.argmax())
    return {
        "rows": rows,
        "n_classes": len(names),
        "widest": names[widest],
        "spread": float(spread[widest]),
    }


def squeeze(name: str, limit: int) -> str:
    """Return a name of at most `limit` characters; both its ends are kept, where names differ."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[limit // 2 + 1 - limit :]}"


def say_probability(share: float) -> str:
    """Return a probability 0..1 as a whole percentage; what is not quite 0 or 1 is not shown so."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
