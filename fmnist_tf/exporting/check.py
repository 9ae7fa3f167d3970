"""Compare exported models with the Keras model: predictions, accuracy, latency, size.

N images, K classes.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmnist_tf.cli.terminal import markdown_table, progress_bar
from fmnist_tf.data.sources import Dataset
from fmnist_tf.data.splits import subset_rows
from fmnist_tf.errors import FmnistError, printable
from fmnist_tf.exporting.formats import Classify, Export
from fmnist_tf.model.inference import compile_model, run_all

N_CHECKED = 1000
N_WARM_UP, N_TIMED = 5, 50
# Rounding in another order moves a probability by 1e-6 or so. Where the two most probable classes
# are this close, either is accepted.
TIE = 1e-3
MAX_LOSS = 0.005  # of accuracy; more is warned of
_BATCH = 50


def compare(expected: np.ndarray, found: np.ndarray, labels: np.ndarray) -> dict[str, int | float]:
    """Compare the probabilities `found` by an export with those `expected` of the Keras model.

    Both are (N, K) floats, K at least 2; labels (N,) integers. "differ_clearly" counts images with
    another prediction although Keras' two best classes are `TIE` or more apart.
    """
    predicted, other = expected.argmax(axis=1), found.argmax(axis=1)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    differs = predicted != other
    return {
        "total": len(labels),
        "same": int((~differs).sum()),
        "differ_clearly": int((differs & (first - second >= TIE)).sum()),
        "largest_difference": float(np.abs(expected - found).max()),
        "correct": int((other == labels).sum()),
        "keras_correct": int((predicted == labels).sum()),
    }


def check_exports(
    model: keras.Model, exports: Sequence[Export], dataset: Dataset, folder: Path, threads: int
) -> dict[str, Any]:
    """Run the Keras model and its exports, in `folder`, on at most `N_CHECKED` test images.

    Returns:
        The entries checked, latency, keras and exports of export.json.

    Raises:
        FmnistError: a float32 export predicts another class than the Keras model.
    """
    rows = subset_rows(dataset.test.labels, N_CHECKED)
    images, labels = np.reshape(dataset.test.pixels[rows], (-1, 28, 28)), dataset.test.labels[rows]
    with progress_bar("Keras", "image") as show:
        expected = run_all(compile_model(model), images, show)[0]
    entries = []
    for export in exports:
        parts: list[np.ndarray] = []
        with progress_bar(export.path.name, "image") as show:
            for first in range(0, len(images), _BATCH):
                parts.append(export.classify(images[first : first + _BATCH]))
                show(first + len(parts[-1]), len(images))
        agreement = compare(expected, np.concatenate(parts), labels)
        if export.precision == "float32" and agreement["differ_clearly"]:
            raise FmnistError(
                f"{export.path.name}: expected the predictions of model.keras, found another class "
                f"for {agreement['differ_clearly']} of {len(rows)} images that are not ties; "
                "nothing was exported. Please report it, with the versions of tensorflow and keras"
            )
        path = export.path
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        entries.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "precision": export.precision,
                **agreement,
                "latency_ms": measure_latency(export.classify, images),
                "bytes": sum(file.stat().st_size for file in files),
            }
        )
    return {
        "checked": {
            "dataset": dataset.name,
            "file_sha256": dataset.files[-1].sha256,
            "images": len(rows),
            "of": len(dataset.test.labels),
        },
        "latency": {"images": 1, "calls": N_TIMED, "median": True, "threads": threads},
        "keras": {
            "correct": int((expected.argmax(axis=1) == labels).sum()),
            "latency_ms": measure_latency(model.predict_on_batch, images),
        },
        "exports": entries,
    }


def find_losses(report: dict[str, Any]) -> list[str]:
    """Return a warning for each export that loses more than `MAX_LOSS` of accuracy."""
    total, keras_correct = report["checked"]["images"], report["keras"]["correct"]
    return [
        f"{entry['path']} loses {(keras_correct - entry['correct']) / total:.2%} of accuracy: "
        f"{entry['correct']} of {total} test images correct, the Keras model {keras_correct}"
        for entry in report["exports"]
        if keras_correct - entry["correct"] > MAX_LOSS * total
    ]


def format_report(report: dict[str, Any]) -> str:
    """Return what was measured as a Markdown table, below a line on how."""
    checked, images = report["checked"], report["checked"]["images"]
    rows = []
    for entry in (report["keras"], *report["exports"]):
        cells = ["model.keras", "", ""]
        if "path" in entry:
            name = "SavedModel" if entry["path"] == "1" else entry["path"]
            cells = [name, f"{entry['same']}/{images}", f"{entry['largest_difference']:.1e}"]
        accuracy = f"{entry['correct'] / images:.4f} ({entry['correct']}/{images})"
        size = f"{entry['bytes'] / 1e6:.1f} MB"
        rows.append([*cells, accuracy, f"{entry['latency_ms']:.1f} ms", size])
    columns = ("model", "same prediction", "largest difference", "accuracy", "latency", "size")
    return (
        f"{printable(checked['dataset'])}, {images:,} of {checked['of']:,} test images; latency of "
        f"one image, median of {N_TIMED} calls, {report['latency']['threads']} threads\n\n"
        f"{markdown_table(columns, rows)}\n"
    )


def measure_latency(classify: Classify, images: np.ndarray) -> float:
    """Return the median milliseconds of a call with one image, after a warm-up."""
    one = images[:1]
    seconds = timeit.repeat(lambda: classify(one), number=1, repeat=N_WARM_UP + N_TIMED)
    return 1000 * statistics.median(seconds[N_WARM_UP:])
