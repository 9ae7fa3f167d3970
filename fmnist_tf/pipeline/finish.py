"""After training: test the saved model once, and write all that is reported of it.

Nothing found on the test images here goes back into training.

N test images, V val images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.cli.terminal import progress_bar, warn
from fmnist_tf.data.images import PixelRows, Pixels, Table
from fmnist_tf.data.splits import subset_rows
from fmnist_tf.errors import printable
from fmnist_tf.model.explain import build_inspector, run_grad_cam
from fmnist_tf.model.inference import RunBatches, compile_model
from fmnist_tf.pipeline.fit import Trained
from fmnist_tf.pipeline.prepare import Experiment, RunData
from fmnist_tf.pipeline.record import write_provenance
from fmnist_tf.pipeline.saved_run import MODEL
from fmnist_tf.reporting.curves import write_curves
from fmnist_tf.reporting.model_card import write_model_card
from fmnist_tf.reporting.page import write_report
from fmnist_tf.reporting.plots import write_confusion, write_mistakes
from fmnist_tf.reporting.tracking import Trackers
from fmnist_tf.results import analysis
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.rundir import PREDICTIONS, RunDir
from fmnist_tf.results.temperature import fit_temperature, measure_scaling
from fmnist_tf.settings.config import FLIP
from fmnist_tf.system import signals
from fmnist_tf.training.augmentation import augment

N_AGREEMENT = 256
N_PROJECTED = 3000
MIN_AGREEMENT = 0.97
N_AUGMENTED = 8, 7  # training images, and views of each, that the report shows


def finish(
    experiment: Experiment, directory: RunDir, trained: Trained, trackers: Trackers
) -> Evaluation:
    """Test model.keras once, and write everything up to DONE.json.

    Returns:
        The test evaluation; that of val if there are no test images (`limit_test` 0).
    """
    config, data, weights = experiment.config, experiment.data, experiment.network.weights
    clock, dataset = experiment.invocation.clock, data.dataset
    test, names = dataset.test, dataset.train.class_names

    # --- Predict with the file on disk: what is reported is what anybody gets who loads it ------
    model = keras.saving.load_model(directory.file(MODEL), compile=False)
    run_batches = compile_model(build_inspector(model))
    with clock.stage("agreement"):
        agreement = _compare_with_training(data, trained, run_batches)
    val_probabilities, val_by, test_by = trained.val_probabilities, "the training loop", MODEL
    if config.test_time_flip:
        run_batches = partial(run_batches, flips=True)
        val_by = test_by = f"{MODEL}, mean of each image and its mirror image"
        # By the file too: mirror images may not be among the cached features.
        with clock.stage("val"), progress_bar("val", "image") as show:
            pixels = dataset.train.pick(data.splits.val).pixels
            val_probabilities = np.concatenate([some for some, _ in run_batches(pixels, show)])

    # --- Evaluate -------------------------------------------------------------------------------
    val = Evaluation.from_probabilities(data.val_labels, val_probabilities)
    evaluations = {"val": val}
    # model.keras and all figures stay those of the network as trained; see `SavedRun.temperature`.
    temperature = fit_temperature(data.val_labels, val_probabilities)
    calibration: dict[str, Any] = {"temperature": temperature}
    probabilities = np.zeros((0, len(names)), np.float32)
    if is_tested := len(test.labels) > 0:
        projected_rows = subset_rows(test.labels, N_PROJECTED)
        with clock.stage("test"), progress_bar("test", "image") as show:
            probabilities, features = _predict(run_batches, test.pixels, projected_rows, show)
        evaluations["test"] = Evaluation.from_probabilities(test.labels, probabilities)
        calibration = measure_scaling(test.labels, probabilities, temperature)
        directory.write_predictions(test.labels, probabilities)
    evaluation = evaluations.get("test", val)
    directory.write_json(
        "evaluation.json",
        {
            **_compare_with_parent(experiment, probabilities),
            "dataset": dataset.name,
            "weights": weights.kind,
            "chosen_epoch": trained.chosen_epoch,
            "tested_at": datetime.now(UTC).isoformat(timespec="seconds") if is_tested else None,
            "val": {**val.to_json(), "computed_by": val_by, "agreement": agreement},
            "test": {**evaluation.to_json(), "computed_by": test_by} if is_tested else None,
            "calibration": calibration,
        },
    )

    # --- Analyse and draw -----------------------------------------------------------------------
    heading, parent = experiment.heading, experiment.network.parent
    with clock.stage("analysis"), _may_fail("report.npz, for report.html,"):
        arrays = _analyse_val(data, val_probabilities) | dataset.summary.to_arrays()
        arrays["augmented"] = _draw_augmented(experiment)
        if is_tested:
            arrays |= _analyse_test(data, model, probabilities)
            arrays |= _project(test.pixels, projected_rows, features)
        directory.write_arrays("report.npz", arrays)
    with clock.stage("figures"):
        history = [*(parent.history if parent else ()), *directory.read_history()]
        with _may_fail("curves.png"), directory.writing("curves.png") as path:
            write_curves(path, heading, history, trained.chosen_epoch)
        if is_tested:
            with _may_fail("confusion.png"), directory.writing("confusion.png") as path:
                write_confusion(path, heading, evaluation, names)
            with _may_fail("mistakes.png"), directory.writing("mistakes.png") as path:
                write_mistakes(path, heading, test.pixels, test.labels, probabilities, names)

    # --- Describe -------------------------------------------------------------------------------
    write_provenance(experiment, directory, trained)
    with _may_fail("README.md"):
        write_model_card(directory)
    command = f"python -m fmnist_tf.report {directory.name_in(directory.runs_dir)}"
    with _may_fail("report.html", f"; `{command}` tries again"):
        write_report(directory, directory.file("report.html"))

    # --- Mirror in the trackers -----------------------------------------------------------------
    trackers.log_results(directory, test.pixels)
    directory.write_done()
    return evaluation


@contextmanager
def _may_fail(name: str, hint: str = "") -> Iterator[None]:
    """Warn if what shows the results cannot be made: that must not cost the run."""
    try:
        yield
    except Exception as error:
        signals.check()  # a signal can come out of a library as another error
        reason = printable(f"{type(error).__name__}: {error}", 200)
        warn(f"{name} was not made ({reason}){hint}")


def _compare_with_training(
    data: RunData, trained: Trained, run_batches: RunBatches
) -> dict[str, Any]:
    """Compare the model on disk with the training loop, on val images.

    The loop computes with cached features of 16 bits, and perhaps in bfloat16 throughout; the model
    on disk is the ordinary float32 network. A disagreement would mean that another network was
    saved than was trained.
    """
    rows = data.splits.val[:N_AGREEMENT]
    pixels = data.dataset.train.pixels[rows]
    found = np.concatenate([some for some, _ in run_batches(pixels, None)])
    expected = trained.val_probabilities[: len(rows)]
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    if same < MIN_AGREEMENT * len(rows):
        warn(
            f"{MODEL} and the training loop predict the same class for only {same} of {len(rows)} "
            f"val images: expected almost all. The test figures are those of {MODEL}"
        )
    return {
        "images": len(rows),
        "same_class": same,
        "largest_difference": float(np.abs(found - expected).max()),
    }


def _predict(
    run_batches: RunBatches,
    pixels: PixelRows,
    feature_rows: np.ndarray,
    show: Callable[[int, int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) of all images, and the penultimate features of some rows."""
    probabilities, features, first = [], [], 0
    for some, their_features in run_batches(pixels, show):
        within = (first <= feature_rows) & (feature_rows < first + len(some))
        probabilities.append(some)
        features.append(their_features[feature_rows[within] - first])
        first += len(some)
    return np.concatenate(probabilities), np.concatenate(features)


def _analyse_val(data: RunData, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the val predictions, (V, K) float32, and the images whose labels are suspect."""
    train, rows, labels = data.dataset.train, data.splits.val, data.val_labels
    shown = np.sort(analysis.find_label_issues(labels, probabilities, analysis.LABEL_ISSUES))
    return {
        "val_labels": labels,
        "val_probabilities": probabilities,
        **_find_images("val", data.dataset.files[0], train, rows, shown),
        "val_shown": shown,
        "val_pixels": train.pixels[rows[shown]],
    }


def _find_images(
    split: str, table: Table, images: Pixels, rows: np.ndarray, shown: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the lines of images; and the files of those of them that are shown, if several."""
    paths, lines = images.find(rows)
    names = [Path(paths[place]).name for place in shown]
    return {
        f"{split}_lines": lines,
        **({f"{split}_files": np.array(names, str)} if table.parts else {}),
    }


def _analyse_test(
    data: RunData, model: keras.Model, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the test images that the report shows, and Grad-CAM of some of them."""
    test, files = data.dataset.test, data.dataset.files
    selection = analysis.select_examples(test.labels, probabilities)
    explained = selection.explained
    images = test.pixels[explained].reshape(-1, 28, 28)
    found = run_grad_cam(model, images, probabilities[explained].argmax(axis=1))
    if found is None:
        explained, found = explained[:0], (np.zeros((0, 28, 28), np.uint8), (0, 0))
    return {
        **_find_images("test", files[-1], test, np.arange(len(test.labels)), selection.rows),
        "test_shown": selection.rows,
        "test_pixels": test.pixels[selection.rows],
        "cam_rows": explained,
        "cam_maps": found[0],
        "cam_cells": np.array(found[1]),
    }


def _compare_with_parent(experiment: Experiment, probabilities: np.ndarray) -> dict[str, Any]:
    """Return the entry `parent` of evaluation.json, if the parent has the same test images."""
    parent, dataset = experiment.network.parent, experiment.data.dataset
    if parent is None or not len(probabilities) or not parent.directory.file(PREDICTIONS).exists():
        return {}
    with _may_fail("the comparison with the parent run"):
        labels, theirs = parent.directory.read_predictions()
        if parent.data_sha256 == dataset.sha256 and np.array_equal(labels, dataset.test.labels):
            test = analysis.compare_runs(labels, theirs, probabilities)
            return {"parent": {"run": parent.directory.full_name, "mcnemar": asdict(test)}}
    return {}


def _draw_augmented(experiment: Experiment) -> np.ndarray:
    """Return (R, 1 + V, 784) uint8: training images, each with V views as training draws them.

    R is 0 if nothing is augmented.
    """
    config, dataset = experiment.config, experiment.data.dataset
    n_images, n_views = N_AUGMENTED if config.augment else (0, 0)
    pixels = dataset.train.pixels[experiment.data.splits.train[:n_images]]
    kinds, views = [kind for kind in config.augment if kind != FLIP], [pixels]
    for number in range(n_views):
        view = pixels.reshape(-1, 28, 28)
        if FLIP in config.augment:  # of two views; training draws one of them in each epoch
            is_flipped = (np.arange(len(view)) + number) % 2 == 0
            view = np.where(is_flipped[:, None, None], view[..., ::-1], view)
        targets, seed = tf.zeros((len(view), 2)), tf.constant([config.seed, number])
        drawn, _ = augment(view, targets, seed, kinds, dataset.convention.background)
        views.append(drawn.numpy())
    return np.stack(views, axis=1)


def _project(pixels: PixelRows, rows: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
    """Return the PCA projections of features and of pixels of these test rows."""
    embeddings, embeddings_variance = analysis.project(features)
    projected, pixels_variance = analysis.project(pixels[rows])
    return {
        "projection_rows": rows,
        "projection_embeddings": embeddings,
        "projection_pixels": projected,
        "projection_embeddings_variance": embeddings_variance,
        "projection_pixels_variance": pixels_variance,
    }
