"""What follows training: one test of the saved model, and all that is told about it.

In: a run whose best model is on disk, and what training left behind. Out: predictions, evaluation,
what the report shows, figures, page, model card; `DONE.json` last. Nothing that is
found on the test images here goes back into training. This module must not know how the model was
trained.

Shape letters: N test images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tf.cli.terminal import progress_bar, warn
from fmnist_tf.data.splits import subset_rows
from fmnist_tf.errors import printable
from fmnist_tf.model.inference import RunBatches, average_flips, compile_model
from fmnist_tf.pipeline.run import Run, Trained, describe_run
from fmnist_tf.pipeline.saved_run import MODEL
from fmnist_tf.reporting import figures
from fmnist_tf.reporting.model_card import write_model_card
from fmnist_tf.reporting.page import write_report
from fmnist_tf.reporting.tracking import Tracker
from fmnist_tf.results import analysis
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.system.files import file_digest

if TYPE_CHECKING:
    import keras

N_MISTAKES = 100
N_PROJECTED = 3000
N_AGREEMENT = 256
LEAST_AGREEMENT = 0.97
FIGURES = ("curves.png", "confusion.png", "mistakes.png")


def conclude(run: Run, tracker: Tracker, trained: Trained) -> Evaluation:
    """Test the saved model once, and write all that follows from it.

    Returns:
        The test evaluation.
    """
    import keras

    from fmnist_tf.model.explain import build_inspector

    directory, dataset = run.directory, run.dataset
    test, names = dataset.test, dataset.train.class_names
    # The file as it lies on disk: what is reported is then what anybody gets who loads it.
    model = keras.saving.load_model(directory.file(MODEL), compile=False)
    run_batches = compile_model(build_inspector(model))
    with run.clock.stage("agreement"):
        agreement = _compare_with_training(run, trained, run_batches)
    val_probabilities, val_by, test_by = trained.val_probabilities, "the training loop", MODEL
    if run.config.test_time_flip:
        run_batches = average_flips(run_batches)
        val_by = test_by = f"{MODEL}, mean of each image and its mirror image"
        # By the file too: mirror images may not be among those that the loop has stored.
        with run.clock.stage("val"), progress_bar("val", "image") as show:
            pixels = dataset.train.pixels[run.splits.val]
            val_probabilities = np.concatenate([some for some, _ in run_batches(pixels, show)])
    map_rows = subset_rows(test.labels, N_PROJECTED)
    with run.clock.stage("test"), progress_bar("test", "image") as show:
        probabilities, features = _test(run_batches, test.pixels, map_rows, show)
    evaluation = Evaluation.from_probabilities(test.labels, probabilities)
    val = Evaluation.from_probabilities(dataset.train.labels[run.splits.val], val_probabilities)
    directory.write_predictions(test.labels, probabilities)
    directory.write_json(
        "evaluation.json",
        {
            "dataset": dataset.name,
            "weights": run.network.weights.kind,
            "chosen_epoch": trained.chosen_epoch,
            "tested_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "val": {**val.to_json(), "computed_by": val_by, "agreement": agreement},
            "test": {**evaluation.to_json(), "computed_by": test_by},
        },
    )
    with run.clock.stage("analysis"):
        directory.write_arrays(
            "report.npz", _analyse(run, val_probabilities, model, probabilities, map_rows, features)
        )
    with run.clock.stage("figures"):
        _write_figures(run, trained, evaluation, probabilities)
    directory.write_json("provenance.json", describe_run(run, trained))
    write_model_card(directory)
    try:
        write_report(directory, directory.file("report.html"))
    except Exception as error:  # a picture of the run must not cost the run
        reason = printable(f"{type(error).__name__}: {error}", 200)
        warn(
            f"report.html was not made ({reason}); `python -m fmnist_tf.report "
            f"{directory.name_in(directory.runs_dir)}` tries again"
        )
    tracker.log_results(
        {"val": val, "test": evaluation},
        class_names=names,
        pixels=test.pixels,
        labels=test.labels,
        probabilities=probabilities,
        mistakes=N_MISTAKES,
        figures=[directory.file(name) for name in FIGURES],
        # The page and the model card name paths and the machine; they stay in the run directory.
        model_files=[directory.file(name) for name in (MODEL, "labels.json")],
        model_facts={
            "test_accuracy": evaluation.accuracy,
            "test_total": evaluation.total,
            "val_accuracy": val.accuracy,
            "test_time_flip": run.config.test_time_flip,
            "dataset": dataset.name,
            "data_kind": dataset.kind,
            "backbone": run.config.backbone,
            "weights": run.network.weights.kind,
            "weights_sha256": run.network.weights.sha256,
            "classes": [printable(name) for name in names],
            "sha256": file_digest(directory.file(MODEL)),
        },
    )
    directory.write_done()
    return evaluation


def _compare_with_training(run: Run, trained: Trained, run_batches: RunBatches) -> dict[str, Any]:
    """Compare the model on disk with the training loop, on val images.

    The loop computes with the frozen part's output in 16 bits, and perhaps in bfloat16 throughout;
    the model on disk is the ordinary float32 network. A disagreement would mean that another
    network was saved than was trained.
    """
    rows = run.splits.val[:N_AGREEMENT]
    pixels = run.dataset.train.pixels[rows]
    found = np.concatenate([probabilities for probabilities, _ in run_batches(pixels, None)])
    expected = trained.val_probabilities[: len(rows)]
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    if same < LEAST_AGREEMENT * len(rows):
        warn(
            f"{MODEL} and the training loop name the same class for {same} of {len(rows)} val "
            "images only: expected almost all. Trust the test figures, which are of the file"
        )
    return {
        "images": len(rows),
        "same_class": same,
        "largest_difference": float(np.abs(found - expected).max()),
    }


def _test(
    run_batches: RunBatches,
    pixels: np.ndarray,
    map_rows: np.ndarray,
    show: Callable[[int, int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of all images, and the penultimate features of `map_rows`."""
    probabilities, features, first = [], [], 0
    for some, their_features in run_batches(pixels, show):
        shown = map_rows[(first <= map_rows) & (map_rows < first + len(some))]
        probabilities.append(some)
        features.append(their_features[shown - first])
        first += len(some)
    return np.concatenate(probabilities), np.concatenate(features)


def _analyse(
    run: Run,
    val_probabilities: np.ndarray,
    model: keras.Sequential,
    probabilities: np.ndarray,
    map_rows: np.ndarray,
    features: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return what the report shows and no other file holds.

    Args:
        run: gives the images.
        val_probabilities: (V, K) float32, in the order of `Splits.val`.
        model: as it lies on disk.
        probabilities: (N, K) float32, of the test images.
        map_rows: M row numbers of test images.
        features: (M, D) float32, penultimate, of those.
    """
    from fmnist_tf.model.classifier import find_backbone
    from fmnist_tf.model.explain import run_grad_cam

    train, test = run.dataset.train, run.dataset.test
    val_rows = run.splits.val
    val_labels = train.labels[val_rows]
    test_selection = analysis.select_examples(test.labels, probabilities)
    test_shown = test_selection.rows
    val_shown = np.sort(
        analysis.find_label_issues(val_labels, val_probabilities, analysis.LABEL_ISSUES)
    )
    map_features, features_variance = analysis.project(features)
    map_pixels, pixels_variance = analysis.project(test.pixels[map_rows])
    explained = test_selection.explained
    cams = run_grad_cam(
        model,
        test.pixels[explained].reshape(-1, 28, 28),
        probabilities[explained].argmax(axis=1),
    )
    if cams is None:
        explained, cams = explained[:0], np.zeros((0, 28, 28), np.uint8)
    return {
        "val_labels": val_labels,
        "val_probabilities": val_probabilities,
        "val_lines": train.lines[val_rows],
        "val_shown": val_shown,
        "val_pixels": train.pixels[val_rows[val_shown]],
        "test_lines": test.lines,
        "test_shown": test_shown,
        "test_pixels": test.pixels[test_shown],
        "map_rows": map_rows,
        "map_features": map_features,
        "map_pixels": map_pixels,
        "map_features_variance": features_variance,
        "map_pixels_variance": pixels_variance,
        "cam_rows": explained,
        "cam_maps": cams,
        "cam_cells": np.array(find_backbone(model).output_shape[1:3]),
        **run.dataset.summary.to_arrays(),
    }


def _write_figures(
    run: Run, trained: Trained, evaluation: Evaluation, probabilities: np.ndarray
) -> None:
    test, names = run.dataset.test, run.dataset.train.class_names
    before = run.parent.directory.read_history() if run.parent else []
    with run.directory.writing("curves.png") as path:
        figures.write_curves(
            path,
            [*before, *trained.history],
            run.title,
            chosen_epoch=trained.chosen_epoch,
            banner=run.banner,
        )
    with run.directory.writing("confusion.png") as path:
        figures.write_confusion(path, evaluation, names, run.title, banner=run.banner)
    with run.directory.writing("mistakes.png") as path:
        figures.write_mistakes(
            path, test.pixels, test.labels, probabilities, names, run.title, banner=run.banner
        )
