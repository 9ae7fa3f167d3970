"""Recipes parse, flags override them, a run's config.json gives the same run, and bad files say so.

Nothing here needs TensorFlow: settings are complete before it is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakerun import change_json, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.config import AUGMENTATIONS, PHASES, RunConfig, complete_config
from fmnist_tf.settings.recipe import describe_recipes, list_names, read_recipe
from fmnist_tf.train import build_parser, main, read_settings

NAMES = [
    "convnext-tiny", "efficientnet", "fast", "inceptionv3", "mlp", "mobilenetv3", "resnet18",
    "resnet50", "resnet50-16px", "resnet8", "vgg16",
]  # fmt: skip
SHA256 = {"model.keras": {"sha256": "0" * 64}}


def ask(*words: str) -> RunConfig:
    """Return the settings that `train` would use."""
    return read_settings(build_parser().parse_args(words)).complete()[0]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def to_toml(settings: dict[str, Any]) -> str:
    """Write settings as TOML, whose strings, lists and numbers are JSON's; it has no null."""
    values = {name: value for name, value in settings.items() if value is not None}
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()
    )


def test_these_recipes_exist() -> None:
    assert list_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_of_every_recipe_is_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert {"what", "source", "published"} <= set(recipe.about)
    assert tuple(recipe.phases) in (("frozen", "finetune"), ("frozen",), ("scratch",))
    parent = None
    for phase in recipe.phases:
        said = recipe.settings_of(phase)
        config, _ = complete_config(
            {}, parent, "mother" if parent else None, recipe=said, recipe_name=recipe.name
        )
        assert config.phase == phase
        assert config.backbone != RunConfig().backbone or "resnet50" in name
        assert {"epochs", "batch_size", "learning_rate", "optimizer"} <= set(said)
        parent = config


def test_settings_of_the_recipes_that_are_told() -> None:
    tiny = ask("--recipe", "resnet50-16px")
    assert (tiny.phase, tiny.image_size, tiny.head, tiny.units) == ("frozen", 32, "gap", 512)
    settings = read_recipe("resnet50-16px").settings_of("finetune")
    assert settings == {
        "backbone": "resnet50", "image_size": 32, "head": "gap", "units": 512,
        "phase": "finetune", "unfreeze": ("stem",),
        "train_batch_norm": True, "optimizer": "sgd", "momentum": 0.8, "schedule": "triangular2",
        "min_learning_rate": 1e-3, "learning_rate": 1e-2, "cycle_epochs": 10.0, "epochs": 25,
        "batch_size": 500,
    }  # fmt: skip
    mlp = ask("--recipe", "mlp")
    assert (mlp.phase, mlp.backbone, mlp.head) == ("scratch", "mlp", "flatten")
    assert ask("--recipe", "resnet8").units == 0
    assert ask("--recipe", "resnet18").schedule == "plateau"
    assert ask("--recipe", "efficientnet").backbone == "efficientnetv2-b0"


@pytest.mark.parametrize(
    ("first", "then"), [("resnet50", "resnet50-16px"), ("resnet50-16px", "resnet50")]
)
def test_one_recipe_does_not_go_on_from_anothers_run(first: str, then: str) -> None:
    parent, _ = complete_config({}, recipe=read_recipe(first).settings_of("frozen"))
    recipe = read_recipe(then).settings_of("finetune")
    with pytest.raises(UsageError, match=r"image_size.*which mother was trained with"):
        complete_config({}, parent, "mother", recipe=recipe, recipe_name=then)


def test_flags_override_a_recipe() -> None:
    words = ["--recipe", "resnet8", "--epochs", "3", "--augment", "none", "--weight-decay", "none"]
    config, lines = read_settings(build_parser().parse_args(words)).complete()
    assert (config.epochs, config.augment, config.weight_decay) == (3, (), None)
    assert (config.learning_rate, config.optimizer) == (0.1, "sgd")
    assert "epochs = 3  (overrides 14 of recipe resnet8)" in lines
    assert "augment = none  (overrides flip of recipe resnet8)" in lines
    assert "optimizer = sgd  (from recipe resnet8)" in lines


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


SECTIONS = """
[settings]
backbone = "toy"
epochs = 5
[scratch]
seed = 1
[frozen]
epochs = 7
"""


def test_sections_of_phases_have_the_last_word(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "r.toml", SECTIONS)
    frozen, scratch = ask("--recipe", path), ask("--recipe", path, "--phase", "scratch")
    assert (frozen.phase, frozen.backbone, frozen.epochs, frozen.seed) == ("frozen", "toy", 7, 0)
    assert (scratch.phase, scratch.epochs, scratch.seed) == ("scratch", 5, 1)
    assert main(["--recipe", path, "--phase", "finetune"]) == 2
    assert capsys.readouterr().err == f"--phase finetune: {path} has frozen, scratch\n"


BAD = {
    "unknown key": ("epoch = 3", "unknown setting epoch in {}; did you mean epochs?"),
    "hyphen": ("learning-rate = 1", "unknown setting learning-rate in {}; did you mean learning_"),
    "unknown in a section": (
        "[finetune]\nunfreze = []",
        "unknown setting unfreze in [finetune] of {}; did you mean unfreeze?",
    ),
    "hostile key": ('"a\\u001b[31m" = 1', "unknown setting a\\x1b[31m in {}; expected augment, "),
    "unknown section": ("[frosen]", "unknown section frosen in {}; did you mean frozen?"),
    "no section": ("epochs = 3\n[frozen]", "epochs in {} stands in no section; expected it under"),
    "about": ("[about]\nwat = ''", "unknown key of [about] wat in {}; did you mean what?"),
    "about is text": ("[about]\nours = 0.9", "ours in {} is 0.9; expected text"),
    "phase twice": (
        "[settings]\nphase = 'frozen'\n[scratch]",
        "phase in {} is 'frozen'; expected none, for the sections [scratch] tell it",
    ),
    "text for a number": ("epochs = '3'", "epochs in {} is '3'; expected a whole number"),
    "fraction": ("[frozen]\nunits = 2.5", "units in [frozen] of {} is 2.5; expected a whole num"),
    "number for a text": ("backbone = 50", "backbone in {} is 50; expected text"),
    "no text": ('cache = "a\\u0000"', "cache in {} is 'a\\x00'; expected text"),
    "number for a list": ("unfreeze = [5]", "unfreeze in {} is [5]; expected a list of texts"),
    "text for a list": ("augment = 'flip'", "augment in {} is 'flip'; expected a list of texts"),
    "true for a number": ("dropout = true", "dropout in {} is True; expected a number"),
    "one for true": ("train_batch_norm = 1", "train_batch_norm in {} is 1; expected true or fal"),
    "date": ("seed = 2026-01-01", "seed in {} is datetime.date(2026, 1, 1); expected a whole"),
    "range": ("dropout = 1.0", "dropout in {} is 1.0; expected a number from 0, below 1"),
    "nan": ("learning_rate = nan", "learning_rate in {} is nan; expected a finite number above 0"),
    "choice": ("head = 'mlp'", "head in {} is 'mlp'; expected one of flatten, gap"),
    "kind": ("augment = ['flop']", "augment in {} is ['flop']; expected some of flip, shift-crop"),
    "65 bits": ("limit = 99999999999999999999", "limit in {} is 99999999999999999999; expected a"),
    "5,000 digits": ("seed = 0x" + "f" * 5000, "{}: expected settings, found: Exceeds the limit"),
    "parent": ("parent = 'first'", "parent in {} is 'first'; expected with --phase finetune alone"),
    "syntax": ("epochs = 3\nunits == 4\n", "{}:2:8: Invalid value; expected TOML"),
    "syntax at the end": ("epochs = 3\nunits =", "{}:2:8: Invalid value; expected TOML"),
    "key twice": ("epochs = 3\nepochs = 4\n", "{}:2:11: Cannot overwrite a value; expected TOML"),
    "nested": ("augment = " + "[" * 5000, "{}: expected settings, found: maximum recursion"),
    "UTF-8": (b"# 1\nhead = '\xff'", "{}:2:9: byte 0xff, which is not UTF-8; save the file as"),
    "too large": (b"#" * 65_537, "--recipe {}: expected settings, found a file of more than"),
    "JSON syntax": ('{"epochs": 3,\n "units" 4}', "{}:2:10: Expecting ':' delimiter; expected"),
    "JSON list": ("[3]", "{}: expected an object of settings, found a list"),
    "JSON null": ('{"seed": null}', "seed in {} is None; expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_clear_error(case: str, tmp_path: Path, capsys) -> None:
    content, message = BAD[case]
    path = tmp_path / ("r.json" if case.startswith("JSON") else "r.toml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["--recipe", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message.replace("{}", str(path)))
    assert said.count("\n") == 1


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", "epochs = 5\n" + "#" * (65_536 - 11))
    assert ask("--recipe", path).epochs == 5


def test_what_is_no_file_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("run").mkdir()
    write(Path("run/config.json"), "{}")
    for words, message in {
        ("resnet5",): "--recipe resnet5: no recipe and no file has this name; did you mean resnet",
        (
            "none.toml",
        ): "--recipe none.toml: no recipe and no file has this name; expected convnext",
        (".",): "--recipe .: expected a file, found a folder\n",
        ("run",): "--recipe run: expected a file, found a folder; its settings are in run/config",
        ("pipe",): "--recipe pipe: expected a file, found something else",
        ("a" * 5000,): "--recipe aaa",
        ("mlp", "--phase", "frozen"): "--phase frozen: recipe mlp has scratch",
        ("mlp", "--from", "x"): "--from RUN: expected with --phase finetune alone",
        ("mlp", "--epochs", "0"): "--epochs 0: expected a whole number from 1",
        ("vgg16", "--dropout", "1"): "--dropout 1.0: expected a number from 0, below 1",
        (
            "resnet50-16px",
            "--optimizer",
            "adam",
        ): "momentum in recipe resnet50-16px is 0.8; expecte",
        ("resnet50", "--phase", "finetune"): "--phase finetune continues a complete frozen run",
    }.items():
        assert main(["--recipe", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message)
        assert said.count("\n") == 1


FLOATS = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(1e-9, 1e9)
COUNTS = st.integers(1, 2**31 - 1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)
FREE = {
    "data": TEXTS, "test_data": TEXTS, "label_column": TEXTS, "backbone": TEXTS, "cache": TEXTS,
    "val_fraction": st.floats(0.01, 0.99), "limit": st.integers(2, 2**31 - 1),
    "seed": st.integers(0, 2**31 - 1), "split_seed": st.integers(0, 2**31 - 1),
    "image_size": st.integers(1, 1024), "head": st.sampled_from(["flatten", "gap"]),
    "units": st.integers(0, 2**31 - 1), "dropout": FLOATS, "epochs": COUNTS, "batch_size": COUNTS,
    "optimizer": st.just("sgd"), "momentum": FLOATS, "weight_decay": FLOATS,
    "clip_norm": POSITIVE, "learning_rate": POSITIVE,
    "schedule": st.sampled_from(["triangular2", "plateau"]), "cycle_epochs": POSITIVE,
    "min_learning_rate": st.just(1e-10), "plateau_patience": COUNTS,
    "plateau_factor": st.sampled_from([0.1, 0.5]), "early_stopping": COUNTS,
    "augment": st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(tuple),
    "label_smoothing": FLOATS, "class_weights": st.sampled_from(["none", "balanced"]),
    "ema_decay": FLOATS, "test_time_flip": st.booleans(),
    "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
}  # fmt: skip
TIED = {
    "momentum": "sgd", "weight_decay": "sgd",
    "cycle_epochs": "triangular2",
}  # fmt: skip


@given(settings=st.fixed_dictionaries({}, optional=FREE))
@settings(max_examples=60, deadline=None)
def test_settings_survive_their_way_through_a_file(
    settings: dict[str, Any], tmp_path_factory
) -> None:
    for name, other in TIED.items():
        if other not in settings.values():
            settings.pop(name, None)
    config, _ = complete_config({}, recipe=settings)
    for name, text in (("r.json", json.dumps), ("r.toml", to_toml)):
        path = tmp_path_factory.getbasetemp() / name
        path.write_text(text(config.to_json()))
        assert ask("--recipe", str(path)) == config


@pytest.fixture
def first(tmp_path: Path, monkeypatch) -> Path:
    """A complete frozen run `runs/first` without a model, and a newer one beside it."""
    monkeypatch.chdir(tmp_path)
    for name, units, finished in (("first", 64, "2026-01-01"), ("newer", 128, "2026-01-02")):
        run = make_run(Path("runs") / name)
        config, _ = complete_config({"units": units, "seed": 5, "backbone": "toy"})
        run.write_json("config.json", config.to_json())
        change_json(run.file("DONE.json"), files=SHA256, finished_at=f"{finished}T00:00:00+00:00")
    return Path("runs/first")


@pytest.mark.parametrize("form", ["json", "toml"])
def test_a_finetune_run_fed_back_is_the_same_run(first: Path, form: str, capsys) -> None:
    words = ["--phase", "finetune", "--unfreeze", "deep", "--seed", "7", "--epochs", "2"]
    config = ask(*words, "--from", "first")
    assert (config.parent, config.split_seed, config.units) == ("first", 5, 64)
    text = json.dumps if form == "json" else to_toml
    path = write(Path(f"config.{form}"), text(config.to_json()))
    assert ask("--recipe", path) == config
    assert f"finetune continues runs/first, the parent in {path}" in capsys.readouterr().err
    other = dataclasses.replace(config, epochs=9)
    assert ask("--recipe", path, "--epochs", "9") == other


def test_from_overrides_the_parent_in_the_file(first: Path) -> None:
    path = write(Path("r.toml"), 'phase = "finetune"\nparent = "first"\n')
    assert (ask("--recipe", path).parent, ask("--recipe", path).units) == ("first", 64)
    config = ask("--recipe", path, "--from", "newer")
    assert (config.parent, config.units) == ("newer", 128)


def test_without_a_parent_in_the_file_the_newest_run_is_continued(first: Path) -> None:
    path = write(Path("r.toml"), 'phase = "finetune"\n')
    assert ask("--recipe", path).parent == "newer"


def test_a_parent_that_is_gone_or_another_is_bad_input(first: Path, capsys) -> None:
    path = write(Path("r.toml"), 'phase = "finetune"\nparent = "gone"\n')
    assert main(["--recipe", path]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gone: expected a run directory, found no such folder")
    assert "r.toml names it as the parent; --from names another" in said
    assert main(["--recipe", "resnet50", "--phase", "finetune"]) == 2
    said = capsys.readouterr().err
    assert "backbone in recipe resnet50 is 'resnet50'; expected toy, which newer was" in said


def test_the_table_of_recipes_fits_80_columns() -> None:
    lines = describe_recipes().splitlines()
    assert lines[0].split() == ["recipe", "phases", "published", "ours"]
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:-2] if not line.startswith(" ")] == NAMES
    at = lines.index(next(line for line in lines if line.startswith("resnet8 ")))
    for word in ("scratch", "90.38 %", read_recipe("resnet8").about["ours"]):
        assert word in lines[at]
    assert any("not measured yet" in line for line in lines)  # of those without a figure of ours
    assert lines[at + 1] == "  a residual network of 8 layers on the 28x28 pixels, from scratch"
    assert lines[at + 2].startswith("  from: ")


def test_a_figure_of_ours_is_shown(tmp_path: Path, monkeypatch) -> None:
    about = {"what": "a", "source": "b", "published": "c", "ours": "0.93 ± 0.01 (n = 3)"}
    write(tmp_path / "new.toml", f"[about]\n{to_toml(about)}[frozen]")
    monkeypatch.setattr("fmnist_tf.settings.recipe.FOLDER", tmp_path)
    row = describe_recipes().splitlines()[2]
    assert row.split("  ")[-1] == "0.93 ± 0.01 (n = 3)"


def test_listing_recipes_is_quick_and_needs_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fmnist_tf.train", "--list-recipes"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    imported = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras", "numpy", "pandas", "wandb", "matplotlib"}
    assert answer.stdout.rstrip() == describe_recipes()
    assert not list(tmp_path.iterdir())


def test_phases_are_the_sections() -> None:
    for name in NAMES:
        assert set(read_recipe(name).phases) <= set(PHASES)
