"""The command from end to end: CSVs and pictures in, tables and a safe CSV out."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fakerun import change_json
from forms import idx, write
from PIL import Image
from toyrun import draw, write_csv

from fmnist_tf.predict import main, safe_cell
from fmnist_tf.results.temperature import scale


@pytest.fixture
def folder(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy run's folder with an unlabelled CSV and a picture of each class."""
    pixels = draw(21, seed=1)
    write_csv("bare.csv", pixels, None)
    for image, name in zip(pixels[:3], "abc", strict=True):
        large = Image.fromarray(255 - image.reshape(28, 28)).resize((280, 280), 0)
        large.save(f"{name}.jpg", quality=95)
    monkeypatch.setenv("COLUMNS", "100")
    return toy_run


def predict(*words: str, code: int = 0) -> list[dict[str, str]]:
    """Return the rows of --out."""
    assert main(["first", *words, "--out", "o.csv"]) == code
    with open("o.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_images_get_the_same_rows_in_every_form(folder: Path) -> None:
    pixels = draw(21, seed=1)
    write(folder / "t10k-images-idx3-ubyte.gz", idx(pixels.reshape(-1, 28, 28)))
    np.savez("x.npz", x_train=pixels[:3], x_test=pixels)
    with zipfile.ZipFile("one.zip", "w") as archive:
        archive.write("bare.csv")
    expected = [(row["prediction"], row["probability"]) for row in predict("bare.csv")]
    for name in ("t10k-images-idx3-ubyte.gz", "x.npz", "one.zip", "one.zip/bare.csv"):
        found = predict(name)
        assert [(row["prediction"], row["probability"]) for row in found] == expected
        assert {row["file"] for row in found} == {name}


def test_a_csv_gets_the_probabilities_that_the_run_recorded(folder: Path, capsys) -> None:
    change_json(Path("runs/first/evaluation.json"), calibration={"temperature": 2.0})
    found = predict("toy_test.csv")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "toy_test.csv"
    assert out[1].split() == ["line", "true", "label", "prediction"]
    assert len(out) == 13
    assert list(found[0]) == [
        "file", "line", "prediction", "probability", "prediction_2", "probability_2",
        "prediction_3", "probability_3", "true_label",
    ]  # fmt: skip
    assert [row["line"] for row in found] == [str(line) for line in range(2, 23)]
    safe = ["'=1+1", "bag", "shoe"]
    with np.load("runs/first/predictions.npz") as arrays:
        recorded = arrays["probabilities"]
    recorded = scale(recorded, 2.0)
    for row, expected in zip(found, recorded, strict=True):
        order = np.argsort(-expected, kind="stable")
        names = [row[name] for name in ("prediction", "prediction_2", "prediction_3")]
        assert names == [safe[k] for k in order]
        values = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        np.testing.assert_allclose(values, expected[order], atol=2e-5)
    assert [row["true_label"] for row in found[:3]] == safe
    # Without --out the same first rows are printed.
    assert main(["first", "toy_test.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == out


def test_an_unlabelled_csv_has_no_true_labels(folder: Path, capsys) -> None:
    found = predict("bare.csv", "--top", "1")
    assert list(found[0]) == ["file", "line", "prediction", "probability"]
    assert len(found) == 21
    assert "true" not in capsys.readouterr().out
    # A text without quotes could be split, and its rest be a formula.
    assert all(line.startswith('"bare.csv",') for line in Path("o.csv").read_text().split()[1:])


def test_an_unknown_label_is_shown_unchanged(folder: Path) -> None:
    write_csv("odd.csv", draw(2, seed=3), ["hat", "bag"])
    assert [row["true_label"] for row in predict("odd.csv")] == ["hat", "bag"]


def test_pictures_and_csvs_are_told_apart_by_their_bytes(folder: Path, capsys) -> None:
    Path("a.jpg").rename("=a.csv")
    found = predict("=a.csv", "toy_test.csv", "b.jpg", "c.jpg")
    assert [row["file"] for row in found] == ["'=a.csv", *["toy_test.csv"] * 21, "b.jpg", "c.jpg"]
    assert [found[0]["line"], found[0]["true_label"], found[-1]["line"]] == ["", "", ""]
    prediction = found[0]["prediction"].removeprefix("'")
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["=a.csv", f"  {float(found[0]['probability']):.4f}  {prediction}"]
    # The pictures show the first three images of the CSV, enlarged and negated.
    for row, picture in zip(found[1:4], [found[0], *found[-2:]], strict=True):
        assert picture["prediction"] == row["prediction"]
        assert float(picture["probability"]) == pytest.approx(float(row["probability"]), abs=0.1)


def test_good_inputs_are_predicted_and_bad_ones_named(folder: Path, capsys) -> None:
    Path("bad.png").write_bytes(Path("a.jpg").read_bytes()[:500])
    Path("bad.csv").write_text("label,pixel1\n1,2\n")
    found = predict("a.jpg", "bad.png", "none.csv", "bad.csv", ".", "b.jpg", code=2)
    assert [row["file"] for row in found] == ["a.jpg", "b.jpg"]
    *_, png, none, table, directory, last = capsys.readouterr().err.splitlines()
    starts = {png: "bad.png: ", none: "error[E001] none.csv: ", directory: "error[E002] .: ",
              table: "error[E020] bad.csv:1: "}  # fmt: skip
    assert all(line.startswith(start) for line, start in starts.items())
    assert last.startswith("4 of 6 inputs")


@pytest.mark.parametrize(
    "words",
    [["none.png", "--out", "o.csv"], ["a.jpg", "--top", "0"], ["a.jpg", "--out", "."],
      ["toy_test.csv", "--out", "./toy_test.csv"],
      ["toy_{test,train}.csv", "--out", "toy_test.csv"],
      ["one.zip/bare.csv", "--out", "one.zip"],
      ["a.jpg", "--save-crops", "toy_test.csv/x"], ["a.jpg", "--save-crops", "b.jpg"]],
)  # fmt: skip
def test_bad_usage_writes_nothing(folder: Path, capsys, words: list[str]) -> None:
    with zipfile.ZipFile("one.zip", "w") as archive:
        archive.write("bare.csv")
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert main(["first", *words]) == 2
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before


def test_the_table_fits_the_terminal(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["first", "toy_test.csv", "a.jpg", "--top", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines[lines.index("a.jpg") :]) == 4  # three classes


def test_warnings_are_shown_even_when_quiet(folder: Path, capsys) -> None:
    write_csv("negated.csv", 255 - draw(9, seed=4), None)
    corner = np.full((200, 200), 250, np.uint8)
    corner[90:, 110:] = 30  # a doubtful object
    Image.fromarray(corner).save("corner.png")
    assert main(["first", "negated.csv", "toy_test.csv", "a.jpg", "--quiet"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("W050 negated.csv: ") == shown.count("W05") == 1
    assert "RANDOM" in shown
    assert "--save-crops" not in shown
    assert main(["first", "corner.png", "--quiet"]) == 0
    assert "--save-crops" in capsys.readouterr().err


def test_crops_are_what_the_network_saw(folder: Path) -> None:
    (folder / "x").mkdir()
    Path("b.jpg").rename("x/a.jpg")
    assert main(["first", "a.jpg", "x/a.jpg", "toy_test.csv", "--save-crops", "new/crops"]) == 0
    assert sorted(p.name for p in Path("new/crops").iterdir()) == ["a-28x28-2.png", "a-28x28.png"]
    large = predict("a.jpg", "x/a.jpg")
    small = predict("new/crops/a-28x28.png", "new/crops/a-28x28-2.png", "--save-crops", "new/crops")
    for field in ("prediction", "probability", "probability_2"):
        assert [row[field] for row in small] == [row[field] for row in large]
    assert len(list(Path("new/crops").iterdir())) == 4


def test_no_cell_is_a_formula() -> None:
    texts = ["=1+1", "+cmd", "-x", "@SUM(A1)", "＝1"]
    assert [safe_cell(text) for text in texts] == [f"'{text}" for text in texts]
    harmless = {"\t=1": "\\t=1", "\r=1": "\\r=1", "a\nb": "a\\nb", "\u202egpj": "\\u202egpj"}
    harmless |= {"-3": "-3", "T-shirt/top": "T-shirt/top", "": ""}
    assert {text: safe_cell(text) for text in harmless} == harmless
