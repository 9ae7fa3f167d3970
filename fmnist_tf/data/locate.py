"""Which file of a folder or archive trains, which tests, and which holds the labels."""

from __future__ import annotations

import errno
import glob
import os
import re
import shlex
import zipfile
from pathlib import Path

from fmnist_tf.data.files import is_there, list_files, split_member
from fmnist_tf.data.folders import list_folders
from fmnist_tf.errors import UsageError, file_error

_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_KAGGLE = "fashion-mnist_train.csv"  # goes before all others
_FORMS = [
    re.compile(rf"{pattern}(\.(gz|bz2|xz|zip))?$", re.IGNORECASE)
    for pattern in (r"\.[ct]sv", r"[-_.]?images?[-._]idx3[-._]ubyte", r"(-\d+-of-\d+)?\.parquet",
                    r"\.arff", r"\.npz", r"\.npy", r"\.zip")
]  # fmt: skip
"""How the names of tables end. Of several forms in one place, the first counts."""
_LAST_TRAIN = re.compile("train(?!.*train)", re.IGNORECASE)
_TEST = re.compile("test|t10k", re.IGNORECASE)
_LABELS = re.compile(r"labels?(?![a-z])|(?<![a-z])y(?=[-_.])", re.IGNORECASE)


def find_tables(path: Path, *, in_folders: bool = True) -> tuple[Path, Path | None] | None:
    """Return the train file or folder that a path means, if any, and the test file beside it.

    In a folder or zip archive Kaggle's Fashion-MNIST name goes first; else the one file with
    "train" in its name; else the one file without "train" or "test" in its name; in an archive also
    its only file of images. Files in deeper folders of an archive count only if there are none
    above. `in_folders`: find also folders of pictures, and archives that hold something else.

    UsageError: several files could be meant, or a file cannot be read.
    """
    train = _choose(path) if os.path.isdir(path) else path  # False for a name that is too long
    if train is None:
        return _find_class_folders(path) if in_folders else None
    test = find_test_beside(train)
    if not (os.path.isfile(train) and zipfile.is_zipfile(train)):
        return train, test
    if (inner := _choose(train)) is None:
        return (train, test) if in_folders else None
    return inner, find_test_beside(inner) or (test and _choose(test))


def find_test_beside(path: Path) -> Path | None:
    """Return the existing file named like this one with "test" (or "t10k") for its last "train".

    Case and ".gz" may differ; so may the number of images, as in `csvTrainImages 13440x784.csv`.
    """
    if not _LAST_TRAIN.search(path.name):
        return None
    file, member = split_member(path)
    files = [f for f in list_files(file if member else path.parent) if f.parent == path.parent]
    for word in ("test", "t10k"):
        exact = re.escape(_LAST_TRAIN.sub(word, path.name.removesuffix(".gz"))) + r"(\.gz)?"
        for pattern in (exact, re.sub(r"\d+(?=x\d)", r"\\d+", exact)):
            found = [f for f in files if re.fullmatch(pattern, f.name, re.IGNORECASE)]
            if len(found) == 1 or (found and pattern == exact):
                return found[0]
    return None


def find_labels_beside(path: Path) -> Path | None:
    """Return the existing file of labels that belongs to a file of arrays, by their names."""
    for pattern, word in ((r"images?", "labels"), (r"(?<![a-zA-Z])[xX](?=[-_.])", "y")):
        name = re.sub(pattern, word, path.name).replace("idx3", "idx1")
        if name != path.name and is_there(path.with_name(name)):
            return path.with_name(name)
    return None


def pick_table(path: Path) -> Path:
    """Return the file to classify that a path means (of two the test file), or UsageError."""
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


def _find_class_folders(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the folders that hold a folder for each class of train and of test images, if any."""
    inside = {path.name.lower(): path for path in list_folders(folder)}
    train, test = (
        next((inside[name] for name in names if name in inside), None)
        for names in (_TRAIN_FOLDERS, _TEST_FOLDERS)
    )
    if train and list_folders(train):  # and it is no class called "train"
        return train, test
    return (folder, None) if inside else None


def _choose(place: Path) -> Path | None:
    """Return the train file of a folder or archive, or the only file of images of an archive."""
    tables = {
        path: form
        for path in list_files(place)
        for form, pattern in reversed(list(enumerate(_FORMS)))
        if pattern.search(path.name)
    }
    tests = {find_test_beside(path) for path in tables}
    ranks: dict[Path, tuple[int, ...]] = {}  # the lowest is taken
    for path, form in tables.items():
        name = path.name
        is_train = _LAST_TRAIN.search(name) and path not in tests  # as `strain_test.csv` is
        is_test = not is_train and _TEST.search(name)
        if not is_test or place.is_file():
            is_labels = bool(_LABELS.search(name))
            is_other = name != _KAGGLE, name != f"{_KAGGLE}.gz", not is_train
            ranks[path] = bool(is_test), form, len(path.parts), is_labels, *is_other
    found = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise UsageError(
            f"{place}: {len(found)} files could be the train file ({names}{more}); "
            f"expected one. hint: name it, such as --data {shlex.quote(str(found[0]))}"
        )
    return found[0] if found else None


def expand_path(pattern: str | os.PathLike[str]) -> Path:
    """Return the one file or folder that a path or shell pattern means; an exact name wins.

    A path without `*`, `?` or `[` is returned as it is, whether it exists or not. E043: a pattern
    matches nothing or several files, or symbolic links form a loop.
    """
    text = os.fspath(pattern)
    try:
        os.stat(text)
        return Path(text)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise file_error("E043", text, "a loop of symbolic links", "a CSV of images") from None
    if not glob.has_magic(text):
        return Path(text)
    paths = [] if "\0" in text else sorted(glob.glob(text))
    if len(paths) != 1:
        shown = ", ".join(paths[:3])
        found = f"the pattern matches {len(paths)} files: {shown}" if paths else "no file matches"
        raise file_error("E043", text, found, "a pattern of one file", "check folder and pattern")
    return Path(paths[0])


def check_paths(train_path: str | os.PathLike[str], test_path: str | os.PathLike[str]) -> None:
    """Refuse one file given twice, under whatever names (E042)."""
    try:
        same = Path(train_path) == Path(test_path) or os.path.samefile(train_path, test_path)
    except (OSError, ValueError):
        return  # `read_table` says what is wrong
    if same:
        found = f"the same file as the training data {os.fspath(train_path)}"
        hint = "accuracy on the training images says nothing about new ones: give other images"
        raise file_error("E042", os.fspath(test_path), found, "another file", hint)
