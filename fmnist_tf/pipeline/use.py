"""Use a saved run: find it, measure it on labelled images, write its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmnist_tf.cli.terminal import boxed, progress_bar, warn
from fmnist_tf.model.inference import run_all
from fmnist_tf.pipeline.run_data import read_labelled
from fmnist_tf.pipeline.saved_run import SavedRun, find_run, read_saved_run, resume_command
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import measure_scaling


def open_run(name: str, runs_dir: Path) -> SavedRun:
    """Read a run, see `find_run`, and print the warnings that everybody who uses it must see."""
    run = read_saved_run(find_run(name, runs_dir))
    for caveat in run.caveats:
        warn(boxed(f"WARNING, this model: {caveat}."))
    return run


def evaluate_run(
    run: SavedRun, data: str | None, label_column: str | None = None, labels: str | None = None
) -> tuple[str, Evaluation, dict[str, Any]]:
    """Measure a run on labelled images, or on its own test images again; see `read_labelled`.

    Returns:
        The name of the data set or file, the counts of the network as trained, and its calibration
        before and after temperature scaling; see `measure_scaling`.

    Raises:
        DataError: the images are invalid, or their labels are not the run's.
    """
    name, images = read_labelled(run, data, label_column, labels)
    run_batches = run.run_batches
    with progress_bar("evaluate", "image") as show:
        (probabilities,) = run_all(run_batches, images.pixels, show)
    scaling = measure_scaling(images.labels, probabilities, run.temperature)
    return name, Evaluation.from_probabilities(images.labels, probabilities), scaling


def write_page(directory: RunDir, path: Path) -> None:
    """Write the page of a run; of a stopped one that of its training so far, with a warning.

    Raises:
        UsageError: a file is missing or damaged, or the run was stopped before its first epoch.
    """
    from fmnist_tf.reporting.page import write_report, write_stopped_report

    if directory.is_complete:
        write_report(directory, path)
        return
    run = read_saved_run(directory)
    warn(boxed(f"WARNING, this run: {run.caveats[-1]}."))
    command = resume_command(directory)
    write_stopped_report(directory, run.history, run.best_epoch, command, path)
