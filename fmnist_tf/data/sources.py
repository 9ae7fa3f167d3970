"""Which images train and which test: `--data auto|sample|PATH` -> one `Dataset`.

In: what a person asked for and the folders to look in. Out: labelled uint8 pixels, the label map,
and every decision and warning in words. This module must not know models, splits into train and
val, or who prints the words.

Where a source was named nothing else is ever used. `auto` takes the first of: the CSVs in the data
folder; the official files (Keras' cache, else a download), converted to CSVs there; the built-in
sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmnist_tf.cli.terminal import boxed
from fmnist_tf.data import official
from fmnist_tf.data.csv.table import (
    CsvTable,
    check_label_map,
    check_paths,
    expand_path,
    find_pixel_warnings,
    read_csv,
)
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.data.sample import GARMENTS, draw_sample
from fmnist_tf.data.splits import plan_holdout
from fmnist_tf.errors import DataError, UsageError, printable
from fmnist_tf.system.files import file_digest, write_atomically

DATA_DIR = Path("data")
"""The folder of CSVs that `--data auto` looks in, below the current one."""
# A train file that comes without a test file gives up this share of its rows; the seed is fixed so
# that every run of a file is tested on the same rows, whatever its own seed.
TEST_FRACTION, TEST_SEED = 0.15, 0
SAMPLE_SEED = 0
SAMPLE_FOLDER = "sample"  # in the data folder; a later `auto` does not look into it
SAMPLE_NAME = f"sample-seed{SAMPLE_SEED}_{{}}.csv"  # by which it is known wherever it lies
_NO_LABEL_COLUMN = "E026"
_CSV_NAME = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
_LAST_TRAIN = re.compile("train(?!.*train)", re.IGNORECASE)


@dataclass(frozen=True)
class Pixels:
    """Labelled images.

    Attributes:
        pixels: (N, 784) uint8, 0 = background, row by row.
        labels: (N,) int64 in 0..K-1.
        class_names: K names, by label.
        lines: (N,) int64, 1-based line of each image in its file.
    """

    pixels: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    lines: np.ndarray


@dataclass(frozen=True)
class SourceFile:
    """A file the images came from: its path, the SHA-256 of its bytes, and its number of rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Dataset:
    """What one run trains and is tested on.

    Attributes:
        train: the images that train and validate.
        test: the images that are read once, at the end; same classes as `train`.
        name: "fashion-mnist", "sample", or the train file's name without "train" and ".csv".
        kind: "csv", "official" (the CSVs made of the four official files) or "sample".
        files: the train file and, where there is one, the test file.
        decisions: what was decided on the way, a sentence each.
        warnings: what a person should know before believing a figure; the sample's is a box.
    """

    train: Pixels
    test: Pixels
    name: str
    kind: str
    files: tuple[SourceFile, ...]
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]


def read_dataset(
    data: str,
    *,
    store_dir: Path,
    say: Callable[[str], None],
    test_data: str | None = None,
    label_column: str | None = None,
    data_dir: Path = DATA_DIR,
    to_train: bool = True,
) -> Dataset:
    """Find, read and check the images of `--data`.

    Args:
        data: "auto", "sample", or the path of a CSV or of a folder that holds one.
        store_dir: where parsed files and downloads are kept.
        say: hears at once what takes time or fell through; everything else waits in the result.
        test_data: a labelled CSV that replaces whatever test file would be used, or None.
        label_column: name of the label's column; None finds it.
        data_dir: the folder that `auto` looks in, and where it and `sample` leave CSVs.
        to_train: whether a network is to learn from them. Else labels, a second class and a test
            file are optional, and nothing is set aside: all images without labels are of one class,
            and without a test file `test` is empty.

    Raises:
        UsageError: nothing or too much fits what was asked for, or a file is bad (`DataError`).
        OSError: the disk does not take the CSVs of `auto` or `sample`.
    """
    decisions: list[str] = []
    train_path, test_path = _find_files(data, data_dir, store_dir, decisions, say)
    if test_data is not None:
        test_path = expand_path(test_data)
        check_paths(train_path, test_path)
    train = read_csv(train_path, store_dir, label_column=label_column)
    decisions += [f"{train_path.name}: {decision}" for decision in train.decisions]
    if not to_train and train.label_index is None:
        if test_data is not None:
            raise UsageError(
                f"--test-data {printable(test_data, 200)}: expected beside labelled images, found "
                f"{printable(str(train_path), 200)} without labels; look at each by itself"
            )
        test_path = None
    test = _read_test(test_path, test_data is not None, store_dir, label_column, decisions)
    is_divided = to_train or test is not None
    if is_divided:
        check_label_map(train, test)

    kind = _kind(train, train_path)
    class_names = train.label_values
    has_ten = class_names == tuple(map(str, range(10)))
    if has_ten and (kind != "csv" or "fashion" in train_path.name.lower()):
        class_names = GARMENTS
        decisions.append("classes 0 to 9 are named as in Fashion-MNIST, T-shirt/top to Ankle boot")
    if is_divided:
        train_pixels, test_pixels = _labelled(train, test, class_names, decisions)
    else:
        train_pixels, test_pixels = _unsplit(train, class_names)
    warnings = list(find_pixel_warnings(train, test))
    if kind == "sample":
        warnings.insert(0, _sample_box(data_dir))
    tables = [table for table in (train, test) if table is not None]
    return Dataset(
        train=train_pixels,
        test=test_pixels,
        name="sample" if kind == "sample" else _name(train_path),
        kind=kind,
        files=tuple(SourceFile(table.path, table.sha256, len(table.pixels)) for table in tables),
        decisions=tuple(decisions),
        warnings=tuple(warnings),
    )


def find_csvs(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the train CSV of a folder and the test CSV beside it, if any; None if there is none.

    Kaggle's Fashion-MNIST names go first; else the one CSV with "train" in its name; else the one
    CSV whose name speaks neither of train nor of test. Sub-folders are not looked into.

    Raises:
        UsageError: several files could be meant.
    """
    files = sorted(path for path in folder.glob("[!.]*") if _CSV_NAME.search(path.name))
    files = [path for path in files if path.is_file()]
    named = {path.name: path for path in files}
    for name in (official.TRAIN_CSV, official.TRAIN_CSV + ".gz"):
        if name in named:
            return named[name], _test_beside(named[name])
    candidates = [path for path in files if _LAST_TRAIN.search(path.name)]
    tests = {_test_beside(path) for path in candidates}  # `strain_test.csv` is no train file
    candidates = [path for path in candidates if path not in tests]
    if not candidates:
        candidates = [path for path in files if "test" not in path.name.lower()]
    if len(candidates) > 1:
        names = ", ".join(printable(path.name) for path in candidates[:8])
        more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
        raise UsageError(
            f"{printable(str(folder), 200)}: {len(candidates)} files could be the train file "
            f"({names}{more}); expected one. hint: name it with --data PATH"
        )
    return (candidates[0], _test_beside(candidates[0])) if candidates else None


def _find_files(
    data: str,
    data_dir: Path,
    store_dir: Path,
    decisions: list[str],
    say: Callable[[str], None],
) -> tuple[Path, Path | None]:
    """Return the paths of the train file and of the test file found with it."""
    if data == "sample":
        return _write_sample(data_dir)
    if data != "auto":
        path = expand_path(data)
        if not path.is_dir():
            return path, _test_beside(path)
        if found := find_csvs(path):
            return found
        raise UsageError(
            f"{printable(data, 200)}: a folder without a train CSV; expected a .csv or .csv.gz "
            'file with "train" in its name. hint: name the file itself with --data PATH'
        )
    if found := find_csvs(data_dir):
        decisions.append(f"data: {found[0]}, the train file of the data folder")
        return found
    _refuse_lone_test(data_dir / official.TEST_CSV)
    try:
        files = official.find_official_files(store_dir.parent / "downloads", say)
    except DownloadError as error:
        say(f"{error}; the built-in sample is used instead")
        decisions.append(f"data: the built-in sample, for want of CSVs and of a network ({error})")
        return _write_sample(data_dir)
    say(f"writing the official Fashion-MNIST files as CSVs to {data_dir}")
    decisions.append("data: the official Fashion-MNIST files, written as CSVs")
    return official.write_official_csvs(files, data_dir)


def _refuse_lone_test(path: Path) -> None:
    """Keep a person's own test file, whose train file is missing, from being overwritten."""
    if path.is_file() and file_digest(path) != official.CSV_SHA256[official.TEST_CSV]:
        raise UsageError(
            f"{printable(str(path), 200)}: a test file alone; expected {official.TRAIN_CSV} beside "
            "it. hint: add that file, move this one away, or use --data PATH or --data sample"
        )


def _test_beside(train_path: Path) -> Path | None:
    """Return the existing file named like the train file with "test" for its last "train"."""

    def in_its_case(word: re.Match[str]) -> str:
        return "TEST" if word[0].isupper() else "Test" if word[0][0].isupper() else "test"

    name, n_replaced = _LAST_TRAIN.subn(in_its_case, train_path.name)
    for candidate in (name, name.removesuffix(".gz"), name + ".gz"):
        if n_replaced and (path := train_path.with_name(candidate)).is_file():
            return path
    return None


def _read_test(
    path: Path | None,
    is_named: bool,
    store_dir: Path,
    label_column: str | None,
    decisions: list[str],
) -> CsvTable | None:
    """Read the test file; one that was not named and turns out to have no labels is passed over."""
    if path is None:
        return None
    table = None
    try:
        table = read_csv(path, store_dir, label_column=label_column)
    except DataError as error:
        if is_named or {problem.code for problem in error.problems} != {_NO_LABEL_COLUMN}:
            raise
    if table is None or (table.label_index is None and not is_named):
        decisions.append(f"{path.name}, beside the train file, has no labels and tests nothing")
        return None
    if not is_named:
        decisions.append(f"test set: {path.name}, beside the train file")
    decisions += [f"{path.name}: {decision}" for decision in table.decisions]
    return table


def _write_sample(data_dir: Path) -> tuple[Path, Path]:
    """Draw the built-in sample and return its train and test CSV, rewritten where they differ."""
    drawn = draw_sample(seed=SAMPLE_SEED)
    paths = []
    for part, pixels, labels in (("train", *drawn[:2]), ("test", *drawn[2:])):
        path = data_dir / SAMPLE_FOLDER / SAMPLE_NAME.format(part)
        text = b"".join(official.csv_pieces(pixels, labels))
        if not path.is_file() or path.read_bytes() != text:
            with write_atomically(path) as file:
                file.write(text)
        paths.append(path)
    return paths[0], paths[1]


def _labelled(
    train: CsvTable, test: CsvTable | None, class_names: tuple[str, ...], decisions: list[str]
) -> tuple[Pixels, Pixels]:
    """Return the train and the test images under the train file's label map."""
    labels = np.asarray(train.label_index, np.int64)
    if test is None:
        kept, held = plan_holdout(
            labels,
            fraction=TEST_FRACTION,
            seed=TEST_SEED,
            part="test",
            hint="give a labelled test file with --test-data",
        )
        decisions.append(
            f"no labelled test file: {len(held)} of {len(labels)} rows ({TEST_FRACTION:.0%}, "
            "stratified, the same in every run) are set aside as the test set"
        )
        return (
            Pixels(train.pixels[kept], labels[kept], class_names, train.first_line + kept),
            Pixels(train.pixels[held], labels[held], class_names, train.first_line + held),
        )
    position = {value: index for index, value in enumerate(train.label_values)}
    test_map = np.array([position[value] for value in test.label_values], np.int64)
    return (
        Pixels(train.pixels, labels, class_names, train.first_line + np.arange(len(labels))),
        Pixels(
            test.pixels,
            test_map[np.asarray(test.label_index)],
            class_names,
            test.first_line + np.arange(len(test.pixels)),
        ),
    )


def _unsplit(table: CsvTable, class_names: tuple[str, ...]) -> tuple[Pixels, Pixels]:
    """Return all images of one file, and no test images."""
    n, none = len(table.pixels), np.zeros(0, np.int64)
    labels = np.zeros(n, np.int64)
    if table.label_index is not None:
        labels = np.asarray(table.label_index, np.int64)
    names = class_names or ("unlabelled",)
    return (
        Pixels(table.pixels, labels, names, table.first_line + np.arange(n)),
        Pixels(table.pixels[:0], none, names, none),
    )


def _kind(train: CsvTable, train_path: Path) -> str:
    if train_path.resolve().name == SAMPLE_NAME.format("train"):
        return "sample"
    return "official" if train.sha256 == official.CSV_SHA256[official.TRAIN_CSV] else "csv"


def _name(train_path: Path) -> str:
    """Return "sign_mnist" for `sign_mnist_train.csv.gz`; "train" for `train.csv`."""
    stem = _CSV_NAME.sub("", train_path.name)
    return _LAST_TRAIN.sub("", stem).strip("_-. ") or stem


def _sample_box(data_dir: Path) -> str:
    """Return the sample's warning, in a box."""
    paragraphs = (
        "WARNING: THIS IS THE BUILT-IN SAMPLE, not real data.",
        "Its garments are drawn by code. An accuracy on it shows that everything runs; it says "
        "nothing about real garments.",
        f"For real data put {official.TRAIN_CSV} and {official.TEST_CSV} into "
        f"{printable(str(data_dir), 200)} (where from: data/README.md), or run once with "
        "a network and --data auto: the official files are then downloaded.",
    )
    return boxed(*paragraphs)
