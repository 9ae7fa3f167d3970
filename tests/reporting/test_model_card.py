"""The model card says what the run's files say, under the template's headings, harmlessly."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_train import copy_frozen, write_csv

from fmnist_tf.reporting.model_card import escape_markdown, write_model_card
from fmnist_tf.results.rundir import RunDir

HEADINGS = [
    "# Model Card for first", "## Model Details", "## Uses", "### Direct Use",
    "### Out-of-Scope Use", "## Bias, Risks, and Limitations",
    "## How to Get Started with the Model", "## Training Details", "### Training Data",
    "### Training Procedure", "#### Preprocessing", "#### Training Hyperparameters",
    "#### Speeds, Sizes, Times", "## Evaluation", "### Testing Data, Factors & Metrics",
    "### Results", "## Model Examination", "## Environmental Impact", "## Technical Specifications",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, toy_spec, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "toy_train.csv", 60, seed=0)
    write_csv(tmp_path / "toy_test.csv", 21, seed=1)
    return RunDir(copy_frozen())


def test_headings_and_figures(run: RunDir) -> None:
    text = run.file("README.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS
    test = run.read_json("evaluation.json")["test"]
    assert f"      value: {test['accuracy']}\n" in text
    assert f"| test | {test['correct']} of 21 | {test['accuracy']:.4f} |" in text
    assert "> **RANDOM backbone weights, never pretrained**" in text
    assert "SAMPLE" not in text
    for file in run.read_json("provenance.json")["data"]["files"]:
        assert file["sha256"] in text
    assert text.startswith("---\nlibrary_name: keras\n")


@pytest.mark.parametrize(
    ("changes", "network", "preprocessing"),
    [
        ({}, " resize to 16 pixels,\n  toy, flatten, Dense(8), Dropout(0.5), softmax",
         " bilinear resize, the channels"),
        ({"image_size": 28, "units": 0, "dropout": 0.0}, "\n  toy, flatten, softmax",
         " the channels"),
    ],
)  # fmt: skip
def test_only_the_layers_that_there_are_are_named(
    run: RunDir, changes: dict, network: str, preprocessing: str
) -> None:
    run.write_json("config.json", run.read_json("config.json") | changes)
    write_model_card(run)
    text = run.file("README.md").read_text()
    assert f"a Keras Sequential:{network}\n" in text
    assert f"Part of the model:{preprocessing} and the value range" in text


def test_the_first_steps_it_shows_work(run: RunDir, monkeypatch, capsys) -> None:
    text = run.file("README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run.path)
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] in ("3", "7", "20")


def test_hostile_names_are_shown_as_they_are(run: RunDir) -> None:
    names = ["<script>alert(1)</script>", "a|b`c\n# no heading", "\u202egnp.exe" + "x" * 10_000]
    run.write_json("labels.json", {str(k): name for k, name in enumerate(names)})
    write_model_card(run)
    text = run.file("README.md").read_text()
    assert r"\<script\>alert(1)\</script\>" in text
    assert r"a\|b\`c\\n\# no heading" in text
    assert "\u202e" not in text
    assert "x" * 201 not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS


def test_the_sample_is_said(run: RunDir) -> None:
    provenance = run.read_json("provenance.json")
    provenance["data"]["kind"] = "sample"
    provenance["data"]["warnings"] = ["WARNING: the sample\nof something", "W040 two are alike"]
    run.write_json("provenance.json", provenance)
    write_model_card(run)
    text = run.file("README.md").read_text()
    assert "> **built-in SAMPLE of handwritten digits**" in text
    assert "> **W040 two are alike**" in text
    assert "of something" not in text


def test_averaging_over_mirror_images_is_said_where_it_was_done(run: RunDir) -> None:
    assert "mirror" not in run.file("README.md").read_text()
    run.write_json("config.json", run.read_json("config.json") | {"test_time_flip": True})
    write_model_card(run)
    text = run.file("README.md").read_text()
    assert "average the probabilities of each image and its mirror image" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS


def test_escaping() -> None:
    assert escape_markdown("**bold** [x](y) $z$ ~a~ &amp;") == (
        r"\*\*bold\*\* \[x\](y) \$z\$ \~a\~ \&amp;"
    )
