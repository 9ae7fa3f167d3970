"""Rates, outputs and counts -> the rows: medians, ratios, the composed phase, shares of the bounds.

In: what the workers measured. Out: JSON values, one row for each system in each stage. Pure. This
module must not know workers or how anything is printed.

Shape letters: N images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmnist_tf.benchmark.plan import N_PHASE, N_TRAIN, N_VAL, PHASE_EPOCHS, System, Task

YARDSTICK = "keras_float32"
# Below, a system computes something else. In bfloat16 every layer rounds by 0.4 %, and fifty layers
# with random weights multiply that: Keras' own comes to 0.96.
LEAST_COSINE = {"float32": 0.99, "bfloat16": 0.8}
_LEAST_PROBABILITY = 1e-30

Bounds = Mapping[str, float | None]
"""Precision -> FLOP/s, None where unknown."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one worker told of one system in one task.

    Attributes:
        system: which.
        task: of which stage.
        rates: images a second, one a round.
        peak_bytes: largest resident size of the worker.
        anonymous_bytes: largest anonymous part of it, None where the system does not tell.
        facts: precision, batch_size, and more.
        outputs: (N, ...) float32 features, or probabilities where the task has a head.
        reason: why nothing was measured, else None.
    """

    system: System
    task: Task
    rates: tuple[float, ...] = ()
    peak_bytes: int = 0
    anonymous_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    outputs: np.ndarray | None = None
    reason: str | None = None

    @property
    def rate(self) -> float:
        """Median images a second."""
        return statistics.median(self.rates)


def compare_outputs(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the least cosine over the images, after subtraction of the mean expected image.

    Without that, the outputs of any two images would look alike.
    """
    mean = expected.astype(np.float64).mean(axis=0)
    a, b = ((x.astype(np.float64) - mean).reshape(len(x), -1) for x in (found, expected))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    return float(np.where(np.all(a == b, axis=1), 1.0, cosines).min())


def count_flop(system: System, task: Task, multiplications: Mapping[str, Any]) -> float:
    """Return the FLOP that an image of this task costs this system, at two a multiplication.

    In an epoch nine of ten images train and one is only looked at. Ours does not compute the frozen
    part there: it is stored.
    """
    kind = {"feature_pass": "feature_pass", "finetune_epoch": "finetune"}.get(task.stage, task.head)
    counts = multiplications[str(kind)]
    is_stored = system.kind == "ours" and task.stage != "feature_pass"
    frozen = 0 if is_stored else counts["frozen"]
    return 2 * (frozen + counts["trained"] + counts["backward"] * N_TRAIN / N_PHASE)


def compose_rows(
    measurements: Sequence[Measurement],
    multiplications: Mapping[str, Any],
    arithmetic: Bounds,
    reached: Bounds,
) -> list[dict[str, Any]]:
    """Return the rows of all measured stages and of the frozen phase that they compose to.

    Args:
        measurements: one for each system in each task that it has.
        multiplications: as `prepare.count_multiplications` returned them.
        arithmetic: what the processor can do at best.
        reached: what the fastest large product reached.
    """
    bounds = {"percent_of_bound": arithmetic, "percent_of_reached": reached}
    checked = _with_cosines(measurements)
    rows = []
    for measurement, cosine in checked:
        task, facts = measurement.task, measurement.facts
        trained = f": {N_TRAIN:,} trained on, {N_VAL:,} validated" if task.head else ""
        rule = f"seconds = {N_PHASE:,} / images_per_second{trained}"
        row = _row(task.stage, [(measurement, 1)], rule, multiplications, bounds)
        if measurement.reason is None:
            row |= {
                "rounds": list(measurement.rates),
                "spread": (max(measurement.rates) - min(measurement.rates)) / measurement.rate,
                "precision": facts["precision"],
                "batch_size": facts["batch_size"],
                "device": facts.get("device"),
                "cosine": cosine,
            }
        rows.append(row)
    passes = {m.system.name: m for m, _ in checked if m.task.stage == "feature_pass"}
    for epoch, _ in checked:
        if epoch.task.stage != "frozen_epoch":
            continue
        parts = [(epoch, PHASE_EPOCHS)]
        rule = f"seconds = {PHASE_EPOCHS} x {N_PHASE:,} / frozen_epoch's rate"
        if epoch.system.kind == "ours":
            if epoch.system.name not in passes:
                continue
            parts.append((passes[epoch.system.name], 1))
            rule = rule.replace("=", f"= {N_PHASE:,} / feature_pass's rate +")
        rows.append(_row("frozen_phase", parts, rule, multiplications, bounds))
    return _with_ratios(rows)


def _with_cosines(
    measurements: Sequence[Measurement],
) -> list[tuple[Measurement, float | None]]:
    """Pair each measurement with its cosine to the yardstick; a wrong one loses its rates."""
    expected = {
        m.task: _comparable(m) for m in measurements if m.system.name == YARDSTICK and not m.reason
    }
    pairs: list[tuple[Measurement, float | None]] = []
    for measurement in measurements:
        cosine = None
        if not measurement.reason and measurement.task in expected:
            cosine = compare_outputs(_comparable(measurement), expected[measurement.task])
            # A NaN is not at least anything.
            if not cosine >= LEAST_COSINE[str(measurement.facts["precision"])]:
                reason = f"computes something else than {YARDSTICK}: cosine {cosine:.3f}"
                measurement = Measurement(measurement.system, measurement.task, reason=reason)
        pairs.append((measurement, cosine))
    return pairs


def _comparable(measurement: Measurement) -> np.ndarray:
    outputs = measurement.outputs
    if outputs is None:
        raise ValueError(f"{measurement.system.name} was measured without its outputs")
    # Logarithms of probabilities tell small ones apart.
    return np.log(np.maximum(outputs, _LEAST_PROBABILITY)) if measurement.task.head else outputs


def _row(
    stage: str,
    parts: Sequence[tuple[Measurement, int]],
    rule: str,
    multiplications: Mapping[str, Any],
    bounds: Mapping[str, Bounds],
) -> dict[str, Any]:
    """Return the row of a stage that goes so often through `N_PHASE` images as the parts say.

    Args:
        stage: as the row calls it.
        parts: measurements of one system and how often each counts; the first gives head and name.
        rule: how the seconds follow from them.
        multiplications: as in `compose_rows`.
        bounds: name of a share -> FLOP/s by precision.
    """
    first, times = parts[0]
    row: dict[str, Any] = {
        "stage": stage,
        "head": first.task.head,
        "system": first.system.name,
        "images_per_second": None,
        "ratio": None,
        "seconds": None,
        "rounds": [],
        "spread": None,
        "peak_mb": None,
        "anonymous_mb": None,
        "percent_of_bound": None,
        "percent_of_reached": None,
        "cosine": None,
        "precision": None,
        "batch_size": None,
        "stored_bytes_an_image": None,
        "device": None,
        "rule": rule,
        "reason": None,
    }
    for part, _ in parts:
        if part.reason is not None:
            own = part.task.stage == stage
            return row | {"reason": part.reason if own else f"{part.task.stage}: {part.reason}"}
    seconds = sum(count * N_PHASE / part.rate for part, count in parts)
    anonymous = [part.anonymous_bytes for part, _ in parts if part.anonymous_bytes is not None]
    for name, of_precision in bounds.items():
        rates = [of_precision.get(str(part.facts["precision"])) for part, _ in parts]
        least = sum(
            count * N_PHASE * count_flop(part.system, part.task, multiplications) / rate
            for (part, count), rate in zip(parts, rates, strict=True)
            if rate
        )
        row[name] = 100 * least / seconds if all(rates) else None
    return row | {
        "images_per_second": times * N_PHASE / seconds,
        "seconds": seconds,
        "peak_mb": max(part.peak_bytes for part, _ in parts) / 1e6,
        "anonymous_mb": max(anonymous) / 1e6 if anonymous else None,
        "stored_bytes_an_image": first.facts.get("stored_bytes_an_image"),
    }


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set each row's ratio to the yardstick's rate in the same stage with the same head."""
    yardstick = {
        (row["stage"], row["head"]): row["images_per_second"]
        for row in rows
        if row["system"] == YARDSTICK
    }
    for row in rows:
        expected = yardstick.get((row["stage"], row["head"]))
        if expected and row["images_per_second"]:
            row["ratio"] = row["images_per_second"] / expected
    return rows
