"""Read images for a saved run, its own again or other files under its classes; measure it on them.

How the data were read goes to stderr; so do warnings if they look unlike the training images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmnist_tf.cli.terminal import boxed, progress_bar, say, warn
from fmnist_tf.data import tables
from fmnist_tf.data.compare import compare
from fmnist_tf.data.files import find_kind, is_there, split_member
from fmnist_tf.data.images import PixelRows, Pixels, Table
from fmnist_tf.data.labels import index_classes, map_labels
from fmnist_tf.data.locate import expand_path, list_parts, pick_table
from fmnist_tf.data.photos import read_picture
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.data.summary import DataSummary
from fmnist_tf.errors import DataError, UsageError, printable
from fmnist_tf.model.inference import run_all
from fmnist_tf.pipeline.saved_run import SavedRun
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.temperature import measure_scaling

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Images:
    """The images of one file to classify, N of them.

    Attributes:
        name: the file as the user named it.
        pixels: (N, 784) uint8.
        first_line: line of row 0 in a CSV; None for a picture.
        true_labels: N names of the run's classes, or labels it does not know; None without labels.
    """

    name: str
    pixels: PixelRows
    first_line: int | None = None
    true_labels: Sequence[str] | None = None


def read_own_dataset(run: SavedRun) -> Dataset:
    """Read the data of the run again, from the files it recorded, relative to the current folder.

    Raises:
        UsageError: a file is missing, or is not the one the run read.
    """
    where = f"the data of {run.directory.path}"
    train, *test = (str(file["path"]) for file in run.provenance["data"]["files"])
    source = find_source(train)
    if source != train and run.config.test_data is None:
        test = []  # the official files and the sample have their own test images
    for path in [train, *test] if source == train else test:
        if not all(map(is_there, list_parts(path))):
            raise UsageError(
                f"{where}: expected {path}, found nothing there in {Path.cwd()}. Run the command "
                "where the run was made, or name the data with --data"
            )
    dataset = read_dataset(
        source,
        store_dir=run.pixels_dir,
        say=say,
        test_data=test[0] if test else None,
        label_column=run.config.label_column,
        labels=run.config.labels,
    )
    if dataset.sha256 != run.data_sha256:
        raise UsageError(
            f"{where}: expected files of SHA-256 {', '.join(run.data_sha256)}, found "
            f"{', '.join(dataset.sha256)}. Name the data with --data"
        )
    return dataset


def read_table(
    run: SavedRun, path: Path, label_column: str | None = None, labels: str | None = None
) -> Table:
    """Read images in any form that `find_tables` and `tables.read_table` know.

    Args:
        run: its label column is used if the file has it.
        path: of the images, or a pattern; of a train and a test part the latter is read.
        label_column: name of the label column, whatever the run's is; None: the run's, else found.
        labels: file of the labels, for images that have none of their own.

    Raises:
        UsageError: nothing or several files could be meant.
        DataError: the file is bad, whatever column holds its labels.
    """
    path = pick_table(path)
    read = partial(tables.read_table, path, labels=None if labels is None else expand_path(labels))
    if path.is_dir():
        read = partial(read, convention=run.convention)
    table, column = _read_temporarily(
        lambda column, folder: read(folder, label_column=column), run, label_column
    )
    for decision in table.decisions:
        say(f"{path}: {decision}")
    classes = None
    if table.label_index is not None:
        index = index_classes(run.class_names)
        classes = np.array([index.get(name, -1) for name in table.label_values])[table.label_index]
    _warn_if_unlike(run, str(path), table.pixels, classes, column)
    return table


def read_inputs(run: SavedRun, path: Path, label_column: str | None = None) -> list[Images]:
    """Read pictures, or tables as `read_table` does, with or without labels: all of a pattern."""
    return [_read_input(run, part, label_column) for part in list_parts(path)]


def _read_input(run: SavedRun, path: Path, label_column: str | None) -> Images:
    if not split_member(path)[1] and find_kind(path).form == "picture":
        pixels, notes, warnings = read_picture(path, run.convention)
        say(f"{path}: {'; '.join(notes)}")
        for warning in warnings:
            warn(f"{path}: {warning}")
        return Images(str(path), pixels[None])
    table = read_table(run, path, label_column)
    true_labels = None
    if table.label_index is not None:
        index = index_classes(run.class_names)
        texts = table.label_values
        names = [run.class_names[index[text]] if text in index else text for text in texts]
        true_labels = [names[value] for value in table.label_index]
    return Images(str(path), table.pixels, table.first_line, true_labels)


def evaluate_run(
    run: SavedRun, data: str | None, label_column: str | None, labels: str | None
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


def read_labelled(
    run: SavedRun, data: str | None, label_column: str | None = None, labels: str | None = None
) -> tuple[str, Pixels]:
    """Read the labelled images `data` (see `read_table`), or the run's own test images if None.

    Returns:
        The name of the data set or the file, and the images with class indices of the run.

    Raises:
        UsageError: see `read_own_dataset`.
        DataError: the file is bad, has no labels (E026), or labels that are not the run's (E028).
    """
    if data is None:
        dataset = read_own_dataset(run)
        say(f"data: the run's own {len(dataset.test.labels):,} test images")
        return dataset.name, dataset.test
    table = read_table(run, expand_path(data, several=True), label_column, labels)
    images = table.to_pixels(map_labels(table, run.class_names), run.class_names)
    known = run.provenance["data"]["files"][0]
    trained = {file["sha256"] for file in known.get("parts", [known])}
    is_trained = any(file.sha256 in trained for file in table.parts or [table])
    if is_trained or known["pixels_sha256"] == table.digest:
        title = "WARNING: THE RUN WAS TRAINED ON THIS FILE'S IMAGES."
        warn(boxed(title, "The accuracy below measures memory, it is not a test."))
    return table.path, images


def read_labelled_dataset(run: SavedRun, data: str | None) -> Dataset:
    """Read train and test images with labels as the run's class indices.

    Args:
        run: whose classes they are.
        data: see `read_dataset`; None: the run's own.

    Raises:
        UsageError: the data are missing or bad, or have a class that the run does not know.
    """
    if data is None:
        return read_own_dataset(run)
    dataset, column = _read_temporarily(
        lambda column, folder: read_dataset(data, store_dir=folder, say=say, label_column=column),
        run,
    )
    index, names = index_classes(run.class_names), dataset.train.class_names
    if unknown := [name for name in names if name not in index]:
        raise UsageError(
            f"{dataset.files[0].path}: expected the run's classes "
            f"({printable(', '.join(index), 100)}), found {printable(', '.join(unknown), 100)}; "
            "name other data with --data"
        )
    class_of = np.array([index[name] for name in names])
    path, train = dataset.files[0].path, dataset.train
    _warn_if_unlike(run, path, train.pixels, class_of[train.labels], column)
    train, test = (
        replace(part, labels=class_of[part.labels], class_names=run.class_names)
        for part in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)


def _read_temporarily(
    read: Callable[[str | None, Path], _Read], run: SavedRun, named: str | None = None
) -> tuple[_Read, str | None]:
    """Call `read` with a label column and a folder for parsed files, which is deleted afterwards.

    The column is the one that was named, else the run's, else None to find it. What is mapped from
    a deleted file stays readable.

    Returns:
        The result and the column.
    """
    column = named or run.config.label_column
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read(column, Path(folder)), column
        except DataError as error:
            codes = {problem.code for problem in error.problems}
            if named or column is None or codes - {"E021", "E026"}:
                raise
        return read(None, Path(folder)), None


def _warn_if_unlike(
    run: SavedRun,
    path: str,
    pixels: PixelRows,
    labels: np.ndarray | None,
    label_column: str | None,
) -> None:
    """Print how images differ from the run's training images; see `compare`."""
    try:
        is_there = run.directory.file("report.npz").exists()
        arrays = run.directory.read_arrays("report.npz") if is_there else {}
        summary = DataSummary.from_arrays(arrays)
    except KeyError:
        name = run.directory.path
        warn(f"{path}: not compared with the training images, since {name} does not describe them")
        return
    for warning in compare(summary, pixels, path, labels, label_column):
        warn(warning)
