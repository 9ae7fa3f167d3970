"""Sources: what `--data` finds, what it never does, and what it says about it."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forms import LABELS, PIXELS, csv_text, idx, png, write_pictures
from forms import write as write_bytes

from fmnist_tf.data import official
from fmnist_tf.data.downloads import DownloadError
from fmnist_tf.data.files import is_there
from fmnist_tf.data.labels import FASHION_MNIST
from fmnist_tf.data.locate import find_tables
from fmnist_tf.data.sample import read_sample
from fmnist_tf.data.sources import Dataset, find_source, read_dataset
from fmnist_tf.errors import DataError, UsageError

DIGITS = tuple("0123456789")
Read = Callable[..., Dataset]


def write(path: Path, labels=range(10), copies=8, seed=0, pixels=None) -> Path:
    """Write a CSV of `copies` different images of each label, labels of any kind in cycles."""
    labels = list(labels) * copies
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 90, (len(labels), 784), np.uint8)
    return write_bytes(path, csv_text(pixels, labels))


def write_unlabelled(path: Path) -> Path:
    return write_bytes(path, csv_text(np.full((1, 784), 7), None))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def read(tmp_path, said, monkeypatch) -> Read:
    """`read_dataset` with an empty cache and no network, in the folder above `data_dir`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(official, "BASE_URL", "http://127.0.0.1:9/")  # the discard port: refused

    def read_from(data: object, **options: object) -> Dataset:
        return read_dataset(str(data), store_dir=tmp_path / "store", say=said.append, **options)

    return read_from


@pytest.fixture
def cached(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Four small official files in Keras' cache; returns what they hold, by file name."""
    rng = np.random.default_rng(5)
    arrays, sums = {}, {}
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    for images, labels, copies in (
        (official.TRAIN_IMAGES, official.TRAIN_LABELS, 4),
        (official.TEST_IMAGES, official.TEST_LABELS, 2),
    ):
        arrays[labels] = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), copies))
        arrays[images] = rng.integers(0, 90, (10 * copies, 28, 28), np.uint8)
    for name, array in arrays.items():
        content = write_bytes(cache / name, idx(array)).read_bytes()
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(official, "SHA256", sums)
    return arrays


# --- auto: the CSVs of the data folder ---


def test_auto_takes_kaggles_names_before_any_other(read, data_dir, said) -> None:
    train = write(data_dir / "fashion-mnist_train.csv")
    test = write(data_dir / "fashion-mnist_test.csv", copies=2, seed=1)
    write(data_dir / "other_train.csv")
    dataset = read("auto")
    for file, path, count in zip(dataset.files, (train, test), (80, 20), strict=True):
        assert (Path(file.path).resolve(), file.pixels.shape) == (path, (count, 784))
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (dataset.name, dataset.kind) == ("fashion-mnist", "csv")
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int64
    assert dataset.train.labels.tolist() == list(range(10)) * 8
    assert dataset.train.find(np.arange(80))[1].tolist() == list(range(2, 82))
    assert dataset.train.digest == hashlib.sha256(dataset.train.pixels.tobytes()).hexdigest()
    assert dataset.train.class_names == dataset.test.class_names == FASHION_MNIST
    assert said == []
    for part in ("data/fashion-mnist_train.csv", "fashion-mnist_test.csv", "line 1 is the header"):
        assert any(part in decision for decision in dataset.decisions)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a_train.csv", "a_test.csv"], ("a_train.csv", "a_test.csv")),
        (["A-TRAIN.CSV", "A-TEST.CSV"], ("A-TRAIN.CSV", "A-TEST.CSV")),
        (["Train.csv.gz", "Test.csv.gz"], ("Train.csv.gz", "Test.csv.gz")),
        (["train.csv.gz", "test.csv"], ("train.csv.gz", "test.csv")),
        (["train.csv", "test.csv.gz"], ("train.csv", "test.csv.gz")),
        (["strain_train.csv", "strain_test.csv"], ("strain_train.csv", "strain_test.csv")),
        (["train.csv", "b_test.csv", "Dig.csv", "train.txt"], ("train.csv", None)),
        (["hmnist_28_28_L.csv"], ("hmnist_28_28_L.csv", None)),
        (["fashion-mnist_train.csv.gz", "x_train.csv"], ("fashion-mnist_train.csv.gz", None)),
        ([".hidden_train.csv", "sub/train.csv", "a_test.csv", "README.md"], None),
        (["folder_train.csv/x"], None),
        ([], None),
    ],
)
def test_find_tables(tmp_path, files, expected) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_tables(tmp_path, in_folders=False)
    assert (found and tuple(path and path.name for path in found)) == expected


# --- other forms than CSV ---


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"], (0, 1)),
        (["train-images.idx3-ubyte.gz", "t10k-images.idx3-ubyte.gz"], (0, 1)),
        (["emnist-train-images-idx3-ubyte", "emnist-test-images-idx3-ubyte"], (0, 1)),
        (["x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"], (0, 2)),
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], (0, 1)),
        (["csvTrainImages 9x784.csv", "csvTestImages 3x784.csv", "csvTrainLabel 9x1.csv"], (0, 1)),
        (["aTrain 9x784.csv", "aTest 3x784.csv", "aTest 4x784.csv"], (0, None)),
        (["train_9.csv", "test_3.csv"], (0, None)),
        (["a.csv", "train-images-idx3-ubyte", "x_train.npy"], (0, None)),
    ],
)
@pytest.mark.parametrize("place", ["folder", "zip", "zip with folders"])
def test_what_trains_and_tests_in_folders_and_archives(tmp_path, files, expected, place) -> None:
    if place == "folder":
        root = tmp_path / "folder"
        for name in files:
            write_bytes(root / name, b"")
        where = root
    else:
        root, inner = tmp_path / "a.zip", "a/" if place == "zip with folders" else ""
        with zipfile.ZipFile(root, "w") as archive:
            for name in files:
                archive.writestr(f"{inner}{name}", b"")
                archive.writestr(f"{inner}copies/{name}", b"")
                archive.writestr(f"__MACOSX/._{name}", b"")
        where = root / inner if inner else root
    found = find_tables(root)
    assert found == tuple(None if k is None else where / files[k] for k in expected)
    assert is_there(found[0])


def test_archives_in_the_data_folder(read, cached, data_dir) -> None:
    data_dir.mkdir()
    for part in ("train", "test"):
        with zipfile.ZipFile(data_dir / f"mine_{part}.csv.zip", "w") as archive:
            archive.writestr(f"any_{part}.csv", csv_text())
    found = read("auto")
    assert [Path(file.path).name for file in found.files] == ["any_train.csv", "any_test.csv"]
    (data_dir / "mine_train.csv.zip").rename(data_dir / "mine.zip")
    assert read("auto", to_train=False).files[0].path == str(Path("data/mine.zip/any_train.csv"))
    with zipfile.ZipFile(data_dir / "mine.zip", "w") as archive:
        archive.writestr("notes.txt", "no images")
    assert read("auto").kind == "official"
    with pytest.raises(UsageError, match=r"error\[E0"):
        read(data_dir / "mine.zip")


def test_folders_of_pictures_are_read_with_their_test_part(read, tmp_path) -> None:
    for part, count in (("Train", 12), ("valid", 6)):
        write_pictures(tmp_path / "set" / part, PIXELS[:count], LABELS[:count])
    dataset = read(tmp_path / "set")
    assert (dataset.name, dataset.kind) == ("set", "pictures")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (12, 6)
    again = read(dataset.files[0].path, test_data=dataset.files[1].path)
    assert again.sha256 == dataset.sha256
    assert find_tables(tmp_path / "set" / "Train") == (tmp_path / "set" / "Train", None)


def test_a_class_may_be_called_train(read, tmp_path) -> None:
    for name in ("car", "train"):
        write_bytes(tmp_path / "set" / name / "1.png", png(PIXELS[0].reshape(28, 28)))
    assert read(tmp_path / "set", to_train=False).train.class_names == ("car", "train")


def test_labels_of_the_test_images_are_in_the_file_named_alike(read, tmp_path) -> None:
    for part, labels in (("Train", LABELS), ("Test", LABELS[::-1])):
        write_bytes(tmp_path / f"csv{part}Images 12x784.csv", csv_text(labels=None))
        write_bytes(tmp_path / f"csv{part}Label 12x1.csv", "\n".join(map(str, labels)))
    labels = str(tmp_path / "csvTrainLabel 12x1.csv")
    for data in (tmp_path, tmp_path / "csvTrainImages 12x784.csv"):
        dataset = read(data, labels=labels)
        assert dataset.train.labels.tolist() == (LABELS - 4).tolist()
        assert dataset.test.labels.tolist() == (LABELS[::-1] - 4).tolist()
        assert [file.labels_path for file in dataset.files] == [
            labels, labels.replace("Train", "Test")
        ]  # fmt: skip
        assert len(dataset.sha256) == 4
    test = write(tmp_path / "mine.csv", labels=[4, 5], copies=1)
    Path(labels.replace("Train", "Test")).unlink()
    assert len(read(data, labels=labels, test_data=str(test)).test.labels) == 2
    for named in ("auto", "sample"):
        with pytest.raises(UsageError, match="--data"):
            read(named, labels=labels)


def test_official_images_are_known_in_any_form(read, cached, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(official, "DIGESTS", ("x", "y"))
    folder = tmp_path / "keras" / "datasets" / "fashion-mnist"
    dataset = read(folder)
    assert (dataset.kind, dataset.name) == ("idx", "fashion-mnist")
    assert dataset.train.labels.tolist() == cached[official.TRAIN_LABELS].tolist()
    assert dataset.test.pixels.tobytes() == cached[official.TEST_IMAGES].tobytes()


@pytest.mark.parametrize("names", [["a_train.csv", "b_train.csv.gz"], ["a.csv", "b.csv"]])
def test_several_candidates_are_named_and_refused(read, data_dir, names) -> None:
    for name in names:
        write(data_dir / name, copies=8)
    with pytest.raises(UsageError, match=", ".join(names)) as caught:
        read("auto")
    step = shlex.split(str(caught.value).rpartition("--data ")[2])[0]
    assert Path(read(step).files[0].path) == Path("data", names[0])


# --- the official files and the sample ---


@pytest.mark.parametrize("data", ["auto", "official"])
def test_the_official_files_in_the_cache(read, cached, data_dir, said, data) -> None:
    if data == "official":
        write(data_dir / "mine_train.csv")
    for _ in range(2):
        dataset = read(data)
        assert (dataset.kind, dataset.name, said) == ("official", "fashion-mnist", [])
        assert dataset.train.class_names == FASHION_MNIST
        assert find_source(dataset.files[0].path) == "official"
        for part, file, images, labels in (
            (dataset.train, dataset.files[0], official.TRAIN_IMAGES, official.TRAIN_LABELS),
            (dataset.test, dataset.files[1], official.TEST_IMAGES, official.TEST_LABELS),
        ):
            assert part.pixels.tobytes() == cached[images].tobytes()
            assert part.labels.tolist() == cached[labels].tolist()
            assert (Path(file.path).name, file.sha256) == (images, official.SHA256[images])
    assert (data == "auto") != data_dir.exists()  # nothing is written there


def test_official_images_can_be_tested_on_a_csv_of_some_classes(read, cached, tmp_path) -> None:
    test = write(tmp_path / "mine.csv", labels=["Bag", "7"], copies=1)
    with pytest.raises(DataError, match="E027"):
        read("auto", test_data=str(test))
    test = write(tmp_path / "mine.csv", labels=["Bag", "Sneaker"], copies=1)
    dataset = read("auto", test_data=str(test))
    assert dataset.kind == "official"
    assert dataset.test.labels.tolist() == [8, 7]
    assert [Path(file.path).name for file in dataset.files] == [official.TRAIN_IMAGES, "mine.csv"]


def test_auto_without_data_or_network_uses_the_sample_and_says_so(read, data_dir, said) -> None:
    dataset = read("auto")
    assert len(said) == 2
    assert "cannot download http://127.0.0.1:9/train-images" in said[1]
    assert (dataset.name, dataset.kind) == ("sample", "sample")
    assert dataset.train.class_names == DIGITS
    assert dataset.warnings[0].startswith("WARNING: THIS IS THE BUILT-IN SAMPLE")
    for found, expected in zip((dataset.train, dataset.test), read_sample(), strict=True):
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        np.testing.assert_array_equal(found.labels, expected.label_index)
    assert find_source(dataset.files[0].path) == "sample"
    assert not data_dir.exists()
    with pytest.raises(DownloadError):
        read("official")


def test_sample_is_the_sample_whatever_else_there_is(read, cached, data_dir, said) -> None:
    write(data_dir / "fashion-mnist_train.csv")
    assert read("sample").kind == "sample"
    assert said == []


def test_a_copy_of_the_sample_is_known_by_its_content(read, tmp_path) -> None:
    train, _ = read_sample()
    pixels, labels = train.pixels.copy(), train.label_index
    dataset = read(write(tmp_path / "my-fashion.csv", labels, 1, pixels=pixels))
    assert (dataset.name, dataset.kind) == ("sample", "sample")
    assert "SAMPLE" in dataset.warnings[0]
    assert find_source(dataset.files[0].path) == str(tmp_path / "my-fashion.csv")
    pixels[0, 0] += 1
    other = read(write(tmp_path / "sample-seed0_train.csv", labels, 1, pixels=pixels))
    assert (other.kind, other.warnings) == ("csv", ())


# --- a named source ---


@pytest.mark.parametrize("name", ["absent.csv", "absent_*.csv", "empty.csv", "folder", "a" * 300])
def test_a_named_file_or_folder_never_falls_back(read, cached, data_dir, tmp_path, name) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=name.replace("*", r"\*")):
        read(tmp_path / name)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("sign_mnist_train.csv", "sign_mnist"),
        ("emnist-letters-Train.csv.gz", "emnist-letters"),
        ("train.csv", "train"),
        ("A_Z Data.csv", "A_Z Data"),
    ],
)
def test_the_dataset_has_the_files_name(read, tmp_path, file_name, name) -> None:
    path = write(tmp_path / "folder" / file_name)
    for source in (path, path.parent):
        dataset = read(source)
        assert (dataset.name, dataset.kind, len(dataset.files)) == (name, "csv", 1)


# --- the test set ---


def test_test_data_replaces_the_file_beside(read, tmp_path) -> None:
    train = write(tmp_path / "a_train.csv")
    write(tmp_path / "a_test.csv", seed=1)
    named = write(tmp_path / "elsewhere" / "b.csv", copies=1, seed=2)
    dataset = read(train, test_data=str(named))
    assert [file.path for file in dataset.files] == [str(train), str(named)]
    assert len(dataset.test.labels) == 10


def test_without_a_test_file_the_same_rows_are_always_set_aside(read, tmp_path) -> None:
    path = write(tmp_path / "mine.csv", labels=range(4), copies=40)
    first, second = read(path), read(path)
    assert len(first.files) == 1
    assert np.bincount(first.test.labels).tolist() == [6] * 4
    assert np.bincount(first.train.labels).tolist() == [34] * 4
    assert (first.test.pixels[:] == second.test.pixels[:]).all()
    assert first.test.digest == second.test.digest
    assert len({first.test.digest, first.train.digest}) == 2
    text = np.loadtxt(path, np.uint8, delimiter=",", skiprows=1)
    found = []
    for part in (first.train, first.test):
        _, lines = part.find(np.arange(len(part.labels)))
        rows = np.column_stack([part.labels, part.pixels[:]])
        np.testing.assert_array_equal(rows, text[lines - 2])
        found += lines.tolist()
    assert sorted(found) == list(range(2, 162))
    assert any("24 of 160 rows (15%" in decision for decision in first.decisions)


@pytest.mark.parametrize("label_column", [None, "label"])
def test_an_unlabelled_file_beside_is_not_used_and_a_named_one_refused(
    read, tmp_path, label_column
) -> None:
    test = write_unlabelled(tmp_path / "test.csv")
    train = write(tmp_path / "train.csv")
    dataset = read(train, label_column=label_column)
    assert any(line.startswith("test.csv, ") for line in dataset.decisions)
    assert (len(dataset.files), len(dataset.test.labels)) == (1, 12)
    with pytest.raises(DataError, match="E026"):
        read(train, test_data=str(test), label_column=label_column)


def test_unlabelled_images_can_be_shown_but_not_trained_or_tested(read, tmp_path) -> None:
    train = write_unlabelled(tmp_path / "train.csv")
    test = write(tmp_path / "test.csv")
    dataset = read(train, to_train=False)
    assert (len(dataset.files), len(dataset.test.labels)) == (1, 0)
    assert dataset.train.class_names == ("unlabelled",)
    with pytest.raises(UsageError, match="--test-data"):
        read(train, to_train=False, test_data=str(test))
    with pytest.raises(DataError, match="E026"):
        read(train)


def test_nothing_is_set_aside_of_what_is_only_shown(read, tmp_path) -> None:
    dataset = read(write(tmp_path / "one.csv", labels=[3], copies=4), to_train=False)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (4, 0)


# --- the label map ---


def test_labels_without_nine_become_0_to_23(read, tmp_path) -> None:
    """Sign Language MNIST has 24 of the labels 0 to 24."""
    values = [label for label in range(25) if label != 9]
    train = write(tmp_path / "sign_train.csv", labels=values[::-1], copies=2)
    write(tmp_path / "sign_test.csv", labels=[24, 10, 0], copies=1, seed=1)
    dataset = read(train)
    assert dataset.train.class_names == tuple(map(str, values))
    assert dataset.train.labels.tolist() == [*range(23, -1, -1)] * 2
    assert dataset.test.labels.tolist() == [23, 9, 0]


def test_garments_are_named_only_in_a_file_of_fashion(read, tmp_path) -> None:
    assert read(write(tmp_path / "my-Fashion.csv")).train.class_names == FASHION_MNIST
    assert read(write(tmp_path / "digits.csv")).train.class_names == DIGITS
    from_one = read(write(tmp_path / "fashion2.csv", labels=range(1, 11)))
    assert from_one.train.class_names == tuple(map(str, range(1, 11)))


def test_one_class_or_too_few_rows_are_refused(read, tmp_path) -> None:
    with pytest.raises(DataError, match="E030"):
        read(write(tmp_path / "a.csv", labels=[3], copies=1))
    with pytest.raises(UsageError, match="--test-data"):  # to set rows aside
        read(write(tmp_path / "mine.csv", copies=2))


def test_a_test_file_beside_must_fit_the_train_file(read, tmp_path) -> None:
    train = write(tmp_path / "a_train.csv", labels=[0, 1])
    write(tmp_path / "a_test.csv", labels=[0, 2], seed=1)
    with pytest.raises(DataError, match=r"error\[E028\] .*a_test\.csv:3:1"):
        read(train)
    (tmp_path / "a_test.csv").write_text("label,pixel1\n")
    with pytest.raises(DataError, match=r"a_test\.csv"):
        read(train)
    shutil.copy(train, tmp_path / "a_test.csv")
    assert any("test images are also training images" in line for line in read(train).warnings)


# --- the rest ---


def test_the_data_modules_import_little() -> None:
    script = (
        "import sys, fmnist_tf.data.sources, fmnist_tf.data.splits\n"
        "sys.exit(str({'tensorflow', 'keras', 'sklearn', 'pandas', 'pooch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"
