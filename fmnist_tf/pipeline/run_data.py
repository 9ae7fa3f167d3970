"""Images for a saved run: the one place where new data meet a trained model.

How the data were read goes to stderr; so do warnings if they look unlike the training images.

N images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from fmnist_tf.cli.terminal import boxed, say, warn
from fmnist_tf.data.csv.table import expand_path, read_csv
from fmnist_tf.data.images import Table
from fmnist_tf.data.labels import index_classes, map_labels
from fmnist_tf.data.photos import Picture, find_polarity_warning, read_picture
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.errors import DataError, UsageError, printable
from fmnist_tf.pipeline.saved_run import SavedRun

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class LabelledImages:
    """Images with their true classes.

    Attributes:
        name: of the data set or the file.
        pixels: (N, 784) uint8.
        labels: (N,) int64, class indices of the run.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray


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
    for path in (*([train] if source == train else []), *test):
        if not Path(path).is_file():
            raise UsageError(
                f"{where}: expected {path}, found no such file in {Path.cwd()}. Run the command "
                "where the run was made, or name the data with --data"
            )
    dataset = read_dataset(
        source,
        store_dir=run.config.cache_dir(run.directory.runs_dir) / "pixels",
        say=say,
        test_data=test[0] if test else None,
        label_column=run.config.label_column,
    )
    found = tuple(file.sha256 for file in dataset.files)
    if found != run.data_sha256:
        raise UsageError(
            f"{where}: expected files of SHA-256 {', '.join(run.data_sha256)}, found "
            f"{', '.join(found)}. Name the data with --data"
        )
    return dataset


def read_table(
    run: SavedRun, path: Path, store_dir: Path, label_column: str | None = None
) -> Table:
    """Read a CSV of images, with or without labels.

    Args:
        run: its label column is used if the file has it.
        path: of the CSV.
        store_dir: folder for the parsed file.
        label_column: name of the label column, whatever the run's is; None: the run's, else found.

    Raises:
        DataError: the file is bad, whatever column holds its labels.
    """
    table = _with_label_column(
        lambda column: read_csv(path, store_dir, label_column=column), run, label_column
    )
    for decision in table.decisions:
        say(f"{path}: {decision}")
    _warn_if_negated(run, str(path), table.pixels)
    return table


def read_run_picture(run: SavedRun, path: Path) -> Picture:
    """Read a picture and convert it to what the run's training images look like.

    Raises:
        UsageError: the picture is bad, or the run does not say what its training images look like.
    """
    facts = run.provenance["data"]
    if "background" not in facts or "content_side" not in facts:
        raise UsageError(
            f"{path}: expected a run that records what its training images look like, found one of "
            "an older version; train it again, or predict from CSV"
        )
    picture = read_picture(path, background=facts["background"], content_side=facts["content_side"])
    say(f"{path}: {'; '.join(picture.decisions)}")
    return picture


def read_labelled(
    run: SavedRun, data: str | None, store_dir: Path, label_column: str | None = None
) -> LabelledImages:
    """Read the labelled CSV `data` (see `read_table`), or the run's own test images if None.

    Raises:
        UsageError: see `read_own_dataset`.
        DataError: the file is bad, has no labels (E026), or labels that are not the run's (E028).
    """
    if data is None:
        dataset = read_own_dataset(run)
        say(f"data: the run's own {len(dataset.test.labels):,} test images")
        return LabelledImages(dataset.name, dataset.test.pixels, dataset.test.labels)
    table = read_table(run, expand_path(data), store_dir, label_column)
    labels = map_labels(table, run.class_names)
    if table.sha256 == run.data_sha256[0]:
        warn(
            boxed(
                "WARNING: THE RUN WAS TRAINED ON THIS FILE.",
                "The accuracy below measures memory, it is not a test.",
            )
        )
    return LabelledImages(table.path, table.pixels, labels)


def read_labelled_dataset(run: SavedRun, data: str | None, store_dir: Path) -> Dataset:
    """Read train and test images with labels as the run's class indices.

    Args:
        run: whose classes they are.
        data: see `read_dataset`; None: the run's own.
        store_dir: folder for parsed files.

    Raises:
        UsageError: the data are missing or bad, or have a class that the run does not know.
    """
    if data is None:
        return read_own_dataset(run)
    dataset = _with_label_column(
        lambda column: read_dataset(data, store_dir=store_dir, say=say, label_column=column), run
    )
    index, names = index_classes(run.class_names), dataset.train.class_names
    if unknown := [name for name in names if name not in index]:
        raise UsageError(
            f"{dataset.files[0].path}: expected the run's classes "
            f"({printable(', '.join(index), 100)}), found {printable(', '.join(unknown), 100)}; "
            "name other data with --data"
        )
    _warn_if_negated(run, dataset.files[0].path, dataset.train.pixels)
    class_of = np.array([index[name] for name in names])
    train, test = (
        replace(part, labels=class_of[part.labels], class_names=run.class_names)
        for part in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)


def _with_label_column(
    read: Callable[[str | None], _Read], run: SavedRun, named: str | None = None
) -> _Read:
    """Call `read` with the label column that was named, else the run's, else None to find it."""
    if named:
        return read(named)
    column = run.config.label_column
    if column is not None:
        try:
            return read(column)
        except DataError as error:
            if {problem.code for problem in error.problems} - {"E021", "E026"}:
                raise
    return read(None)


def _warn_if_negated(run: SavedRun, name: str, pixels: np.ndarray) -> None:
    background = run.provenance["data"].get("background")
    if background is not None and (warning := find_polarity_warning(pixels, background)):
        warn(f"{name}: {warning}")
