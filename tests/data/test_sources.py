"""Sources: what `--data` finds, what it never does, and what it says about it."""

import functools
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data import official, sources
from fmnist_tf.data.sample import GARMENTS, draw_sample
from fmnist_tf.data.sources import find_csvs, read_dataset
from fmnist_tf.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "keras" / "datasets" / "fashion-mnist"
DOWNLOAD = "http://127.0.0.1:9/"  # the discard port: refused at once


def write(path: Path, labels=range(10), copies=8, seed=0, header=None) -> Path:
    """Write a CSV of `copies` different images of each label, labels of any kind in cycles."""
    labels = list(labels) * copies
    pixels = np.random.default_rng(seed).integers(0, 90, (len(labels), 784), np.uint8)
    names = header or ["label", *(f"pixel{i}" for i in range(1, 785))]
    rows = [",".join(map(str, [label, *row])) for label, row in zip(labels, pixels, strict=True)]
    text = "\n".join([",".join(names), *rows, ""]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_unlabelled(path: Path) -> Path:
    names = ",".join(f"pixel{i}" for i in range(784))
    path.write_text(f"{names}\n" + ",".join(["7"] * 784) + "\n")
    return path


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def said():
    return []


@pytest.fixture
def read(tmp_path, data_dir, said, monkeypatch):
    """`read_dataset` with an empty cache, no network and a sample of 70 images."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(official, "BASE_URL", DOWNLOAD)
    monkeypatch.setattr(sources, "draw_sample", functools.partial(draw_sample, 50, 20))

    def read_from(data, **options):
        options = {"test_data": None, "label_column": None} | options
        return read_dataset(
            str(data), data_dir=data_dir, store_dir=tmp_path / "store", say=said.append, **options
        )

    return read_from


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Four small official files in Keras' cache; returns what they hold, by file name."""
    rng = np.random.default_rng(5)
    arrays, sums = {}, {}
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    for images, labels, copies in (
        (official.TRAIN_IMAGES, official.TRAIN_LABELS, 4),
        (official.TEST_IMAGES, official.TEST_LABELS, 2),
    ):
        arrays[labels] = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), copies))
        arrays[images] = rng.integers(0, 90, (10 * copies, 28, 28), np.uint8)
    for name, array in arrays.items():
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = gzip.compress(header + array.tobytes())
        (cache / name).write_bytes(content)
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(official, "SHA256", sums)
    csv_sums = {}
    for name, images, labels in (
        (official.TRAIN_CSV, official.TRAIN_IMAGES, official.TRAIN_LABELS),
        (official.TEST_CSV, official.TEST_IMAGES, official.TEST_LABELS),
    ):
        pieces = official.csv_pieces(arrays[images].reshape(-1, 784), arrays[labels])
        csv_sums[name] = hashlib.sha256(b"".join(pieces)).hexdigest()
    monkeypatch.setattr(official, "CSV_SHA256", csv_sums)
    return arrays


# --- auto: the CSVs of the data folder ---


def test_auto_takes_kaggles_names_before_any_other(read, data_dir, said):
    train = write(data_dir / "fashion-mnist_train.csv")
    test = write(data_dir / "fashion-mnist_test.csv", copies=2, seed=1)
    write(data_dir / "other_train.csv")
    dataset = read("auto")
    assert [(Path(file.path), file.rows) for file in dataset.files] == [(train, 80), (test, 20)]
    assert [file.sha256 for file in dataset.files] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (train, test)
    ]
    assert (dataset.name, dataset.kind) == ("fashion-mnist", "csv")
    assert dataset.train.pixels.shape == (80, 784)
    assert dataset.train.pixels.dtype == np.uint8
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int64
    assert dataset.train.labels.tolist() == list(range(10)) * 8
    assert dataset.test.pixels.shape == (20, 784)
    assert dataset.train.class_names == dataset.test.class_names == GARMENTS
    assert said == []
    assert f"data: {train}, the train file of the data folder" in dataset.decisions
    assert "test set: fashion-mnist_test.csv, beside the train file" in dataset.decisions
    assert any(
        line.startswith("fashion-mnist_train.csv: line 1 is the header")
        for line in dataset.decisions
    )


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
        ([], None),
    ],
)
def test_find_csvs(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_csvs(tmp_path)
    assert (found and tuple(path and path.name for path in found)) == expected


def test_find_csvs_passes_over_what_is_no_file(tmp_path):
    (tmp_path / "folder_train.csv").mkdir()
    assert find_csvs(tmp_path) is None
    assert find_csvs(tmp_path / "absent") is None


@pytest.mark.parametrize("names", [["a_train.csv", "b_train.csv.gz"], ["a.csv", "b.csv"]])
def test_several_candidates_are_named_and_refused(read, data_dir, names):
    for name in names:
        write(data_dir / name)
    with pytest.raises(UsageError, match="2 files could be the train file") as error:
        read("auto")
    assert ", ".join(names) in str(error.value)
    assert "--data PATH" in str(error.value)


# --- auto: the official files ---


def test_auto_converts_the_cached_official_files_once(read, cached, data_dir, said):
    first = read("auto")
    assert said == [f"writing the official Fashion-MNIST files as CSVs to {data_dir}"]
    assert "data: the official Fashion-MNIST files, written as CSVs" in first.decisions
    second = read("auto")
    assert len(said) == 1
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "fashion-mnist_test.csv",
        "fashion-mnist_train.csv",
    ]
    for dataset in (first, second):
        assert (dataset.kind, dataset.name) == ("official", "fashion-mnist")
        assert dataset.train.class_names == GARMENTS
        for pixels, images, labels in (
            (dataset.train, official.TRAIN_IMAGES, official.TRAIN_LABELS),
            (dataset.test, official.TEST_IMAGES, official.TEST_LABELS),
        ):
            assert (pixels.pixels == cached[images].reshape(-1, 784)).all()
            assert (pixels.labels == cached[labels]).all()


def test_the_official_files_are_known_by_their_content(read, cached, data_dir, tmp_path):
    read("auto")
    renamed = shutil.copy(data_dir / "fashion-mnist_train.csv", tmp_path / "renamed.csv")
    dataset = read(renamed, test_data=str(data_dir / "fashion-mnist_test.csv"))
    assert (dataset.kind, dataset.name) == ("official", "renamed")
    assert dataset.train.class_names == GARMENTS


def test_a_lone_test_file_is_not_overwritten(read, cached, data_dir):
    mine = write(data_dir / "fashion-mnist_test.csv")
    before = mine.read_bytes()
    with pytest.raises(UsageError, match=r"a test file alone; expected fashion-mnist_train\.csv"):
        read("auto")
    assert mine.read_bytes() == before


def test_a_conversion_cut_between_the_two_files_is_done_again(read, cached, data_dir):
    read("auto")
    (data_dir / "fashion-mnist_train.csv").unlink()
    assert read("auto").kind == "official"


# --- the sample ---


def test_auto_without_data_or_network_uses_the_sample_and_says_so(read, data_dir, said):
    dataset = read("auto")
    assert len(said) == 2
    assert said[0] == f"downloading {DOWNLOAD}train-images-idx3-ubyte.gz"
    assert said[1].startswith(f"cannot download {DOWNLOAD}train-images-idx3-ubyte.gz: ")
    assert said[1].endswith("; the built-in sample is used instead")
    assert (dataset.name, dataset.kind) == ("sample", "sample")
    assert dataset.train.class_names == GARMENTS
    assert any("built-in sample" in decision for decision in dataset.decisions)
    box = dataset.warnings[0]
    assert "BUILT-IN SAMPLE" in box
    assert "nothing about real garments" in " ".join(box.replace("|", " ").split())
    assert str(data_dir) in re.sub(r" *\|\n\| ", "", box)
    assert {len(line) for line in box.splitlines()} == {78}
    assert box.isascii()
    train_pixels, train_labels, test_pixels, test_labels = draw_sample(50, 20)
    assert (dataset.train.pixels == train_pixels).all()
    assert (dataset.train.labels == train_labels).all()
    assert (dataset.test.pixels == test_pixels).all()
    assert (dataset.test.labels == test_labels).all()


def test_a_later_auto_prefers_real_files_to_the_sample(read, data_dir):
    assert read("auto").kind == "sample"
    write(data_dir / "mine_train.csv")
    assert read("auto").kind == "csv"


def test_sample_is_the_sample_whatever_else_there_is(read, cached, data_dir, said):
    write(data_dir / "fashion-mnist_train.csv")
    assert read("sample").kind == "sample"
    assert said == []


def test_the_samples_files_are_recognised_when_named(read, data_dir):
    read("sample")
    elsewhere = data_dir.parent / "elsewhere"
    shutil.copytree(data_dir / "sample", elsewhere)
    for path in (data_dir / "sample", elsewhere / "sample-seed0_train.csv"):
        dataset = read(path)
        assert (dataset.name, dataset.kind) == ("sample", "sample")
        assert "BUILT-IN SAMPLE" in dataset.warnings[0]


def test_the_sample_is_written_where_it_differs(read, data_dir):
    first = read("sample")
    train, test = (Path(file.path) for file in first.files)
    written = train.stat().st_mtime_ns
    test.write_text("edited")
    assert read("sample").files == first.files
    assert train.stat().st_mtime_ns == written


# --- a named source ---


@pytest.mark.parametrize("name", ["absent.csv", "absent_*.csv", "empty.csv"])
def test_a_named_file_never_falls_back(read, cached, data_dir, tmp_path, name):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=name.replace("*", r"\*")):
        read(tmp_path / name)
    assert not data_dir.exists()


def test_a_named_folder_never_falls_back(read, cached, data_dir, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"a folder without a train CSV; expected a \.csv"):
        read(tmp_path / "folder")
    assert not data_dir.exists()


def test_patterns_stand_for_the_one_file_they_match(read, tmp_path):
    train, test = write(tmp_path / "mine-1.csv"), write(tmp_path / "yours-1.csv", seed=1)
    dataset = read(tmp_path / "mine*.csv", test_data=str(tmp_path / "yours-?.csv"))
    assert [file.path for file in dataset.files] == [str(train), str(test)]


def test_a_named_folder_is_searched(read, tmp_path):
    write(tmp_path / "kmnist" / "kmnist_train.csv.gz")
    write(tmp_path / "kmnist" / "kmnist_test.csv", seed=1)
    dataset = read(tmp_path / "kmnist")
    assert (dataset.name, dataset.kind, len(dataset.files)) == ("kmnist", "csv", 2)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("sign_mnist_train.csv", "sign_mnist"),
        ("emnist-letters-Train.csv.gz", "emnist-letters"),
        ("train.csv", "train"),
        ("A_Z Data.csv", "A_Z Data"),
    ],
)
def test_the_dataset_has_the_files_name(read, tmp_path, file_name, name):
    assert read(write(tmp_path / file_name)).name == name


# --- the test set ---


def test_test_data_replaces_the_file_beside(read, tmp_path):
    train = write(tmp_path / "a_train.csv")
    write(tmp_path / "a_test.csv", seed=1)
    named = write(tmp_path / "elsewhere" / "b.csv", copies=1, seed=2)
    dataset = read(train, test_data=str(named))
    assert [file.path for file in dataset.files] == [str(train), str(named)]
    assert len(dataset.test.labels) == 10


def test_without_a_test_file_the_same_rows_are_always_set_aside(read, tmp_path):
    path = write(tmp_path / "mine.csv", labels=range(4), copies=40)
    first, second = read(path), read(path)
    assert len(first.files) == 1
    assert np.bincount(first.test.labels).tolist() == [6] * 4
    assert np.bincount(first.train.labels).tolist() == [34] * 4
    assert (first.test.pixels == second.test.pixels).all()
    halves = np.concatenate([first.train.pixels, first.test.pixels])
    text = np.loadtxt(path, np.uint8, delimiter=",", skiprows=1)
    labels = np.concatenate([first.train.labels, first.test.labels])
    assert sorted(np.column_stack([labels, halves]).tolist()) == sorted(text.tolist())
    assert (
        "no labelled test file: 24 of 160 rows (15%, stratified, the same in every run) are set "
        "aside as the test set"
    ) in first.decisions


def test_too_few_rows_for_a_test_set_say_what_to_do(read, tmp_path):
    with pytest.raises(UsageError, match=r"test split: .* hint: give a labelled test file with"):
        read(write(tmp_path / "mine.csv", copies=2))


@pytest.mark.parametrize("label_column", [None, "label"])
def test_an_unlabelled_file_beside_is_passed_over(read, tmp_path, label_column):
    write_unlabelled(tmp_path / "test.csv")
    dataset = read(write(tmp_path / "train.csv"), label_column=label_column)
    assert "test.csv, beside the train file, has no labels and tests nothing" in dataset.decisions
    assert len(dataset.files) == 1
    assert len(dataset.test.labels) == 12


def test_a_bad_file_beside_is_not_passed_over(read, tmp_path):
    (tmp_path / "test.csv").write_text("label,pixel1\n")
    with pytest.raises(DataError, match=r"test\.csv"):
        read(write(tmp_path / "train.csv"))


@pytest.mark.parametrize("label_column", [None, "label"])
def test_a_named_test_file_must_have_labels(read, tmp_path, label_column):
    test = write_unlabelled(tmp_path / "unlabelled.csv")
    with pytest.raises(DataError, match="E026"):
        read(write(tmp_path / "train.csv"), test_data=str(test), label_column=label_column)


def test_a_test_file_of_unlabelled_images_is_refused_or_not_looked_at(read, tmp_path):
    train = write_unlabelled(tmp_path / "train.csv")
    test = write(tmp_path / "test.csv")
    dataset = read(train, to_train=False)
    assert (len(dataset.files), len(dataset.test.labels)) == (1, 0)
    assert not any("test.csv" in decision for decision in dataset.decisions)
    with pytest.raises(UsageError, match="expected beside labelled images"):
        read(train, to_train=False, test_data=str(test))


def test_the_train_file_cannot_be_the_test_file(read, tmp_path):
    train = write(tmp_path / "train.csv")
    with pytest.raises(DataError, match="E042"):
        read(train, test_data=str(tmp_path / "." / "train.csv"))


# --- the label map ---


def test_labels_without_nine_become_0_to_23(read, tmp_path):
    """Sign Language MNIST has 24 of the labels 0 to 24."""
    values = [label for label in range(25) if label != 9]
    train = write(tmp_path / "sign_train.csv", labels=values[::-1], copies=2)
    write(tmp_path / "sign_test.csv", labels=[24, 10, 0], copies=1, seed=1)
    dataset = read(train)
    assert dataset.train.class_names == tuple(map(str, values))
    assert dataset.train.labels.tolist() == [*range(23, -1, -1)] * 2
    assert dataset.test.labels.tolist() == [23, 9, 0]


def test_names_are_ordered_as_text_and_numbers_by_value(read, tmp_path):
    names = read(write(tmp_path / "a.csv", labels=["cat", "ant", "bee"]))
    assert names.train.class_names == ("ant", "bee", "cat")
    assert names.train.labels[:3].tolist() == [2, 0, 1]
    numbers = read(write(tmp_path / "b.csv", labels=[10, -3, 9]))
    assert numbers.train.class_names == ("-3", "9", "10")
    assert numbers.train.labels[:3].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("file_name", "labels", "is_named"),
    [
        ("my-Fashion.csv", range(10), True),
        ("my-Fashion.csv", range(9), False),
        ("my-Fashion.csv", range(1, 11), False),
        ("digits.csv", range(10), False),
    ],
)
def test_garments_are_named_only_in_a_file_of_fashion(read, tmp_path, file_name, labels, is_named):
    dataset = read(write(tmp_path / file_name, labels=labels))
    assert dataset.train.class_names == (GARMENTS if is_named else tuple(map(str, labels)))
    assert is_named == any("named as in Fashion-MNIST" in line for line in dataset.decisions)


@pytest.mark.parametrize(("labels", "code"), [([3], "E030"), (range(1001), "E028")])
def test_too_few_or_too_many_classes_are_refused(read, tmp_path, labels, code):
    with pytest.raises(DataError, match=code):
        read(write(tmp_path / "a.csv", labels=labels, copies=1))


def test_a_test_label_that_train_lacks_is_refused(read, tmp_path):
    train = write(tmp_path / "a_train.csv", labels=[0, 1])
    write(tmp_path / "a_test.csv", labels=[0, 2], seed=1)
    with pytest.raises(DataError, match=r"error\[E028\] .*a_test\.csv:3:1"):
        read(train)


# --- the rest ---


def test_strange_pixels_become_warnings(read, tmp_path):
    train = write(tmp_path / "a_train.csv")
    shutil.copy(train, tmp_path / "a_test.csv")
    assert any("test images are also training images" in line for line in read(train).warnings)


def test_the_data_modules_do_not_import_tensorflow():
    script = (
        "import sys, fmnist_tf.data.sources, fmnist_tf.data.splits, fmnist_tf.data.downloads\n"
        "sys.exit(str({'tensorflow', 'keras', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == "set()\n"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no official files in {REAL}")
def test_the_official_files_pass_without_a_warning(tmp_path, monkeypatch, said):
    shutil.copytree(REAL, tmp_path / "keras" / "datasets" / "fashion-mnist")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    dataset = read_dataset(
        "auto",
        test_data=None,
        label_column=None,
        data_dir=tmp_path / "data",
        store_dir=tmp_path / "store",
        say=said.append,
    )
    assert (dataset.name, dataset.kind, dataset.warnings) == ("fashion-mnist", "official", ())
    assert len(said) == 1
    for pixels, images, labels, per_class in (
        (dataset.train, official.TRAIN_IMAGES, official.TRAIN_LABELS, 6000),
        (dataset.test, official.TEST_IMAGES, official.TEST_LABELS, 1000),
    ):
        body = np.frombuffer(gzip.decompress((REAL / images).read_bytes())[16:], np.uint8)
        assert (pixels.pixels == body.reshape(-1, 784)).all()
        assert (
            pixels.labels.tobytes()
            == np.frombuffer(gzip.decompress((REAL / labels).read_bytes())[8:], np.uint8)
            .astype(np.int64)
            .tobytes()
        )
        assert np.bincount(pixels.labels).tolist() == [per_class] * 10
