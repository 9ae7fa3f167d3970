"""Exports answer as the Keras model does, carry their labels, and say how well they do."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_train import QUICK, write_csv
from toy import build_toy_spec

from fmnist_tf import export, train
from fmnist_tf.export import ONNX_PACKAGES, compare, main
from fmnist_tf.exporting import formats
from fmnist_tf.model.backbones import BACKBONES
from fmnist_tf.pipeline.saved_run import read_saved_run
from fmnist_tf.results.rundir import RunDir

NAMES = ["3", "7", "20"]
RUN = Path("runs/first")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: a finished toy run, runs/first, and its data."""
    path = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setitem(BACKBONES, "toy", build_toy_spec())
        write_csv(path / "toy_train.csv", 90, seed=0)
        write_csv(path / "toy_test.csv", 21, seed=1)
        words = ["--phase", "frozen", *QUICK, "--epochs", "20", "--learning-rate", "0.01"]
        assert train.main([*words, "--run", "first"]) == 0
        yield path


@pytest.fixture
def pixels(folder: Path) -> np.ndarray:
    """The test images, (21, 28, 28) uint8."""
    rows = np.loadtxt("toy_test.csv", delimiter=",", skiprows=1, dtype=int)[:, 1:]
    return rows.reshape(-1, 28, 28).astype(np.uint8)


@pytest.fixture
def expected(folder: Path) -> np.ndarray:
    """What the saved Keras model answered to them, (21, 3)."""
    _, probabilities = RunDir(RUN).read_predictions()
    assert len(set(probabilities.argmax(axis=1))) > 1, "the toy has to tell classes apart"
    return probabilities


def export_to(name: str, out: Path, *words: str) -> dict:
    assert main(["first", "--format", name, "--out", str(out), *words]) == 0
    return json.loads((out / "export.json").read_text())


def test_saved_model_takes_pixels_and_answers_with_names(
    folder: Path, tmp_path: Path, pixels: np.ndarray, expected: np.ndarray
) -> None:
    export_to("saved_model", tmp_path / "served")
    loaded = tf.saved_model.load(tmp_path / "served/1")
    signature = loaded.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list(), spec.dtype) == ("pixels", [None, 28, 28], tf.uint8)
    for batch in (pixels, pixels[:1]):
        answer = {name: value.numpy() for name, value in signature(pixels=batch).items()}
        of = expected[: len(batch)]
        assert set(answer) == {"name", "probability", "names", "probabilities"}
        assert {len(value) for value in answer.values()} == {len(batch)}
        np.testing.assert_allclose(answer["probabilities"], of, atol=1e-5)
        np.testing.assert_allclose(answer["probability"], of.max(axis=1), atol=1e-5)
        assert [n.decode() for n in answer["name"]] == [NAMES[k] for k in of.argmax(axis=1)]
        assert answer["names"].astype(str).tolist() == [NAMES] * len(batch)
    assert (tmp_path / "served/1/assets/labels.txt").read_text().split() == NAMES


def test_an_averaging_run_exports_its_plain_network(
    folder: Path, tmp_path: Path, pixels: np.ndarray, expected: np.ndarray, capsys
) -> None:
    run = tmp_path / "averaging"
    shutil.copytree(RUN, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"test_time_flip": True}))
    assert main([str(run), "--format", "saved_model", "--out", str(tmp_path / "served")]) == 0
    assert "this is the plain network" in capsys.readouterr().err
    answer = tf.saved_model.load(tmp_path / "served/1").signatures["serving_default"](pixels=pixels)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


def test_litert_is_called_without_this_package(
    folder: Path, tmp_path: Path, pixels: np.ndarray, expected: np.ndarray
) -> None:
    export_to("litert", tmp_path / "phone")
    for name, tolerance in (("model.tflite", 1e-5), ("model-int8.tflite", 0.1)):
        path = tmp_path / "phone" / name
        with zipfile.ZipFile(path) as behind:
            assert behind.read("labels.txt").decode().split() == NAMES
        interpreter = tf.lite.Interpreter(str(path))
        interpreter.allocate_tensors()
        (given_to,), (answered,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert (list(given_to["shape"]), given_to["dtype"]) == ([1, 28, 28], np.uint8)
        assert (list(answered["shape"]), answered["dtype"]) == ([1, 3], np.float32)
        for image, probabilities in zip(pixels, expected, strict=True):
            interpreter.set_tensor(given_to["index"], image[np.newaxis])
            interpreter.invoke()
            found = interpreter.get_tensor(answered["index"])[0]
            np.testing.assert_allclose(found, probabilities, atol=tolerance)
            assert found.sum() == pytest.approx(1, abs=1e-5)  # an int8 softmax does not
    assert (tmp_path / "phone/labels.txt").read_text().split() == NAMES


def ranges(path: Path) -> list[float]:
    """The scale of every int8 tensor."""
    details = tf.lite.Interpreter(str(path)).get_tensor_details()
    return [detail["quantization"][0] for detail in details if detail["dtype"] == np.int8]


def test_int8_is_int8_and_its_ranges_are_of_training_images(folder: Path, tmp_path: Path) -> None:
    found = {}
    for brighter in ("none", "test", "train"):
        (tmp_path / brighter).mkdir()
        for name in ("train", "test"):
            header, *rows = Path(f"toy_{name}.csv").read_text().splitlines()
            if name == brighter:
                cells = [row.split(",") for row in rows]
                rows = [",".join([k, *(str(int(v) // 2 + 127) for v in vs)]) for k, *vs in cells]
            (tmp_path / brighter / f"toy_{name}.csv").write_text("\n".join([header, *rows]))
        out = tmp_path / brighter / "out"
        export_to("litert", out, "--data", str(tmp_path / brighter / "toy_train.csv"))
        found[brighter] = ranges(out / "model-int8.tflite")
    assert len(found["none"]) > 10  # the convolutions' kernels and results, and more
    assert found["none"] == found["test"]
    assert found["none"] != found["train"]
    assert not ranges(tmp_path / "none/out/model.tflite")


def test_int8_that_cannot_run_is_an_error(folder: Path, tmp_path: Path, capsys) -> None:
    write_csv(tmp_path / "dark_test.csv", 21, seed=1)
    header, *rows = (tmp_path / "dark_test.csv").read_text().splitlines()
    rows = [",".join([row.split(",")[0], *["0"] * 784]) for row in rows]  # nothing varies
    (tmp_path / "dark_train.csv").write_text("\n".join([header, *rows]))
    data = str(tmp_path / "dark_train.csv")
    out = tmp_path / "phone"
    assert main(["first", "--format", "litert", "--data", data, "--out", str(out)]) == 1
    assert "model-int8.tflite: expected a file that LiteRT runs" in capsys.readouterr().err
    assert not list(tmp_path.glob("*phone*"))


def test_a_loss_of_accuracy_is_said_and_written(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "INT8_LOSS", -0.01)
    report = export_to("litert", tmp_path / "phone")
    correct = report["exports"][1]["correct"]
    warning = f"model-int8.tflite loses 0.00% of accuracy: {correct} of 21 test images right"
    assert any(text.startswith(warning) for text in report["warnings"])
    assert "| WARNING: model-int8.tflite loses" in capsys.readouterr().err


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ONNX_PACKAGES),
    reason="the extra [onnx] is not installed",
)
def test_onnx_is_called_without_this_package(
    folder: Path, tmp_path: Path, pixels: np.ndarray, expected: np.ndarray
) -> None:
    import onnxruntime

    report = export_to("onnx", tmp_path / "onnx")
    assert report["exports"][0]["same"] == 21
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("pixels", ["N", 28, 28], "tensor(uint8)")
    ]
    for batch in (pixels, pixels[:1]):
        (found,) = session.run(["probabilities"], {"pixels": batch})
        np.testing.assert_allclose(found, expected[: len(batch)], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == NAMES


def test_onnx_without_its_extra_says_what_to_install(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    assert main(["first", "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert "found no tf2onnx" in said
    assert "pip install -e '.[onnx]'" in said
    assert not (RUN / "export/onnx").exists()


def test_what_was_found_is_written_and_shown(folder: Path, expected: np.ndarray, capfd) -> None:
    assert main(["runs/first", "--format", "saved_model"]) == 0
    shown, said = capfd.readouterr()
    report = json.loads((RUN / "export/saved_model/export.json").read_text())
    labels, _ = RunDir(RUN).read_predictions()
    correct = int((expected.argmax(axis=1) == labels).sum())
    (found,) = report["exports"]
    assert (found["total"], found["same"], found["correct"]) == (21, 21, correct)
    assert found["largest_difference"] < 1e-5
    assert report["keras"]["correct"] == correct
    assert report["checked"] | {"file_sha256": ""} == {
        "dataset": "toy", "file_sha256": "", "images": 21, "of": 21,
    }  # fmt: skip
    checksums = json.loads((RUN / "DONE.json").read_text())["files"]
    assert report["model_sha256"] == checksums["model.keras"]["sha256"]
    assert report["keras"]["bytes"] == checksums["model.keras"]["bytes"]
    files = [path for path in (RUN / "export/saved_model/1").rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert 0 < found["latency_ms"] < 1000
    assert report["warnings"] == ["RANDOM backbone weights, never pretrained"]
    first, _, header, _, of_keras, of_export, _, last = shown.splitlines()
    assert first.startswith("toy, 21 of 21 test images; latency of one image, median of 50 calls, ")
    assert header == "| model | same class | largest difference | accuracy | latency | size |"
    assert of_keras.startswith(f"| model.keras |  |  | {correct / 21:.4f} ({correct}/21) | ")
    assert of_export.startswith("| SavedModel | 21/21 | ")
    assert last == "runs/first/export/saved_model"
    # Nothing of what TensorFlow and its converters say.
    assert [line for line in said.splitlines() if not line.startswith(("toy_", "test set"))] == [
        "note: RANDOM backbone weights, never pretrained",
        "converting to saved_model",
        "checking what was written",
    ]


@pytest.mark.parametrize("columns", ["label", "grade,label"])
def test_labels_are_in_the_runs_own_column_or_found(
    folder: Path, tmp_path: Path, columns: str
) -> None:
    run = read_saved_run(RunDir(RUN))
    run = replace(run, config=run.config.replace(label_column="grade"))
    path = tmp_path / "graded_train.csv"
    write_csv(path, 60, seed=0)
    if columns != "label":
        header, *rows = path.read_text().splitlines()
        lines = [f"{columns}{header.removeprefix('label')}"]
        lines += [f"{row.split(',')[0]},x,{row.split(',', 1)[1]}" for row in rows]
        path.write_text("\n".join(lines))
    dataset = export._read_data(run, str(path), str(tmp_path))
    counts = np.bincount(dataset.train.labels) + np.bincount(dataset.test.labels)
    assert counts.tolist() == [20, 20, 20]


def test_an_export_is_never_overwritten(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/note").write_text("mine")
    for taken in (tmp_path / "taken", tmp_path / "taken/note"):
        assert main(["first", "--format", "litert", "--out", str(taken)]) == 3
        assert "exists already, and an export is never overwritten" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note"]
    below = tmp_path / "taken/note/below"
    assert main(["first", "--format", "litert", "--out", str(below)]) == 2
    assert "expected a folder, found" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    export_to("saved_model", tmp_path / "empty")


def test_a_float_export_that_disagrees_is_an_error(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = formats._inference

    def in_training_mode(model: keras.Model, batch: int | None):
        return right(lambda pixels, training: model(255 - pixels, training=True), batch)

    monkeypatch.setattr(formats, "_inference", in_training_mode)
    assert main(["first", "--format", "saved_model", "--out", str(tmp_path / "new/wrong")]) == 1
    said = capsys.readouterr().err
    assert "1: expected the answers of model.keras, found another class for" in said
    assert "nothing was exported" in said
    assert not list((tmp_path / "new").iterdir())


BAD = {
    "no such run": (["none"], "expected a run directory, found no such folder"),
    "no such data": (["first", "--data", "none.csv"], "error[E001] none.csv"),
    "other classes": (
        ["first", "--data", "other_train.csv"],
        "expected the run's classes (3, 7, 20), found 21",
    ),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_clear_error(
    folder: Path, capsys, words: list[str], message: str
) -> None:
    write_csv(folder / "other_train.csv", 30, seed=0)
    text = (folder / "other_train.csv").read_text()
    (folder / "other_train.csv").write_text(text.replace("\n20,", "\n21,"))
    assert main([*words, "--format", "litert"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (RUN / "export/litert").exists()


def test_compare_tells_ties_from_mistakes() -> None:
    expected = np.array([[0.6, 0.3, 0.1], [0.4, 0.3996, 0.2004], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    found = np.array([[0.6, 0.3, 0.1], [0.3996, 0.4, 0.2004], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    agreement = compare(expected, found, np.array([0, 1, 2, 0]))
    assert (agreement.total, agreement.same, agreement.differ_clearly) == (4, 2, 1)
    assert (agreement.correct, agreement.keras_correct) == (3, 3)
    assert agreement.largest_difference == pytest.approx(0.2)


def test_held_stderr_keeps_noise_and_passes_errors_on(capfd) -> None:
    with formats._held_stderr():
        os.write(2, b"W0000 00:00:1 noise\nE0000 00:00:1 something broke\n")
    assert capfd.readouterr().err == "E0000 00:00:1 something broke\n"

    def fail() -> None:
        os.write(2, b"I0000 00:00:1 what led to it\n")
        raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"), formats._held_stderr():
        fail()
    assert capfd.readouterr().err == "I0000 00:00:1 what led to it\n"


def test_latency_is_a_median_of_single_images() -> None:
    shapes = []

    def classify(pixels: np.ndarray) -> np.ndarray:
        shapes.append(pixels.shape)
        return pixels

    assert export.measure_latency(classify, np.zeros((3, 28, 28), np.uint8)) >= 0
    assert set(shapes) == {(1, 28, 28)}
    assert len(shapes) == export.N_WARM_UP + export.N_TIMED
