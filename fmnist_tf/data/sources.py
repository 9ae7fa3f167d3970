"""Which images train and which test: `--data auto|sample|official|PATH` -> one `Dataset`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fmnist_tf.data import official, sample
from fmnist_tf.data.compare import check_training, compare
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.data.images import Pixels, Table
from fmnist_tf.data.labels import FASHION_MNIST, map_labels, require_labels
from fmnist_tf.data.locate import (
    check_paths,
    expand_path,
    find_tables,
    find_test_beside,
    name_dataset,
    pick_table,
)
from fmnist_tf.data.splits import TEST_FRACTION, TEST_SEED, plan_holdout
from fmnist_tf.data.summary import DataSummary, inspect
from fmnist_tf.data.tables import read_table
from fmnist_tf.errors import DataError, UsageError

DATA_DIR = Path("data")
"""The folder of files that `--data auto` looks in, below the current one."""
SAMPLE_WARNING = (
    "WARNING: THIS IS THE BUILT-IN SAMPLE, not Fashion-MNIST.\n"
    "It holds 1,797 real handwritten digits, which are easy. An accuracy on it shows that "
    "everything runs; it says nothing about Fashion-MNIST.\n"
    "For Fashion-MNIST put its CSVs into data/ (where from: data/README.md), or run once with a "
    "network and --data auto: the official files are then downloaded."
)

_Read = Callable[..., Table]
_KNOWN = {official.DIGESTS: "official", sample.DIGESTS: "sample"}
_NAMES = {"official": "fashion-mnist", "sample": "sample"}


@dataclass(frozen=True)
class Dataset:
    """What one run trains and is tested on.

    Attributes:
        train: the images that train and validate.
        test: the images that are classified once, at the end; same classes as `train`.
        name: "fashion-mnist", "sample", or the train file's name without "train" and ".csv".
        kind: "official" or "sample", also for other files of these images; else `Table.form`.
        files: the train file and, if there is one, the test file.
        decisions: what was decided, a sentence each.
        warnings: what limits the meaning of any figure. One that begins with "WARNING" is to be
            shown in a box; its lines are paragraphs.
        summary: for the report.
        convention: how objects lie in the training images.
    """

    train: Pixels
    test: Pixels
    name: str
    kind: str
    files: tuple[Table, ...]
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: DataSummary
    convention: Convention

    @property
    def sha256(self) -> tuple[str, ...]:
        """SHA-256 of the train file, of the test file if any, and of their files of labels."""
        labels = (file.labels_sha256 for file in self.files)
        return (*(file.sha256 for file in self.files), *filter(None, labels))


def read_dataset(
    data: str,
    *,
    store_dir: Path,
    say: Callable[[str], None],
    test_data: str | None = None,
    label_column: str | None = None,
    labels: str | None = None,
    to_train: bool = True,
) -> Dataset:
    """Find, read and check the images of `--data`.

    A named source never falls back to another one. `auto` takes the first of: the files in the data
    folder; the official files (Keras' cache, else a download); the built-in sample.

    Args:
        data: "auto", "sample", "official", or a path or pattern; see `find_tables`, `read_table`.
        store_dir: where parsed files are kept; downloads are kept beside it.
        say: takes a line before what takes time, and when a source fails.
        test_data: what replaces any other test file, a labelled path or pattern, or None.
        label_column: see `read_table`.
        labels: a file of the labels of the training images, or None. Those of the test images are
            in the file named alike, with "test" for "train".
        to_train: False: labels, a second class and a test file are optional; without labels all
            images are of one class, and without a test file `test` is empty.

    Raises:
        UsageError: nothing or too much fits what was asked for, or a file is bad (`DataError`).
        DownloadError: the official files were named and cannot be downloaded.
        OSError: the disk is full or fails.
    """
    decisions: list[str] = []
    read = partial(read_table, store_dir=store_dir, label_column=label_column)
    labels_path = None if labels is None else expand_path(labels)
    is_known = data in ("official", "sample")
    if data == "auto":
        is_known = not DATA_DIR.is_dir() or find_tables(DATA_DIR, in_folders=False) is None
    if is_known and labels is not None:
        raise UsageError(f"--labels {labels}: expected together with --data PATH")
    if is_known:
        train, test, kind = _read_known(data, store_dir, say, decisions)
    else:
        train, test = _read_files(data, labels_path, read, decisions, wants_test=test_data is None)
        kind = _KNOWN.get((train.digest, train.label_digest), train.form)
    if test_data is not None:
        test = _read_named_test(test_data, labels_path, read, train)
    tables = (train,) if test is None else (train, test)
    decisions += [f"{Path(t.path).name}: {line}" for t in tables for line in t.decisions]
    if to_train:
        require_labels(train, minimum=2)
    class_names = train.label_values or ("unlabelled",)
    has_ten = class_names == tuple("0123456789")
    if has_ten and (kind == "official" or "fashion" in train.path.lower()):
        class_names = FASHION_MNIST
        decisions.append("classes 0 to 9 are named as in Fashion-MNIST, T-shirt/top to Ankle boot")
    index = np.zeros(len(train.pixels)) if train.label_index is None else train.label_index
    train_part = train.to_pixels(index.astype(np.int64), class_names)
    if test is not None:
        test_part = test.to_pixels(map_labels(test, class_names, train.path), class_names)
    elif to_train:
        train_part, test_part = _set_aside(train_part, decisions)
    else:
        test_part = train_part.pick(np.zeros(0, np.int64))
    found = inspect(train_part, test_part, store_dir)
    boxes = (SAMPLE_WARNING,) if kind == "sample" else ()
    unlike = check_training(found.summary, found.convention.background, train.path, label_column)
    if test is not None:
        seen = test_part.pixels, test.path, test_part.labels
        unlike += compare(found.summary, *seen, label_column)
    return Dataset(
        train=train_part,
        test=test_part,
        name=_NAMES.get(kind) or name_dataset(train.path),
        kind=kind,
        files=tables,
        decisions=tuple(decisions),
        warnings=(*boxes, *found.warnings, *unlike),
        summary=found.summary,
        convention=found.convention,
    )


def find_source(path: str) -> str:
    """Return what `read_dataset` reads a recorded train file from: its source, or the path."""
    if path.startswith(sample.PATH):
        return "sample"
    return "official" if Path(path).name == official.TRAIN_IMAGES else path


def _read_known(
    data: str, store_dir: Path, say: Callable[[str], None], decisions: list[str]
) -> tuple[Table, Table | None, str]:
    """Return the train and test images of `auto`, `official` or `sample`, and their kind."""
    try:
        if data != "sample":
            tables = official.read_official(store_dir.parent / "downloads", store_dir, say)
            decisions.append("data: the official Fashion-MNIST files")
            return (*tables, "official")
    except DownloadError as error:
        if data == "official":
            raise
        say(f"{error}; the built-in sample is used instead")
        why = f"as there are no CSVs and no network ({error})"
        decisions.append(f"data: the built-in sample, {why}")
    return (*sample.read_sample(), "sample")


def _read_files(
    data: str, labels: Path | None, read: _Read, decisions: list[str], *, wants_test: bool
) -> tuple[Table, Table | None]:
    """Read the train file and, if wanted, the labelled test file beside it."""
    path = DATA_DIR if data == "auto" else expand_path(data, several=True)
    paths = find_tables(path, in_folders=data != "auto")
    if paths is None:
        raise UsageError(
            f'{data}: expected a file with "train" in its name (CSV, IDX, .npy, .npz, .parquet or '
            ".zip) or a folder of pictures for each class in it, found neither. hint: name the "
            "file itself, or the folder above those of the classes, with --data PATH"
        )
    train_path, test_path = paths
    if path != train_path:
        decisions.append(f"data: {train_path}, the train part of {path}")
    train = read(train_path, labels=labels)
    if not wants_test or test_path is None or train.label_index is None:
        return train, None
    try:
        test = read(test_path, labels=labels and find_test_beside(labels))
    except DataError as error:
        if {problem.code for problem in error.problems} != {"E026"}:
            raise
    else:
        if test.label_index is not None:
            decisions.append(f"test set: {test_path.name}, beside the train file")
            return train, test
    decisions.append(f"{test_path.name}, beside the train file, has no labels: not used")
    return train, None


def _read_named_test(test_data: str, labels: Path | None, read: _Read, train: Table) -> Table:
    path = pick_table(expand_path(test_data, several=True))
    check_paths(train.path, path)
    if train.label_index is None:
        raise UsageError(
            f"--test-data {test_data}: expected labelled training images, found {train.path} "
            "without labels; read each file by itself"
        )
    return read(path, labels=labels and find_test_beside(labels))


def _set_aside(pixels: Pixels, decisions: list[str]) -> tuple[Pixels, Pixels]:
    """Divide one file's images into train and test."""
    hint = "give a labelled test file with --test-data"
    kept, held = plan_holdout(
        pixels.labels, fraction=TEST_FRACTION, seed=TEST_SEED, part="test", hint=hint
    )
    decisions.append(
        f"no labelled test file: {len(held)} of {len(pixels.labels)} rows ({TEST_FRACTION:.0%}, "
        "stratified, the same in every run) are set aside as the test set"
    )
    return pixels.pick(kept), pixels.pick(held)
