"""The model card: numbers of the run, the template's headings, and no broken Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fakerun import HOSTILE, NAMES, change_json, make_run

from fmnist_tf.reporting.model_card import write_model_card
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import measure_scaling

N_HEADINGS = 19  # of the template


def card_of(run: RunDir) -> str:
    write_model_card(run)
    text = run.file("README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    lines = text.replace(code, "").splitlines()
    assert sum(line.startswith("#") for line in lines) == N_HEADINGS
    return text


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_it_has_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", weights__kind="random")
    text = card_of(run)
    test = run.read_json("evaluation.json")["test"]
    assert f"      value: {test['accuracy']}\n" in text
    assert f"| test | {test['correct']} of 60 | {test['accuracy']:.4f} |" in text
    assert "RANDOM" in text
    assert "SAMPLE" not in text
    for file in run.read_json("provenance.json")["data"]["files"]:
        assert file["sha256"] in text


def test_its_metadata_are_what_a_hub_takes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", data__kind="official")
    labels, probabilities = run.read_predictions()
    scaling = measure_scaling(labels, probabilities, 0.5)
    change_json(run.file("evaluation.json"), calibration=scaling)
    text = card_of(run)
    assert f"error on the test images is {scaling['before']['ece']:.4f}" in one_line(text)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "unknown"
    assert head["datasets"] == ["zalando-datasets/fashion_mnist"]
    assert (head["library_name"], head["metrics"]) == ("keras", ["accuracy"])
    assert "base_model" not in head  # it would have to be the ID of a model on the Hub
    assert "datasets" not in yaml.safe_load(card_of(make_run(tmp_path / "b")).split("---\n")[1])

    repocard = pytest.importorskip("huggingface_hub.repocard")
    data = repocard.ModelCard(text).data
    (result,) = data.eval_results
    assert (data.model_name, result.dataset_type) == ("a", head["datasets"][0])
    assert result.metric_value == run.read_json("evaluation.json")["test"]["accuracy"]


def test_it_names_the_layers_and_mirror_images_where_there_are_some(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    text = card_of(run)
    assert "resize to 16 pixels, toy, gap, Dense(8), Dropout(0.5), softmax -" in one_line(text)
    assert "bilinear" in text
    assert "mirror" not in text
    changes = {"image_size": 28, "units": 0, "dropout": 0.0, "test_time_flip": True}
    change_json(run.file("config.json"), **changes)
    text = card_of(run)
    assert "a Keras model: toy, gap, softmax -" in one_line(text)
    assert "bilinear" not in text
    assert "mirror" in text


def test_its_first_steps_work(tmp_path: Path, monkeypatch, capsys) -> None:
    import keras

    run = make_run(tmp_path / "a")
    network = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    keras.Sequential(network).save(run.file("model.keras"))
    monkeypatch.chdir(run.path)
    exec(card_of(run).split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.splitlines()[-1] in NAMES


def test_hostile_texts_are_shown_unchanged(tmp_path: Path) -> None:
    names = [*HOSTILE, "a|b`c\n# no heading", "x" * 10_000]
    run = make_run(
        tmp_path / "a", names=names, data__warnings=["WARNING\nthe sample", "**W040**\n# no"],
        command="`x`\n# no heading", data__kind="sample",
    )  # fmt: skip
    change_json(run.file("evaluation.json"), dataset="a\n---\nb: c")
    text = card_of(run)
    assert r"\<script\>document.title='pwned'\</script\>" in text
    assert r"a\|b\`c\\n\# no heading" in text
    assert r"> **\*\*W040\*\*\\n\# no**" in text
    assert "`'x'\\n# no heading`" in text
    assert json.dumps("a\n---\nb: c") in text.split("---\n")[1]
    assert "SAMPLE" in text
    assert "WARNING" not in text
    assert "\u202e" not in text
    assert "x" * 201 not in text
