"""The command from end to end: CSVs and pictures in, tables and a safe CSV out."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_tf.predict import main, safe_cell
from fmnist_tf.train import main as train

QUICK = [
    "--backbone", "toy", "--weights", "random", "--data", "toy_train.csv", "--units", "8",
    "--epochs", "2", "--batch-size", "16", "--wandb", "disabled", "--run", "first",
]  # fmt: skip
NAMES = ("=1+1", "bag", "shoe")


def draw(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of three classes, a bright bar of three widths on black."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_rows) % 3
    pixels = np.zeros((n_rows, 28, 28), np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[4:24, 12 - 4 * label : 16 + 4 * label] = rng.integers(150, 255)
    return pixels.reshape(n_rows, 784), labels


def write_csv(path: Path, pixels: np.ndarray, labels: list[str] | None) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"pixel{i}" for i in range(1, 785)]
        writer.writerow(names if labels is None else ["label", *names])
        for row, pixel in enumerate(pixels.tolist()):
            writer.writerow(pixel if labels is None else [labels[row], *pixel])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of three classes, its CSVs and a picture of each class."""
    from toy import build_toy_spec

    from fmnist_tf.model.backbones import BACKBONES

    folder = tmp_path_factory.mktemp("predict")
    for name, n_rows, seed in (("train", 60, 0), ("test", 21, 1)):
        pixels, labels = draw(n_rows, seed)
        write_csv(folder / f"toy_{name}.csv", pixels, [NAMES[label] for label in labels])
    write_csv(folder / "bare.csv", pixels, None)
    for image, name in zip(pixels[:3], "abc", strict=True):
        large = Image.fromarray(image.reshape(28, 28)).resize((280, 280), 0)
        Image.eval(large, lambda level: 255 - level).save(folder / f"{name}.jpg", quality=95)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(BACKBONES, "toy", build_toy_spec())
        assert train(QUICK) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, the current folder."""
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "100")
    return copy


def predict(*words: str) -> int:
    return main(["first", *words])


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def recorded() -> np.ndarray:
    with np.load("runs/first/predictions.npz") as arrays:
        return arrays["probabilities"]


def test_a_csv_gets_the_probabilities_the_run_recorded(folder: Path, capsys) -> None:
    assert predict("toy_test.csv", "--out", "o.csv") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "toy_test.csv"
    assert out[1].split() == ["line", "truth", "guess"]
    assert len(out) == 13
    assert out[-1] == "... and 11 more; --out FILE.csv writes all"
    expected, rows = recorded(), rows_of("o.csv")
    assert list(rows[0]) == [
        "file", "line", "guess", "probability", "guess_2", "probability_2", "guess_3",
        "probability_3", "truth",
    ]  # fmt: skip
    assert [row["line"] for row in rows] == [str(line) for line in range(2, 23)]
    safe = ["'=1+1", "bag", "shoe"]
    for row, chances in zip(rows, expected, strict=True):
        order = np.argsort(-chances, kind="stable")
        assert [row["guess"], row["guess_2"], row["guess_3"]] == [safe[k] for k in order]
        found = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        np.testing.assert_allclose(found, chances[order], atol=2e-5)
    assert [row["truth"] for row in rows[:3]] == safe


def test_a_csv_without_labels_has_no_truth(folder: Path, capsys) -> None:
    assert predict("bare.csv", "--top", "1", "--out", "o.csv") == 0
    assert "truth" not in capsys.readouterr().out
    rows = rows_of("o.csv")
    assert list(rows[0]) == ["file", "line", "guess", "probability"]
    # A text without quotes could be divided, and its rest be a formula.
    assert Path("o.csv").read_text().startswith('"file","line","guess","probability"\n"bare.csv",')
    assert len(rows) == 21


def test_an_unknown_label_stands_as_it_is(folder: Path) -> None:
    write_csv(folder / "odd.csv", draw(2, 3)[0], ["hat", "bag"])
    assert predict("odd.csv", "--out", "o.csv") == 0
    assert [row["truth"] for row in rows_of("o.csv")] == ["hat", "bag"]


def test_pictures_and_csvs_mixed_by_their_bytes(folder: Path, capsys) -> None:
    Path("a.jpg").rename("=a.csv")
    assert predict("=a.csv", "toy_test.csv", "b.jpg", "c.jpg", "--out", "o.csv") == 0
    captured = capsys.readouterr()
    rows = rows_of("o.csv")
    assert [row["file"] for row in rows] == ["'=a.csv", *["toy_test.csv"] * 21, "b.jpg", "c.jpg"]
    assert [rows[0]["line"], rows[0]["truth"]] == ["", ""]
    assert rows[-1]["line"] == ""
    out = captured.out.splitlines()
    guess = rows[0]["guess"].removeprefix("'")
    assert out[:2] == ["=a.csv", f"  {float(rows[0]['probability']):.4f}  {guess}"]
    assert "=a.csv: 280x280 pixels; trimmed to " in captured.err
    assert "dark on 255 of 255 (the run: on 0), negated" in captured.err


def test_pictures_become_what_the_run_was_trained_on(folder: Path) -> None:
    assert predict("toy_test.csv", "a.jpg", "b.jpg", "c.jpg", "--out", "o.csv") == 0
    rows = rows_of("o.csv")
    for row, picture in zip(rows[:3], rows[-3:], strict=True):
        assert picture["guess"] == row["guess"]
        assert float(picture["probability"]) == pytest.approx(float(row["probability"]), abs=0.1)


def test_the_good_inputs_are_predicted_and_the_bad_ones_named(folder: Path, capsys) -> None:
    Path("bad.png").write_bytes(Path("a.jpg").read_bytes()[:500])
    Path("bad.csv").write_text("label,pixel1\n1,2\n")
    words = ("a.jpg", "bad.png", "none.csv", "bad.csv", "b.jpg", ".", "--out", "o.csv")
    assert predict(*words) == 2
    captured = capsys.readouterr()
    assert [row["file"] for row in rows_of("o.csv")] == ["a.jpg", "b.jpg"]
    assert "bad.png: expected a CSV, PNG or JPEG file, found: a damaged picture" in captured.err
    assert "none.csv: expected a CSV, PNG or JPEG file, found: No such file" in captured.err
    assert "error[E020] bad.csv:1: " in captured.err
    assert "a directory" in captured.err
    last = captured.err.splitlines()[-1]
    assert last == "4 of 6 inputs cannot be read; the other 2 were predicted"


def test_nothing_but_bad_inputs_writes_nothing(folder: Path, capsys) -> None:
    assert predict("none.png", "--out", "o.csv") == 2
    assert "1 of 1 inputs cannot be read; nothing was predicted" in capsys.readouterr().err
    assert not Path("o.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jpg", "--top", "0"], "--top 0: expected a whole number from 1"),
        (["a.jpg", "--out", "."], "expected the name of a file, found a folder"),
        (["toy_test.csv", "--out", "./toy_test.csv"], "expected another file than the inputs"),
    ],
)
def test_bad_flags_are_refused_before_any_work(
    folder: Path, capsys, words: list[str], message: str
) -> None:
    before = Path("toy_test.csv").read_bytes()
    assert predict(*words) == 2
    assert message in capsys.readouterr().err
    assert Path("toy_test.csv").read_bytes() == before


def test_more_classes_than_there_are(folder: Path, capsys) -> None:
    assert predict("a.jpg", "--top", "9", "--out", "o.csv") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert list(rows_of("o.csv")[0])[-1] == "probability_3"


def test_lines_fit_the_terminal(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert predict("toy_test.csv", "a.jpg") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_blocks_of_a_large_csv_are_one_table(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmnist_tf import predict as module

    assert predict("toy_test.csv", "--out", "whole.csv") == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(module, "_PROBABILITIES_AT_ONCE", 12 * 3)
    assert predict("toy_test.csv", "--out", "parts.csv") == 0
    assert capsys.readouterr().out == whole
    # The sixth digit may differ: kernels are chosen by the size of the batch.
    without_last_digits = re.compile(r"(\d\.\d{4})\d\d")
    texts = [
        without_last_digits.sub(r"\1", Path(name).read_text())
        for name in ("parts.csv", "whole.csv")
    ]
    assert texts[0] == texts[1]


def test_negated_rows_and_random_weights_are_said_even_when_quiet(folder: Path, capsys) -> None:
    write_csv(folder / "negated.csv", 255 - draw(9, 4)[0], None)
    assert predict("negated.csv", "toy_test.csv", "--quiet") == 0
    said = capsys.readouterr().err
    assert said.count("negated?") == 1
    assert "negated.csv: its background is 255 of 255, that of the training images 0" in said
    assert "RANDOM backbone weights" in said


def test_a_run_of_an_older_version_takes_csvs_alone(folder: Path, capsys) -> None:
    path = Path("runs/first/provenance.json")
    provenance = json.loads(path.read_text())
    del provenance["data"]["background"]
    path.write_text(json.dumps(provenance))
    assert predict("toy_test.csv", "a.jpg") == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("toy_test.csv")
    assert "found one of an older version; train it again" in captured.err


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\t=1"), ("\r=1", "\\r=1"), ("a\nb", "a\\nb"), ("＝1", "'＝1"),
        ("-3", "-3"), ("T-shirt/top", "T-shirt/top"), ("", ""), ("\u202egpj", "\\u202egpj"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert safe_cell(text) == cell
