"""Which file of a folder or archive trains, which tests, and which holds the labels."""

from __future__ import annotations

import glob
import os
import re
import shlex
import zipfile
from pathlib import Path

from fmnist_tf.data.files import is_there, list_files, split_member
from fmnist_tf.data.folders import list_folders
from fmnist_tf.errors import UsageError, did_you_mean, file_error

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
_NUMBER = re.compile(r"(?<=[-_.])\d+(?=(?:-of-\d+)?\.)")
"""The number of one of several files: `train-00002-of-00004.csv`, `part_3.csv.gz`."""
PATTERN_END = re.compile(r"[-_. ]?[*?\[{].*")
"""What makes a name a pattern of several files, and all that follows."""
_LABELS = re.compile(r"labels?(?![a-z])|(?<![a-z])y(?=[-_.])", re.IGNORECASE)


def find_tables(path: Path, *, in_folders: bool = True) -> tuple[Path, Path | None] | None:
    """Return the train file or folder that a path means, if any, and the test file beside it.

    Several files are a pattern (see `list_parts`), in a folder those that differ only in a number,
    from 0 or 1 without a gap.

    In a folder or zip archive Kaggle's Fashion-MNIST name goes first; else the one file with
    "train" in its name; else the one file without "train" or "test" in its name; in an archive also
    its only file of images. Files in deeper folders of an archive count only if there are none
    above. `in_folders`: find also folders of pictures, and archives that hold something else.

    UsageError: several files could be meant, or a file cannot be read.
    """
    train = _choose(path) if os.path.isdir(path) else path  # False for a name that is too long
    if train is None:
        return _find_class_folders(path) if in_folders else None
    names = [part.name for part in list_parts(train)]
    of_train = [name for name in names if _LAST_TRAIN.search(name)]
    of_test = [name for name in names if _TEST.search(name) and name not in of_train]
    if of_train and of_test:
        raise UsageError(
            f"{train}: expected files of one part, found {of_train[0]} and {of_test[0]}. hint: "
            "name the training files alone with --data, and the test files with --test-data"
        )
    test = find_test_beside(train)
    if not (os.path.isfile(train) and zipfile.is_zipfile(train)):
        return train, test
    if (inner := _choose(train)) is None:
        return (train, test) if in_folders else None
    return inner, find_test_beside(inner) or (test and _choose(test))


def find_test_beside(path: Path) -> Path | None:
    """Return the existing file named like this one with "test" (or "t10k") for its last "train".

    Case and ".gz" may differ; so may the number of images, as in `csvTrainImages 13440x784.csv`.
    Beside a pattern it is another pattern, or a file without its number.
    """
    if PATTERN_END.search(str(path)) and not _exists(str(path)):
        return _find_tests_beside(str(path))
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


def _find_tests_beside(pattern: str) -> Path | None:
    """Return the pattern or file like this pattern with "test" for the last "train" in its path."""
    for word in ("test", "t10k"):
        text = re.sub(r"\{.*?\}", "*", _LAST_TRAIN.sub(word, pattern))
        text = re.sub(r"-of-\d+", "-of-*", text)
        for each in (text, re.sub(r"[-_.]?\*(?:-of-\*)?(?=\.)", "", text)):
            if each != pattern and glob.glob(each):
                return expand_path(each, several=True)
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
    for pattern in (*_FORMS, PATTERN_END):
        stem = pattern.sub("", stem)
    name = _LAST_TRAIN.sub("", stem).strip("_-. ")
    if name in ("", "x"):  # `train-images-idx3-ubyte`, `mnist.npz/x_train.npy`, `DIR/train`
        return stem if stem and _FORMS[0].search(path.name) else path.parent.stem or stem
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
    # A test file is never taken for a train file, as `strain_test.csv` could be.
    doubtful = any(_LAST_TRAIN.search(path.name) and _TEST.search(path.name) for path in tables)
    tests = {find_test_beside(path) for path in tables} if doubtful else set()
    ranks: dict[Path, tuple[int, ...]] = {}  # the lowest is taken
    for path, form in tables.items():
        name = path.name
        is_train = _LAST_TRAIN.search(name) and path not in tests
        is_test = not is_train and _TEST.search(name)
        if not is_test or place.is_file():
            is_labels = bool(_LABELS.search(name))
            is_other = name != _KAGGLE, name != f"{_KAGGLE}.gz", not is_train
            ranks[path] = bool(is_test), form, len(path.parts), is_labels, *is_other
    found = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(found) > 1 and place.is_dir() and (pattern := _find_pattern(found)):
        return pattern
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise UsageError(
            f"{place}: {len(found)} files could be the train file ({names}{more}); "
            "expected one, or files numbered from 0 or 1. hint: name it or a pattern, such as "
            f"--data {shlex.quote(str(found[0]))}"
        )
    return found[0] if found else None


def _find_pattern(paths: list[Path]) -> Path | None:
    """Return the pattern of files that differ only in a number, from 0 or 1 without a gap."""
    matches = [_NUMBER.search(path.name) for path in paths]
    numbers = sorted(int(match[0]) for match in matches if match)
    names = {_NUMBER.sub("*", path.name, count=1) for path in paths}
    if not all(matches) or len(names) > 1 or numbers[0] > 1:
        return None
    (name,) = names
    total = re.search(r"-of-(\d+)", name)
    n_files = int(total[1]) if total else len(paths)
    is_whole = numbers == list(range(numbers[0], numbers[0] + n_files))
    return Path(glob.escape(str(paths[0].parent)), name) if is_whole else None


def expand_path(pattern: str | os.PathLike[str], *, several: bool = False) -> Path:
    """Return the one file or folder that a path or pattern means; see `list_parts`.

    A pattern of several files is returned as it is if `several` are wanted, else E043.
    """
    paths = list_parts(pattern)
    if len(paths) > 1 and not several:
        found = f"the pattern matches {len(paths)} files: {', '.join(map(str, paths[:3]))}"
        raise file_error("E043", os.fspath(pattern), found, "a pattern of one file")
    return paths[0] if len(paths) == 1 else Path(pattern)


def list_parts(pattern: str | os.PathLike[str]) -> list[Path]:
    """Return the files, or the file or folder, that a path or pattern means, in natural order.

    Patterns have `*`, `?`, `[...]`, `**`, `{a,b}` or `{00..19}`; an exact name wins. What is no
    pattern is returned as it is, whether it exists or not.

    Raises:
        DataError: E002, a folder among several files; E042, one file twice; E043, a pattern
            matches nothing.
    """
    text = os.fspath(pattern)
    parts: list[Path] = []
    for each in [text] if _exists(text) else _expand_braces(text):
        if _exists(each) or not glob.has_magic(each):
            parts.append(Path(each))
        elif found := [] if "\0" in each else glob.glob(each, recursive=True):
            parts += map(Path, found)
        else:
            hint = _list_similar(Path(each))
            raise file_error("E043", each, "no file matches", "a pattern of files", hint)
    if len(parts) > 1:
        # The numbers in a name count by value: train-2 before train-10.
        parts.sort(key=_natural_key)
        known: dict[object, Path] = {}
        for path in parts:
            if path.is_dir():
                raise file_error("E002", str(path), "a folder among several files", "files")
            if (other := known.setdefault(_identify(path), path)) is not path:
                found_twice = f"the same file as {other}"
                raise file_error("E042", str(path), found_twice, "each file once")
    return parts


def check_paths(train_path: str | os.PathLike[str], test_path: str | os.PathLike[str]) -> None:
    """Refuse a file that is among those of both paths or patterns, under whatever name (E042)."""
    known = {_identify(path): path for path in list_parts(train_path)}
    for path in list_parts(test_path):
        if (other := known.get(_identify(path))) is not None:
            found = f"the same file as the training data {other}"
            hint = "accuracy on the training images says nothing about new ones: give other images"
            raise file_error("E042", str(path), found, "another file", hint)


def _natural_key(path: Path) -> list[str | int]:
    pieces = re.split("([0-9]+)", str(path))  # every second one is a number
    return [int(piece) if k % 2 else piece for k, piece in enumerate(pieces)]


def _exists(text: str) -> bool:
    """Return whether a path is that of a file or folder, or goes on below a file (an archive)."""
    return os.path.exists(text) or bool(split_member(Path(text))[1])


def _identify(path: Path) -> object:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    return status.st_dev, status.st_ino


def _expand_braces(text: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        return [text]
    low, high, words = match.groups()
    if words is None:
        first, last = sorted((int(low), int(high)))  # {3..0} are those of {0..3}
        between = [str(number).zfill(len(low)) for number in range(first, last + 1)]
    else:
        between = words.split(",")
    ends = _expand_braces(text[match.end() :])
    return [text[: match.start()] + middle + end for middle in between for end in ends]


def _list_similar(path: Path) -> str:
    """Return a sentence on the names in the folder of a pattern that matches nothing."""
    names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    patterns = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
    if near := did_you_mean(path.name, patterns):
        return near
    shown = ", ".join(names[:4])
    return f"{path.parent} holds {shown}" if names else f"{path.parent} is no folder with files"
