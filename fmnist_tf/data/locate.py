"""Which file of a folder or archive trains, which tests, and which holds the labels."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fmnist_tf.data.archives import find_kind, is_there, list_beside, list_files
from fmnist_tf.data.folders import find_class_folders
from fmnist_tf.errors import UsageError

TRAIN_CSV = "fashion-mnist_train.csv"
"""Kaggle's name, which goes before all others."""

_PACKED = r"(\.(gz|bz2|xz|zip))?$"
_FORMS = [
    re.compile(pattern + _PACKED, re.IGNORECASE)
    for pattern in (r"\.[ct]sv", r"[-_.]?images?[-._]idx3[-._]ubyte", r"(-\d+-of-\d+)?\.parquet",
                    r"\.arff", r"\.npz", r"\.npy", r"\.zip")
]  # fmt: skip
"""How the names of tables end. Of several forms in one place, the first counts."""
_LAST_TRAIN = re.compile("train(?!.*train)", re.IGNORECASE)
_LABELS = re.compile(r"labels?(?![a-z])|(?<![a-z])y(?=[-_.])", re.IGNORECASE)
_ARCHIVES = ("zip", "npz")


def find_tables(path: Path, *, in_folders: bool = True) -> tuple[Path, Path | None] | None:
    """Return the train file that a path means, and the test file beside it, if any.

    In a folder or zip archive Kaggle's Fashion-MNIST name goes first; else the one file with
    "train" in its name; else the one file without "train" or "test" in its name. Files in deeper
    folders of an archive are looked at only if there are none above; sub-folders of a folder only
    if each holds the pictures of a class.

    Args:
        path: a file, a folder, an archive, or a path into one.
        in_folders: also find folders of pictures, and archives that hold something else.

    Returns:
        Paths of files, of folders with a folder of pictures for each class, or into an archive;
        None if a folder or archive has nothing that fits.

    Raises:
        UsageError: several files could be meant.
    """
    if path.is_dir():
        train = _choose(path, list_files(path))
        if train is None:
            return find_class_folders(path) if in_folders else None
    else:
        train = path
    test = find_test_beside(train)
    if find_kind(train).form not in _ARCHIVES:
        return train, test
    inner = _choose_member(train)
    if inner == train and not in_folders:
        return None
    inner_test = find_test_beside(inner)
    return inner, inner_test if inner_test or not test else _choose_member(test)


def _choose_member(archive: Path) -> Path:
    """Return the train file of an archive, else its only table, else the archive itself."""
    files = list_files(archive)
    if train := _choose(archive, files):
        return train
    tables = [path for path in files if any(form.search(path.name) for form in _FORMS)]
    images = [path for path in tables if not _LABELS.search(path.name)] or tables
    return images[0] if len(images) == 1 else archive


def find_test_beside(path: Path) -> Path | None:
    """Return the existing file named like this one with "test" (or "t10k") for its last "train"."""

    def in_its_case(word: re.Match[str]) -> str:
        return "TEST" if word[0].isupper() else "Test" if word[0][0].isupper() else "test"

    name, n_replaced = _LAST_TRAIN.subn(in_its_case, path.name)
    for changed in (name, _LAST_TRAIN.sub("t10k", path.name)):
        for candidate in (changed, changed.removesuffix(".gz"), changed + ".gz"):
            if n_replaced and is_there(beside := path.with_name(candidate)):
                return beside
    # `csvTrainImages 13440x784.csv`: the number of images is another one.
    pattern = re.sub(r"\d+(?=x\d)", r"\\d+", re.escape(name))
    if not n_replaced or pattern == re.escape(name):
        return None
    found = [beside for beside in list_beside(path) if re.fullmatch(pattern, beside.name)]
    return found[0] if len(found) == 1 else None


def pick_table(path: Path) -> Path:
    """Return the file to classify that a path means: of a train and a test file the latter.

    Raises:
        UsageError: nothing or several files could be meant.
    """
    train, test = find_tables(path) or (None, None)
    if train is None:
        raise UsageError(f"{path}: expected a file of images in it, found none")
    return train if test is None or path == train else test


def name_dataset(train_path: str) -> str:
    """Return "sign_mnist" for `sign_mnist_train.csv.gz`; "train" for `train.csv`."""
    path, stem = Path(train_path), Path(train_path).name
    for form in _FORMS:
        stem = form.sub("", stem)
    name = _LAST_TRAIN.sub("", stem).strip("_-. ")
    if name in ("", "x"):  # `train-images-idx3-ubyte`, `mnist.npz/x_train.npy`, `DIR/train`
        return stem if _FORMS[0].search(path.name) else path.parent.stem or stem
    return name


def find_labels_beside(path: Path) -> Path | None:
    """Return the existing file of labels that belongs to a file of arrays, by their names."""
    for pattern, word in ((r"images?", "labels"), (r"(?<![a-zA-Z])[xX](?=[-_.])", "y")):
        name = re.sub(pattern, word, path.name).replace("idx3", "idx1")
        if name != path.name and is_there(path.with_name(name)):
            return path.with_name(name)
    return None


def _choose(folder: Path, files: list[Path]) -> Path | None:
    """Return the train file of a folder or archive."""
    for form in _FORMS:
        fitting = [path for path in files if form.search(path.name)]
        depth = min((len(path.parts) for path in fitting), default=0)
        fitting = [path for path in fitting if len(path.parts) == depth]
        fitting = [path for path in fitting if not _LABELS.search(path.name)] or fitting
        trains = [path for path in fitting if _LAST_TRAIN.search(path.name)]
        tests = {find_test_beside(path) for path in trains}  # `strain_test.csv` is not a train file
        candidates = (
            [path for path in fitting if path.name == TRAIN_CSV]
            or [path for path in fitting if path.name == TRAIN_CSV + ".gz"]
            or [path for path in trains if path not in tests]
            or [path for path in fitting if not re.search("test|t10k", path.name, re.IGNORECASE)]
        )
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates[:8])
            more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
            raise UsageError(
                f"{folder}: {len(candidates)} files could be the train file ({names}{more}); "
                f"expected one. hint: name it, such as --data {shlex.quote(str(candidates[0]))}"
            )
        if candidates:
            return candidates[0]
    return None
