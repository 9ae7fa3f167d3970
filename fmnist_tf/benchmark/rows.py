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
    checked = _with_cosines(measurements)
    rows = []
    for measurement, cosine in checked:
        system, task = measurement.system, measurement.task
        trained = f": {N_TRAIN:,} trained on, {N_VAL:,} validated" if task.head else ""
        rule = f"seconds = {N_PHASE:,} / images_per_second{trained}"
        if measurement.reason is not None:
            rows.append(_empty_row(task.stage, task.head, system, rule, measurement.reason))
            continue
        flop = count_flop(system, task, multiplications)
        parts = [(flop * N_PHASE, str(measurement.facts["precision"]))]
        row = _row(task.stage, task.head, system, rule, N_PHASE / measurement.rate, [measurement])
        row |= _shares(row["seconds"], parts, arithmetic, reached)
        row |= {
            "images_per_second": measurement.rate,
            "rounds": list(measurement.rates),
            "spread": (max(measurement.rates) - min(measurement.rates)) / measurement.rate,
            "precision": measurement.facts["precision"],
            "batch_size": measurement.facts["batch_size"],
            "stored_bytes_an_image": measurement.facts.get("stored_bytes_an_image"),
            "device": measurement.facts.get("device"),
            "cosine": cosine,
        }
        rows.append(row)
    rows += _compose_phases([m for m, _ in checked], multiplications, arithmetic, reached)
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


def _compose_phases(
    measurements: Sequence[Measurement],
    multiplications: Mapping[str, Any],
    arithmetic: Bounds,
    reached: Bounds,
) -> list[dict[str, Any]]:
    """Return a row for each system and head: the whole frozen phase, from the measured rates."""
    passes = {m.system.name: m for m in measurements if m.task.stage == "feature_pass"}
    rows = []
    for epoch in measurements:
        system, head = epoch.system, epoch.task.head
        if epoch.task.stage != "frozen_epoch":
            continue
        times = [(epoch, PHASE_EPOCHS)]
        rule = f"seconds = {PHASE_EPOCHS} x {N_PHASE:,} / frozen_epoch's rate"
        if system.kind == "ours":
            if system.name not in passes:
                continue
            times.insert(0, (passes[system.name], 1))
            rule = rule.replace("=", f"= {N_PHASE:,} / feature_pass's rate +")
        missing = [part for part, _ in times if part.reason is not None]
        if missing:
            reason = f"{missing[0].task.stage}: {missing[0].reason}"
            rows.append(_empty_row("frozen_phase", head, system, rule, reason))
            continue
        seconds = sum(count * N_PHASE / part.rate for part, count in times)
        parts = [
            (
                count * N_PHASE * count_flop(system, part.task, multiplications),
                str(part.facts["precision"]),
            )
            for part, count in times
        ]
        row = _row("frozen_phase", head, system, rule, seconds, [part for part, _ in times])
        row |= _shares(seconds, parts, arithmetic, reached)
        row["images_per_second"] = PHASE_EPOCHS * N_PHASE / seconds
        row["stored_bytes_an_image"] = epoch.facts.get("stored_bytes_an_image")
        rows.append(row)
    return rows


def _shares(
    seconds: float, parts: Sequence[tuple[float, str]], arithmetic: Bounds, reached: Bounds
) -> dict[str, float | None]:
    """Return how much of the time either bound needs for (FLOP, precision) parts, in percent."""
    shares: dict[str, float | None] = {}
    for name, bounds in (("percent_of_bound", arithmetic), ("percent_of_reached", reached)):
        rates = [bounds.get(precision) for _, precision in parts]
        least = sum(flop / rate for (flop, _), rate in zip(parts, rates, strict=True) if rate)
        shares[name] = 100 * least / seconds if all(rates) else None
    return shares


def _empty_row(
    stage: str, head: str | None, system: System, rule: str, reason: str
) -> dict[str, Any]:
    return {
        "stage": stage,
        "head": head,
        "system": system.name,
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
        "reason": reason,
    }


def _row(
    stage: str,
    head: str | None,
    system: System,
    rule: str,
    seconds: float,
    measurements: Sequence[Measurement],
) -> dict[str, Any]:
    anonymous = [m.anonymous_bytes for m in measurements if m.anonymous_bytes is not None]
    return _empty_row(stage, head, system, rule, "") | {
        "seconds": seconds,
        "peak_mb": max(m.peak_bytes for m in measurements) / 1e6,
        "anonymous_mb": max(anonymous) / 1e6 if anonymous else None,
        "reason": None,
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
