"""Measurements -> the rows of the result: medians, ratios, the composed phase, percent of bound.

Shape letters: N images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.plan import N_PHASE, N_TRAIN, OURS, PHASE_EPOCHS, Job, Task

REFERENCE = "keras_float32"
# With a lower cosine a system computes something else. In bfloat16 every layer rounds by 0.4 %, and
# fifty layers with random weights multiply that: Keras' own mixed precision comes to 0.96.
MIN_COSINE = {"float32": 0.99, "bfloat16": 0.8}
MIN_PROBABILITY = 1e-30
KEYS = (
    "stage", "head", "system", "precision", "backbone", "image_size", "batch_size",
    "images_per_second", "ratio", "seconds", "peak_mb", "percent_of_bound", "rounds", "cosine",
    "stored_bytes_per_image", "reason",
)  # fmt: skip
"""Of every row; what was not measured is None, and `reason` says why."""

Bounds = Mapping[str, float | None]
"""Precision -> FLOP/s, None where it is not known."""


@dataclass(eq=False)
class Measurement:
    """What was measured of one system in one task; see `measure.Stage`."""

    job: Job
    rates: list[float] = field(default_factory=list)  # images a second, one a round
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: np.ndarray | None = None  # (N, ...) float32
    reason: str | None = None  # why there is no rate

    @property
    def is_ours(self) -> bool:
        """Whether it is of this project."""
        return self.job.system.name.startswith(OURS)

    def comparable(self) -> np.ndarray:
        """Return the features, or the logarithms of the probabilities: small ones count too."""
        outputs = np.asarray(self.outputs, np.float64)
        return np.log(np.maximum(outputs, MIN_PROBABILITY)) if self.job.task.head else outputs


def compare_outputs(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the lowest cosine over the images, after subtraction of the mean expected image.

    Without the subtraction the outputs of any two images would look alike.
    """
    mean = expected.mean(axis=0)
    a, b = ((x - mean).reshape(len(x), -1) for x in (found, expected))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    return float(np.where(np.all(a == b, axis=1), 1.0, cosines).min())


def compose_rows(measurements: Sequence[Measurement], bounds: Bounds) -> list[dict[str, Any]]:
    """Return a row for each measurement and for each frozen phase that they compose to.

    They are of one backbone at one side. A measurement whose outputs differ from the reference's
    gets a reason.
    """
    reference = {m.job.task: m for m in measurements if m.job.system.name == REFERENCE}
    rows = []
    for measurement in measurements:
        job, cosine, expected = measurement.job, None, reference.get(measurement.job.task)
        if measurement.reason is None and expected and expected.reason is None:
            cosine = compare_outputs(measurement.comparable(), expected.comparable())
            if not cosine >= MIN_COSINE[job.system.precision]:  # a NaN is wrong too
                measurement.reason = f"other outputs than {REFERENCE}: cosine {cosine:.3f}"
        row = _row(job.task.stage, [(measurement, 1)], reference, bounds)
        stored = measurement.facts.get("stored_bytes_per_image")
        row |= {"rounds": measurement.rates, "batch_size": job.batch_size, "cosine": cosine}
        rows.append(row | {"stored_bytes_per_image": stored})
    for epoch in (m for m in measurements if m.job.task.stage == "frozen_epoch"):
        passes = [[(m, 1)] for m in measurements if m.is_ours and m.job.task.head is None]
        for once in passes if epoch.is_ours else [[]]:
            rows.append(_row("frozen_phase", [(epoch, PHASE_EPOCHS), *once], reference, bounds))
    rates = {
        (r["stage"], r["head"]): r["images_per_second"] for r in rows if r["system"] == REFERENCE
    }
    for row in rows:
        expected_rate = rates.get((row["stage"], row["head"]))
        if expected_rate and row["images_per_second"]:
            row["ratio"] = row["images_per_second"] / expected_rate
    return rows


def _row(
    stage: str,
    parts: Sequence[tuple[Measurement, int]],
    reference: Mapping[Task, Measurement],
    bounds: Bounds,
) -> dict[str, Any]:
    """Return the row of a stage of one system that consists of passes over `N_PHASE` images.

    Each of its parts is a measurement and the number of its passes; the rate counts those of the
    first, and the system is that of the last. The reference's facts hold the multiplications of
    each task.
    """
    (first, times), job = parts[0], parts[-1][0].job
    reasons = [part.reason for part, _ in parts if part.reason]
    row: dict[str, Any] = dict.fromkeys(KEYS)
    row |= {"stage": stage, "head": first.job.task.head, "system": job.system.name}
    row |= {"precision": job.system.precision, "backbone": job.backbone}
    row |= {"image_size": job.image_size}
    if reasons:
        return row | {"reason": reasons[0]}
    seconds = flop = 0.0
    bound = bounds.get(job.system.precision)
    for part, count in parts:
        seconds += count * N_PHASE / statistics.median(part.rates)
        task = part.job.task
        counted = reference[task].facts.get("multiplications") if task in reference else None
        if counted is None:
            bound = None
        else:
            flop += count * N_PHASE * _flop(part, counted)
    return row | {
        "images_per_second": times * N_PHASE / seconds,
        "seconds": seconds,
        "peak_mb": max(part.peak_bytes for part, _ in parts) / 1e6,
        "percent_of_bound": 100 * flop / bound / seconds if bound else None,
    }


def _flop(measurement: Measurement, multiplications: Mapping[str, int]) -> float:
    """Return the FLOP that one image costs; in an epoch nine of ten images train.

    Ours caches the backbone features instead of computing them in an epoch.
    """
    is_cached = measurement.is_ours and measurement.job.task.head is not None
    frozen = 0 if is_cached else multiplications["frozen"]
    backward = multiplications["backward"] * N_TRAIN / N_PHASE
    return 2 * (frozen + multiplications["trained"] + backward)
