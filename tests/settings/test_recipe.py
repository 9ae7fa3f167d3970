"""Recipes are valid, flags override them, config.json gives the same run, bad files say why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakerun import change_json, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.pipeline.resolve import Request, read_settings
from fmnist_tf.settings.complete import Settings
from fmnist_tf.settings.config import AUGMENTATIONS, RunConfig
from fmnist_tf.settings.recipe import read_recipe
from fmnist_tf.train import build_parser, main

NAMES = [
    "convnext-tiny", "efficientnet", "fast", "inceptionv3", "lite", "mlp", "mobilenetv3",
    "resnet18", "resnet50", "resnet50-16px", "resnet8", "resnet8p", "vgg16",
]  # fmt: skip


def ask(*words: str) -> RunConfig:
    """Return the settings that `train` would use."""
    settings, _ = read_settings(Request.of(build_parser().parse_args(words)))
    return settings.complete()[0]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def to_toml(settings: dict[str, Any]) -> str:
    """Write settings as TOML, whose strings, lists and numbers are JSON's; it has no null."""
    values = {name: value for name, value in settings.items() if value is not None}
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_of_every_recipe_is_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert {"what", "source", "published"} <= set(recipe.about)
    assert tuple(recipe.phases) in (("frozen", "finetune"), ("frozen",), ("scratch",))
    parent = None
    for phase in recipe.phases:
        own = recipe.settings_of(phase)
        config, _ = Settings({}, own, recipe.name, parent, "mother" if parent else None).complete()
        assert config.phase == phase
        assert {"backbone", "epochs", "batch_size", "learning_rate", "optimizer"} <= set(own)
        parent = config


def test_a_recipe_is_found_before_a_file_of_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mlp", "epochs = 77")
    assert ask("--recipe", "mlp").epochs == 20
    assert ask("--recipe", "./mlp").epochs == 77


@pytest.mark.parametrize("name", ["r.toml", "r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_without_sections_is_all_settings(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path / name, f'{mark}epochs = 5\r\naugment = ["flip"]\r\ndropout = 0\r\n')
    config = ask("--recipe", path)
    assert (config.phase, config.epochs, config.augment) == ("frozen", 5, ("flip",))
    assert repr(config.dropout) == "0.0"
    assert ask("--recipe", path, "--phase", "scratch").phase == "scratch"


def test_sections_of_phases_override_the_shared_one(tmp_path: Path, capsys) -> None:
    sections = "[settings]\nbackbone='toy'\nepochs=5\n[scratch]\nseed=1\n[frozen]\nepochs=7\n"
    path = write(tmp_path / "r.toml", sections)
    frozen, scratch = ask("--recipe", path), ask("--recipe", path, "--phase", "scratch")
    assert (frozen.phase, frozen.backbone, frozen.epochs, frozen.seed) == ("frozen", "toy", 7, 0)
    assert (scratch.phase, scratch.epochs, scratch.seed) == ("scratch", 5, 1)
    assert main(["--recipe", path, "--phase", "finetune"]) == 2
    assert capsys.readouterr().err == f"--phase finetune: {path} has frozen, scratch\n"


# Content -> how its error begins; {} is the file.
BAD = {
    "epoch = 3": "unknown setting epoch in {}; did you mean ",
    "learning-rate = 1": "unknown setting learning-rate in {}; did you mean ",
    "[finetune]\nunfreze = []": "unknown setting unfreze in [finetune] of {}; did you mean",
    '"a\\u001b[31m" = 1': "unknown setting a\\x1b[31m in {}; expected ",
    "[frosen]": "unknown section frosen in {}; did you mean ",
    "epochs = 3\n[frozen]": "epochs in {} is in no section; expected ",
    "[about]\nwat = ''": "unknown key of [about] wat in {}; did you mean ",
    "[about]\nours = 0.9": "ours in {} is 0.9; expected ",
    "[settings]\nphase = 'frozen'\n[scratch]": "phase in {} is set; expected ",
    "epochs = '3'": "epochs in {} is '3'; expected ",
    "[frozen]\nunits = 2.5": "units in [frozen] of {} is 2.5; expected ",
    'cache = "a\\u0000"': "cache in {} is 'a\\x00'; expected ",
    "seed = 2026-01-01": "seed in {} is datetime.date(2026, 1, 1); expected ",
    "parent = 'first'": "parent in {} is 'first'; expected ",
    "seed = 0x" + "f" * 5000: "{}: expected ",
    "augment = " + "[" * 5000: "{}: expected ",
    "epochs = 3\nepochs = 4\n": "{}: expected ",
    b"# 1\nhead = '\xff'": "{}: expected ",
    b"#" * 65_537: "--recipe {}: expected ",
    '{"epochs": 3,\n "units" 4}': "{}: expected ",
    '{"epochs": 3}]': "{}: expected ",
    '{"seed": null}': "seed in {} is None; expected ",
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: str(content[:20]))
def test_a_bad_file_gets_one_clear_error(content: str | bytes, tmp_path: Path, capsys) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / ("r.json" if data.startswith(b"{") else "r.toml")
    path.write_bytes(data)
    assert main(["--recipe", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(BAD[content].replace("{}", str(path)))
    assert message.count("\n") == 1
    assert len(message) < 700


def test_a_json_list_is_no_recipe_and_the_largest_file_is(tmp_path: Path) -> None:
    assert main(["--recipe", write(tmp_path / "r.json", "[3]")]) == 2
    path = write(tmp_path / "r.toml", "epochs = 5\n" + "#" * (65_536 - 11))
    assert ask("--recipe", path).epochs == 5


def test_what_is_no_file_is_wrong_usage(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("run").mkdir()
    write(Path("run/config.json"), "{}")
    for words, beginning in {
        "resnet5": "--recipe resnet5: no recipe and no file has this name; did you mean resnet50",
        "none.toml": "--recipe none.toml: no recipe and no file has this name; expected convnext",
        ".": "--recipe .: expected a file, found a folder\n",
        "run": "--recipe run: expected a file, found a folder; its settings are in run/config.json",
        "pipe": "--recipe pipe: expected a file, found something else",
        "a" * 5000: "--recipe aaa",
        "a\x1b\n": "--recipe a\\x1b\\n: no recipe",
        "mlp --phase frozen": "--phase frozen: recipe mlp has scratch",
        "mlp --from x": "--from RUN",
        "mlp --epochs 0": "--epochs 0: ",
        "resnet50-16px --optimizer adam": "momentum in recipe resnet50-16px is 0.8; ",
        "resnet50 --phase finetune": "--phase finetune continues a complete frozen run",
    }.items():
        assert main(["--recipe", *words.split(" ")]) == 2
        message = capsys.readouterr().err
        assert message.startswith(beginning)
        assert message.count("\n") == 1


FRACTIONS = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(1e-9, 1e9)
COUNTS = st.integers(1, 2**31 - 1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)
VALUES = {
    "data": TEXTS, "test_data": TEXTS, "labels": TEXTS, "label_column": TEXTS,
    "backbone": st.sampled_from(["resnet50", "VGG-16"]), "cache": TEXTS,
    "val_fraction": st.floats(0.01, 0.99), "limit": st.integers(2, 2**31 - 1),
    "seed": st.integers(0, 2**31 - 1), "split_seed": st.integers(0, 2**31 - 1),
    "image_size": st.integers(1, 1024), "head": st.sampled_from(["flatten", "gap"]),
    "units": st.integers(0, 2**31 - 1), "dropout": FRACTIONS, "epochs": COUNTS,
    "batch_size": COUNTS, "momentum": FRACTIONS, "weight_decay": FRACTIONS, "clip_norm": POSITIVE,
    "learning_rate": POSITIVE, "cycle_epochs": POSITIVE, "min_learning_rate": st.just(1e-10),
    "early_stopping": COUNTS, "label_smoothing": FRACTIONS, "ema_decay": FRACTIONS,
    "augment": st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(tuple),
    "class_weights": st.sampled_from(["none", "balanced"]), "test_time_flip": st.booleans(),
}  # fmt: skip


@given(values=st.fixed_dictionaries({}, optional=VALUES))
@settings(max_examples=40, deadline=None)
def test_settings_survive_their_way_through_a_file(values: dict[str, Any], tmp_path_factory):
    others = {"optimizer": "sgd", "schedule": "triangular2"}
    config, _ = Settings({}, others | values).complete()
    for name, text in (("r.json", json.dumps), ("r.toml", to_toml)):
        path = write(tmp_path_factory.getbasetemp() / name, text(config.to_json()))
        assert ask("--recipe", path) == config


@pytest.fixture
def first(tmp_path: Path, monkeypatch) -> None:
    """A complete frozen run `runs/first` without a model, and a newer one beside it."""
    monkeypatch.chdir(tmp_path)
    for name, units, finished in (("first", 64, "2026-01-01"), ("newer", 128, "2026-01-02")):
        run = make_run(Path("runs") / name)
        config, _ = Settings({"units": units, "seed": 5, "backbone": "toy"}).complete()
        run.write_json("config.json", config.to_json())
        change_json(run.file("evaluation.json"), calibration={"temperature": 1.0})
        run.write_text("model.keras", "")
        run.write_done()
        change_json(run.file("DONE.json"), finished_at=f"{finished}T00:00:00+00:00")


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("form", ["json", "toml"])
def test_the_config_of_a_finetune_run_gives_the_same_run(form: str) -> None:
    words = ["--phase", "finetune", "--unfreeze", "conv2", "--seed", "7", "--epochs", "2"]
    config = ask(*words, "--from", "first")
    assert (config.parent, config.split_seed, config.units) == ("first", 5, 64)
    text = json.dumps if form == "json" else to_toml
    path = write(Path(f"config.{form}"), text(config.to_json()))
    assert ask("--recipe", path) == config
    assert ask("--recipe", path, "--epochs", "9") == config.replace(epochs=9)


@pytest.mark.usefixtures("first")
def test_the_parent_is_from_the_flag_the_file_or_the_newest_run(capsys) -> None:
    named = write(Path("named.toml"), 'phase = "finetune"\nparent = "first"\n')
    assert (ask("--recipe", named).parent, ask("--recipe", named).units) == ("first", 64)
    config = ask("--recipe", named, "--from", "newer")
    assert (config.parent, config.units) == ("newer", 128)
    assert ask("--recipe", write(Path("open.toml"), 'phase = "finetune"\n')).parent == "newer"
    gone = write(Path("gone.toml"), 'phase = "finetune"\nparent = "gone"\n')
    capsys.readouterr()
    for words, names in (
        (["--recipe", gone], ("gone", gone)),
        (["--recipe", "resnet50", "--phase", "finetune"], ("backbone", "recipe resnet50", "newer")),
    ):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert all(name in message.splitlines()[-1] for name in names)


def test_the_list_of_recipes_fits_80_columns(capsys) -> None:
    assert main(["--list-recipes"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[0] for line in text.splitlines()[:-2] if line[0] != " "] == NAMES
    shown = text.partition("\nresnet8 ")[2].partition("\nvgg16")[0]
    for word in ("scratch", "90.38 %", read_recipe("resnet8").about["ours"]):
        assert word in " ".join(shown.split())
    assert "ours: not measured yet" in text
