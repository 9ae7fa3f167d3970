"""Exports predict what the Keras model does, carry their labels, and report how well they do."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fakerun import change_json
from toyrun import NAMES, WORDS, draw, write_csv

from fmnist_tf import train
from fmnist_tf.data.sources import read_dataset
from fmnist_tf.errors import FmnistError
from fmnist_tf.export import main
from fmnist_tf.exporting import check
from fmnist_tf.exporting.check import check_exports, compare, find_losses
from fmnist_tf.exporting.formats import Export
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import scale

RUN = Path("runs/first")
PIXELS = draw(21, seed=1).reshape(-1, 28, 28)  # the run's test images


@pytest.fixture
def expected(toy_run: Path) -> np.ndarray:
    """What the run recorded for its test images, (21, 3), at its temperature."""
    _, probabilities = RunDir(RUN).read_predictions()
    change_json(RUN / "evaluation.json", calibration={"temperature": 2.0})
    probabilities = scale(probabilities, 2.0)
    assert set(probabilities.argmax(axis=1)) == {0, 1, 2}, "the toy has to tell classes apart"
    return probabilities


def test_saved_model_takes_pixels_and_answers_with_names(
    toy_run: Path, expected: np.ndarray, capfd
) -> None:
    config = json.loads((RUN / "config.json").read_text())
    # The export is the plain network also if the run's test averaged mirror images.
    (RUN / "config.json").write_text(json.dumps(config | {"test_time_flip": True}))
    RunDir(RUN).write_done()
    Path("served").mkdir()  # an empty folder may be used
    assert main(["first", "--format", "saved_model", "--out", "served", "--quiet"]) == 0
    shown = capfd.readouterr()
    signature = tf.saved_model.load("served/1").signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list(), spec.dtype) == ("pixels", [None, 28, 28], tf.uint8)
    for batch in (PIXELS, PIXELS[:1]):
        answer = {name: value.numpy() for name, value in signature(pixels=batch).items()}
        of = expected[: len(batch)]
        assert set(answer) == {"name", "probability", "names", "probabilities"}
        assert {len(value) for value in answer.values()} == {len(batch)}
        np.testing.assert_allclose(answer["probabilities"], of, atol=1e-5)
        np.testing.assert_allclose(answer["probability"], of.max(axis=1), atol=1e-5)
        assert [n.decode() for n in answer["name"]] == [NAMES[k] for k in of.argmax(axis=1)]
        assert answer["names"].astype(str).tolist() == [list(NAMES)] * len(batch)
    for name in ("labels.txt", "1/assets/labels.txt"):
        assert Path("served", name).read_text().splitlines() == list(NAMES)

    report = json.loads(Path("served/export.json").read_text())
    labels, _ = RunDir(RUN).read_predictions()
    correct = int((expected.argmax(axis=1) == labels).sum())
    (found,) = report["exports"]
    assert (found["total"], found["same"], found["correct"]) == (21, 21, correct)
    assert found["largest_difference"] < 1e-5
    assert (report["keras"]["correct"], report["checked"]["images"]) == (correct, 21)
    checksums = json.loads((RUN / "DONE.json").read_text())["files"]["model.keras"]
    assert report["model_sha256"] == checksums["sha256"]
    assert report["keras"]["bytes"] == checksums["bytes"]
    files = [path for path in Path("served/1").rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert 0 < found["latency_ms"] < 1000
    (warning,) = report["warnings"]
    # Nothing of what TensorFlow and its converters write.
    assert shown.err.splitlines() == [f"note: {warning}"]
    *_, of_keras, of_export, _, last = shown.out.splitlines()
    assert f" {correct / 21:.4f} ({correct}/21) |" in of_keras
    assert " 21/21 |" in of_export
    assert last == "served"


def test_litert_runs_without_this_package(toy_run: Path, expected: np.ndarray) -> None:
    assert main(["first", "--format", "litert"]) == 0
    out = RUN / "export/litert"
    for name in ("model.tflite", "model-int8.tflite"):
        with zipfile.ZipFile(out / name) as archive:
            assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
        interpreter = tf.lite.Interpreter(str(out / name))
        interpreter.allocate_tensors()
        (given,), (answered,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert (list(given["shape"]), given["dtype"]) == ([1, 28, 28], np.uint8)
        assert (list(answered["shape"]), answered["dtype"]) == ([1, 3], np.float32)
        found = np.zeros_like(expected)
        for image, probabilities in zip(PIXELS, found, strict=True):
            interpreter.set_tensor(given["index"], image[np.newaxis])
            interpreter.invoke()
            probabilities[:] = interpreter.get_tensor(answered["index"])[0]
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)  # not so in an int8 softmax
        is_int8 = [t["dtype"] == np.int8 for t in interpreter.get_tensor_details()]
        if name == "model.tflite":
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert sum(is_int8) == 0
        else:
            assert sum(is_int8) > 10  # the convolutions' kernels and outputs, and more
    report = json.loads((out / "export.json").read_text())
    # Calibrated with the 60 training images, not with the 21 it is checked with.
    assert [entry["precision"] for entry in report["exports"]] == ["float32", "int8, 60 images"]


def test_int8_that_cannot_run_is_an_error_and_leaves_nothing(toy_run: Path) -> None:
    for name, pixels in (("train", np.zeros((21, 784), np.uint8)), ("test", draw(21, seed=1))):
        write_csv(f"dark_{name}.csv", pixels, [NAMES[row % 3] for row in range(21)])
    plain = ["--data", "toy_train.csv", "--epochs", "8", "--run", "plain", "--standardize", "none"]
    assert train.main([*WORDS, *plain]) == 0
    words = ["--format", "litert", "--data", "dark_train.csv", "--out", "new/phone"]
    assert main(["plain", *words]) == 1  # nothing varies
    assert not list(Path("new").iterdir())


def test_onnx_runs_without_this_package(toy_run: Path, expected: np.ndarray) -> None:
    for package in ("onnx", "tf2onnx"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    runtime = pytest.importorskip("onnxruntime")
    assert main(["first", "--format", "onnx"]) == 0
    session = runtime.InferenceSession(RUN / "export/onnx/model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("pixels", ["N", 28, 28], "tensor(uint8)")
    for batch in (PIXELS, PIXELS[:1]):
        (found,) = session.run(["probabilities"], {"pixels": batch})
        np.testing.assert_allclose(found, expected[: len(batch)], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(NAMES)


def test_onnx_without_its_extra_is_refused(toy_run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    assert main(["first", "--format", "onnx"]) == 2
    assert "[onnx]" in capsys.readouterr().err
    assert not (RUN / "export").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["none"], 2),
        (["first", "--data", "none.csv"], 2),
        (["first", "--data", "other_train.csv"], 2),
        (["first", "--out", "toy_test.csv/below"], 2),
        (["first", "--out", "taken"], 3),
        (["first", "--out", "toy_test.csv"], 3),
    ],
)
def test_bad_usage_writes_nothing(toy_run: Path, words: list[str], code: int) -> None:
    write_csv("other_train.csv", draw(30, seed=0), ["bag", "shoe", "hat"] * 10)
    Path("taken").mkdir()
    Path("taken/note").write_text("mine")
    before = sorted(path for path in toy_run.rglob("*") if "pixels" not in path.parts)
    assert main([*words, "--format", "litert"]) == code
    assert sorted(path for path in toy_run.rglob("*") if "pixels" not in path.parts) == before


def test_a_check_with_training_images_is_told(toy_run: Path) -> None:
    Path("toy_train.csv").rename("images.csv")  # which has no test file beside it
    words = ["--data", "images.csv", "--out", "out", "--quiet"]
    assert main(["first", "--format", "saved_model", *words]) == 0
    warnings = json.loads(Path("out/export.json").read_text())["warnings"]
    assert "the run was trained on the images checked; the accuracy is no test" in warnings


def test_a_float_export_that_disagrees_is_an_error(
    toy_run: Path, toy_classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "N_TIMED", 1)
    dataset = read_dataset("toy_train.csv", store_dir=toy_run, say=print)

    def wrong(images: np.ndarray) -> np.ndarray:
        return toy_classifier(images, training=False).numpy()[:, ::-1]

    small, exact = (Export(RUN / "DONE.json", name, wrong) for name in ("int8", "float32"))
    report = check_exports(toy_classifier, [small], dataset, RUN, threads=1)
    assert report["exports"][0]["differ_clearly"] > 0
    with pytest.raises(FmnistError):
        check_exports(toy_classifier, [small, exact], dataset, RUN, threads=1)


def test_compare_tells_ties_from_mistakes() -> None:
    expected = np.array([[0.6, 0.3, 0.1], [0.4, 0.3996, 0.2004], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    found = np.array([[0.6, 0.3, 0.1], [0.3996, 0.4, 0.2004], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    agreement = compare(expected, found, np.array([0, 1, 2, 0]))
    assert agreement == {
        "total": 4, "same": 2, "differ_clearly": 1, "largest_difference": pytest.approx(0.2),
        "correct": 3, "keras_correct": 3,
    }  # fmt: skip


def test_a_loss_of_accuracy_is_named() -> None:
    entries = [{"path": "a", "correct": 895}, {"path": "b", "correct": 894}]
    report = {"checked": {"images": 1000}, "keras": {"correct": 900}, "exports": entries}
    (warning,) = find_losses(report)
    assert warning.startswith("b ")  # loses more than half a point of accuracy
