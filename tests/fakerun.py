"""A complete run directory without a model: 10 classes, 60 test images, made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tf.data.convention import Convention
from fmnist_tf.data.summary import DataSummary
from fmnist_tf.results import analysis
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.settings.backbones import read_table

read_table().setdefault("toy", {"stem": ["1"], "conv2": ["1"]})  # as in toy.py
NAMES = tuple(f"garment {letter}" for letter in "abcdefghij")
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "$\\frac{a}$ & 'x' \"y\"",
    "\u202egnp.exe\u202d",
    "W" * 10_000,
    "a\nb\x00c\x1b[31m",
    "<img src=x onerror=\"document.title='pwned'\">",
    "ドレス",
    '</svg></style></title><b id="main">',
    " ",
    "{{ 7 * 7 }} {% raw %}",
)


def make_history(phase: str, epochs: range, accuracy: float = 0.5) -> list[HistoryRow]:
    return [
        HistoryRow(e, phase, 1 / (e + 1), accuracy, 2 / (e + 1), accuracy + e / 100, 1e-3, 2.0)
        for e in epochs
    ]


def predict(k: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and probabilities (n, k), correct about two times in three."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % k
    probabilities = random.dirichlet(np.ones(k), n)
    probabilities[np.arange(n), labels] += 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32)


def make_summary(k: int, background: int = 0) -> DataSummary:
    random = np.random.default_rng(5)
    return DataSummary(
        train_counts=np.full(k, 30),
        test_counts=np.full(k, 6),
        mean_images=random.integers(0, 256, (k, 784), dtype=np.uint8),
        examples=random.integers(0, 256, (k, 6, 784), dtype=np.uint8),
        duplicates=np.array([3, 1, 2]),
        histogram=np.bincount([background] * 600 + [200] * 400, minlength=256),
    )


def make_run(
    path: Path,
    *,
    names: Sequence[str] = NAMES,
    n: int = 60,
    seed: int = 0,
    finetune: bool = False,
    done: bool = True,
    **changes: Any,
) -> RunDir:
    """Write a run; `changes` to provenance.json are named like `data__kind="sample"`."""
    path.mkdir(parents=True)
    run, k = RunDir(path), len(names)
    test, val = predict(k, n, seed), predict(k, n, 9)
    own = make_history("finetune" if finetune else "frozen", range(0 if finetune else 1, 4), 0.7)
    run.write_history(own)
    run.write_steps([2 / (step + 1) for step in range(12)])
    config = {
        "phase": own[0].phase, "backbone": "toy", "image_size": 16, "head": "gap", "seed": 0,
        "unfreeze": ["conv5"] if finetune else [], "limit": None, "test_time_flip": False,
        "augment": ["flip", "erasing"], "units": 8, "dropout": 0.5,
        "parent": "first" if finetune else None,
    }  # fmt: skip
    run.write_json("config.json", config)
    facts: dict[str, Any] = {"dataset": "my|data", "chosen_epoch": 2}
    facts["tested_at"] = "2026-11-22T18:30:00+00:00"
    if finetune:
        counts = {"both": 35, "only_first": 5, "only_second": 17, "neither": 3, "p_value": 0.0169}
        facts["parent"] = {"run": "first", "mcnemar": counts}
    run.write_json("evaluation.json", facts)
    run.write_json("labels.json", dict(zip(map(str, range(k)), names, strict=True)))
    provenance: dict[str, Any] = {
        "command": "python -m fmnist_tf.train --data 'a & b.csv'",
        "code": {"commit": "c0ffee", "uncommitted_changes": True, "python": "3.11", "versions": {}},
        "machine": {
            "processor": "abacus", "cores": 2, "memory_bytes": 8e9, "system": "Linux",
            "devices": ["CPU"],
        },
        "precision": {"compute": "float32", "why": "no reason"},
        "data": {
            "name": "my|data", "kind": "csv", "decisions": ["line 1 is the header"],
            "files": [
                {"path": "train <b>.csv", "sha256": "a" * 64, "rows": 300, "labels_sha256": ""},
                {"path": "test.csv", "sha256": "b" * 64, "rows": n, "labels_sha256": ""},
            ],
            "warnings": ["W040 two images are one"], "split_sha256": "d" * 64,
            **asdict(Convention(0, 20)),
            "n_train": 540, "n_val": n, "n_test": n,
        },
        "weights": {
            "kind": "file", "path": "/a/w.h5", "sha256": "e" * 64, "trained_on": None,
            "warning": None,
        },
        "parent": config["parent"],
        "seconds": {"data": 1.0, "training": 90.0, "test": 29.0},
        "peak_memory_bytes": 2_000_000_000,
        "peak_anonymous_bytes": 1_500_000_000,
        "trained": {
            "stem": {"trained": 0, "updated": 0, "frozen": 12},
            "head": {"trained": 3456, "updated": 78, "frozen": 0},
        },
    }  # fmt: skip
    if finetune:
        before = make_history("frozen", range(1, 4))
        provenance["parent_history"] = [vars(row) for row in before]
        provenance["parent_seconds"] = {"data": 4.0, "features": 200.0}
    for place, value in changes.items():
        section, _, key = place.partition("__")
        (provenance[section] if key else provenance)[key or section] = value
    run.write_json("provenance.json", provenance)
    write_test(run, *test, *val)
    if done:
        run.write_done()
    return run


def write_test(
    run: RunDir,
    labels: np.ndarray,
    probabilities: np.ndarray,
    val_labels: np.ndarray,
    val_probabilities: np.ndarray,
) -> None:
    """Write the run's predictions and what follows from them."""
    n, k = probabilities.shape
    run.write_predictions(labels, probabilities)
    splits = {"val": (val_labels, val_probabilities), "test": (labels, probabilities)}
    evaluations = {s: Evaluation.from_probabilities(*of).to_json() for s, of in splits.items()}
    run.write_json("evaluation.json", run.read_json("evaluation.json") | evaluations)
    random = np.random.default_rng(7)
    selected = analysis.select_examples(labels, probabilities)
    shown, val_shown = selected.rows, np.arange(n)
    points = random.normal(size=(2, n, 2)).astype(np.float32) + labels[:, None]
    arrays = {
        "val_labels": val_labels,
        "val_probabilities": val_probabilities,
        "val_lines": np.arange(n) + 70_002,
        "val_shown": val_shown,
        "val_pixels": random.integers(0, 256, (n, 784), dtype=np.uint8),
        "test_lines": np.arange(n) + 2,
        "test_shown": shown,
        "test_pixels": np.repeat(shown.astype(np.uint8)[:, None], 784, axis=1),
        "projection_rows": np.arange(n),
        "projection_embeddings": points[0],
        "projection_pixels": points[1],
        "projection_embeddings_variance": np.array([0.5, 0.25]),
        "projection_pixels_variance": np.array([0.3, 0.1]),
        "augmented": random.integers(0, 256, (2, 4, 784), dtype=np.uint8),
        "cam_rows": selected.explained,
        "cam_cells": np.array([7, 5]),
        "cam_maps": random.integers(0, 256, (len(selected.explained), 28, 28), dtype=np.uint8),
    }
    run.write_arrays("report.npz", arrays | make_summary(k).to_arrays())
    if run.is_complete:
        run.write_done()


def change_json(path: Path, **changes: Any) -> None:
    """Change entries of a file of a run, and DONE.json with it."""
    run, content = RunDir(path.parent), json.loads(path.read_text()) | changes
    if path.name == "DONE.json":
        del content["sha256"]
        run.write_record(path.name, content)
        return
    path.write_text(json.dumps(content))
    if run.is_complete:
        run.write_done()
