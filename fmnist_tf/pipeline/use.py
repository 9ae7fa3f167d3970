"""Use a saved run: say what limits it, and measure it on labelled images."""

from __future__ import annotations

from typing import Any

from fmnist_tf.cli.terminal import boxed, progress_bar, warn
from fmnist_tf.pipeline.run_data import read_labelled
from fmnist_tf.pipeline.saved_run import SavedRun, compile_saved_model
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.temperature import measure_scaling
from fmnist_tf.system.startup import import_tensorflow


def show_caveats(run: SavedRun) -> None:
    """Print the warnings that everybody who uses the model must see."""
    for caveat in run.caveats:
        warn(boxed(f"WARNING, this model: {caveat}."))


def evaluate_run(
    run: SavedRun, data: str | None, label_column: str | None = None, labels: str | None = None
) -> tuple[str, Evaluation, dict[str, Any]]:
    """Measure a run on labelled images, or on its own test images again.

    Args:
        run: whose model and classes are used.
        data: see `read_labelled`.
        label_column: see `read_labelled`.
        labels: see `read_labelled`.

    Returns:
        The name of the data set or file, the counts of the network as trained, and its calibration
        before and after temperature scaling; see `measure_scaling`.

    Raises:
        DataError: the images are invalid, or their labels are not the run's.
    """
    from fmnist_tf.model.inference import run_all

    name, images = read_labelled(run, data, label_column, labels)
    import_tensorflow()
    run_batches = compile_saved_model(run, scaled=False)
    with progress_bar("evaluate", "image") as show:
        (probabilities,) = run_all(run_batches, images.pixels, show)
    scaling = measure_scaling(images.labels, probabilities, run.temperature)
    return name, Evaluation.from_probabilities(images.labels, probabilities), scaling
