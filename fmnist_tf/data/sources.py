"""Which images train and which test: `--data auto|sample|official|PATH` -> one `Dataset`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmnist_tf.data import official, sample
from fmnist_tf.data.csv.table import check_paths, expand_path, read_csv
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.data.images import Pixels, Table
from fmnist_tf.data.labels import FASHION_MNIST, map_labels, require_labels
from fmnist_tf.data.splits import TEST_FRACTION, TEST_SEED, plan_holdout
from fmnist_tf.data.summary import DataSummary, inspect
from fmnist_tf.errors import DataError, UsageError

DATA_DIR = Path("data")
"""The folder of CSVs that `--data auto` looks in, below the current one."""
TRAIN_CSV = "fashion-mnist_train.csv"
"""Kaggle's name, which `--data auto` prefers."""
SAMPLE_WARNING = (
    "WARNING: THIS IS THE BUILT-IN SAMPLE, not Fashion-MNIST.",
    "It holds 1,797 real handwritten digits, which are easy. An accuracy on it shows that "
    "everything runs; it says nothing about Fashion-MNIST.",
    "For Fashion-MNIST put its CSVs into data/ (where from: data/README.md), or run once with a "
    "network and --data auto: the official files are then downloaded.",
)

_NO_LABEL_COLUMN = "E026"
_CSV_NAME = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
_LAST_TRAIN = re.compile("train(?!.*train)", re.IGNORECASE)
_KNOWN = {official.DIGESTS: "official", sample.DIGESTS: "sample"}


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
        test: the images that are classified once, at the end; same classes as `train`.
        name: "fashion-mnist", "sample", or the train file's name without "train" and ".csv".
        kind: "csv", "official" or "sample". A CSV of the official images or of the sample, in
            their order, is of the same kind as these.
        files: the train file and, if there is one, the test file; of the official files those of
            the images.
        decisions: what was decided, a sentence each.
        warnings: what limits the meaning of any figure. One that begins with "WARNING" is to be
            shown in a box; its lines are paragraphs.
        summary: for the report.
        background: median grey level, 0..255, at the border of the training images.
        content_side: median longer side, 1..28, of what the training images show.
    """

    train: Pixels
    test: Pixels
    name: str
    kind: str
    files: tuple[SourceFile, ...]
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: DataSummary
    background: int
    content_side: int


@dataclass
class _Reader:
    """The arguments of `read_dataset` that its steps share, and the decisions so far."""

    store_dir: Path
    label_column: str | None
    data_dir: Path
    say: Callable[[str], None]
    decisions: list[str] = field(default_factory=list)

    def read_csv(self, path: Path) -> Table:
        table = read_csv(path, self.store_dir, label_column=self.label_column)
        self.decisions += [f"{path.name}: {decision}" for decision in table.decisions]
        return table

    def read_official(self) -> tuple[Table, Table]:
        return official.read_official(self.store_dir.parent / "downloads", self.store_dir, self.say)


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

    A named source never falls back to another one. `auto` takes the first of: the CSVs in the data
    folder; the official files (Keras' cache, else a download); the built-in sample.

    Args:
        data: "auto", "sample", "official", or the path of a CSV or of a folder that holds one.
        store_dir: where parsed files are kept; downloads are kept beside it.
        say: takes a line before what takes time, and when a source fails.
        test_data: a labelled CSV that replaces any other test file, or None.
        label_column: name of the label's column in CSVs; None finds it.
        data_dir: the folder that `auto` looks in.
        to_train: whether a network is to be trained on them. Otherwise labels, a second class and
            a test file are optional: without labels all images are of one class, and without a test
            file `test` is empty.

    Raises:
        UsageError: nothing or too much fits what was asked for, or a file is bad (`DataError`).
        DownloadError: the official files were named and cannot be downloaded.
        OSError: the disk is full or fails.
    """
    reader = _Reader(store_dir, label_column, data_dir, say)
    train, test, kind = _find_tables(data, reader, wants_test=test_data is None)
    if test_data is not None:
        test = _read_named_test(test_data, train, reader)
    kind = kind or _KNOWN.get((train.digest, train.label_digest), "csv")
    decisions, class_names = reader.decisions, train.label_values
    has_ten = class_names == tuple(map(str, range(10)))
    if has_ten and (kind == "official" or "fashion" in Path(train.path).name.lower()):
        class_names = FASHION_MNIST
        decisions.append("classes 0 to 9 are named as in Fashion-MNIST, T-shirt/top to Ankle boot")
    if to_train:
        require_labels(train, minimum=2)
    if train.label_index is None or (test is None and not to_train):
        train_part, test_part = _without_test(train, class_names)
    elif test is None:
        train_part, test_part = _set_aside(train, class_names, decisions)
    else:
        train_part = train.to_pixels(map_labels(train, class_names), class_names)
        test_part = test.to_pixels(map_labels(test, class_names, train.path), class_names)
    found = inspect(train_part, test_part, store_dir)
    boxes = ("\n".join(SAMPLE_WARNING),) if kind == "sample" else ()
    tables = [train] if test is None else [train, test]
    return Dataset(
        train=train_part,
        test=test_part,
        name={"sample": "sample", "official": "fashion-mnist"}.get(kind) or _name(train.path),
        kind=kind,
        files=tuple(SourceFile(table.path, table.sha256, len(table.pixels)) for table in tables),
        decisions=tuple(decisions),
        warnings=(*boxes, *found.warnings),
        summary=found.summary,
        background=found.background,
        content_side=found.content_side,
    )


def find_source(path: str) -> str:
    """Return what `read_dataset` reads a recorded train file from: its source, or the path."""
    if path.startswith(sample.PATH):
        return "sample"
    return "official" if Path(path).name == official.TRAIN_IMAGES else path


def find_csvs(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the train CSV of a folder and the test CSV beside it, if any; None if there is none.

    Kaggle's Fashion-MNIST name goes first; else the one CSV with "train" in its name; else the one
    CSV without "train" or "test" in its name. Sub-folders are ignored.

    Raises:
        UsageError: several files could be meant.
    """
    files = sorted(path for path in folder.glob("[!.]*") if _CSV_NAME.search(path.name))
    files = [path for path in files if path.is_file()]
    named = {path.name: path for path in files}
    for name in (TRAIN_CSV, TRAIN_CSV + ".gz"):
        if name in named:
            return named[name], _test_beside(named[name])
    candidates = [path for path in files if _LAST_TRAIN.search(path.name)]
    tests = {_test_beside(path) for path in candidates}  # `strain_test.csv` is not a train file
    candidates = [path for path in candidates if path not in tests]
    if not candidates:
        candidates = [path for path in files if "test" not in path.name.lower()]
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates[:8])
        more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
        raise UsageError(
            f"{folder}: {len(candidates)} files could be the train file ({names}{more}); expected "
            "one. hint: name it with --data PATH"
        )
    return (candidates[0], _test_beside(candidates[0])) if candidates else None


def _find_tables(
    data: str, reader: _Reader, *, wants_test: bool
) -> tuple[Table, Table | None, str | None]:
    """Return the train table, the test table found with it, and the kind if it is certain."""
    if data == "auto":
        paths = find_csvs(reader.data_dir)
        if paths is None:
            return _read_official_or_sample(reader)
        reader.decisions.append(f"data: {paths[0]}, the train file of the data folder")
    elif data == "sample":
        return (*sample.read_sample(), "sample")
    elif data == "official":
        return (*reader.read_official(), "official")
    else:
        paths = _find_named(data)
    train = reader.read_csv(paths[0])
    wants_test &= train.label_index is not None
    return train, _read_beside(paths[1], reader) if wants_test else None, None


def _read_official_or_sample(reader: _Reader) -> tuple[Table, Table, str]:
    try:
        tables = reader.read_official()
    except DownloadError as error:
        reader.say(f"{error}; the built-in sample is used instead")
        reader.decisions.append(
            f"data: the built-in sample, as there are no CSVs and no network ({error})"
        )
        return (*sample.read_sample(), "sample")
    reader.decisions.append("data: the official Fashion-MNIST files")
    return (*tables, "official")


def _read_named_test(test_data: str, train: Table, reader: _Reader) -> Table:
    path = expand_path(test_data)
    check_paths(train.path, path)
    if train.label_index is None:
        raise UsageError(
            f"--test-data {test_data}: expected labelled training images, found {train.path} "
            "without labels; read each file by itself"
        )
    test = reader.read_csv(path)
    require_labels(test)
    return test


def _find_named(data: str) -> tuple[Path, Path | None]:
    path = expand_path(data)
    if not path.is_dir():
        return path, _test_beside(path)
    if found := find_csvs(path):
        return found
    raise UsageError(
        f"{data}: a folder without a train CSV; expected a .csv or .csv.gz file with "
        '"train" in its name. hint: name the file itself with --data PATH'
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


def _read_beside(path: Path | None, reader: _Reader) -> Table | None:
    """Read the test file that was found beside the train file; None if it has no labels."""
    if path is None:
        return None
    n_decisions, table = len(reader.decisions), None
    try:
        table = reader.read_csv(path)
    except DataError as error:
        if {problem.code for problem in error.problems} != {_NO_LABEL_COLUMN}:
            raise
    if table is None or table.label_index is None:
        del reader.decisions[n_decisions:]
        reader.decisions.append(f"{path.name}, beside the train file, has no labels: not used")
        return None
    reader.decisions.insert(n_decisions, f"test set: {path.name}, beside the train file")
    return table


def _set_aside(
    table: Table, class_names: tuple[str, ...], decisions: list[str]
) -> tuple[Pixels, Pixels]:
    """Divide one file's images into train and test."""
    pixels = table.to_pixels(map_labels(table, class_names), class_names)
    n_rows = len(pixels.labels)
    kept, held = plan_holdout(
        pixels.labels,
        fraction=TEST_FRACTION,
        seed=TEST_SEED,
        part="test",
        hint="give a labelled test file with --test-data",
    )
    decisions.append(
        f"no labelled test file: {len(held)} of {n_rows} rows ({TEST_FRACTION:.0%}, stratified, "
        "the same in every run) are set aside as the test set"
    )
    return pixels.pick(kept), pixels.pick(held)


def _without_test(table: Table, class_names: tuple[str, ...]) -> tuple[Pixels, Pixels]:
    """Return all images of one file, and no test images."""
    if table.label_index is None:
        pixels = table.to_pixels(np.zeros(len(table.pixels), np.int64), ("unlabelled",))
    else:
        pixels = table.to_pixels(map_labels(table, class_names), class_names)
    return pixels, pixels.pick(np.zeros(0, np.int64))


def _name(train_path: str) -> str:
    """Return "sign_mnist" for `sign_mnist_train.csv.gz`; "train" for `train.csv`."""
    stem = _CSV_NAME.sub("", Path(train_path).name)
    return _LAST_TRAIN.sub("", stem).strip("_-. ") or stem
