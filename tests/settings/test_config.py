"""Every setting is checked, told once, and survives its way through JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import pytest

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.config import (
    DEFAULTS,
    FIXED_BY_PARENT,
    FROZEN_GAP_RATE,
    INHERITED,
    PHASES,
    RunConfig,
    add_flags,
    complete_config,
)


def parse(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(words))


def test_what_is_not_said_leaves_no_trace() -> None:
    assert parse() == {}
    assert parse("--epochs", "3", "--train-batch-norm") == {"epochs": 3, "train_batch_norm": True}
    assert parse("--unfreeze", "conv4,conv5") == {"unfreeze": ("conv4", "conv5")}
    assert parse("--augment", "flip,mixup") == {"augment": ("flip", "mixup")}


def test_flags_can_unsay() -> None:
    assert parse("--no-train-batch-norm", "--augment", "none") == {
        "train_batch_norm": False,
        "augment": (),
    }
    assert parse("--early-stopping", "none", "--clip-norm", "none", "--test-data", "none") == {
        "early_stopping": None,
        "clip_norm": None,
        "test_data": None,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--early-stopping", "x"), "invalid int value: 'x'"),
        (("--plateau-patience", "none"), "invalid int value: 'none'"),
        (("--class-weights", "all"), "invalid choice: 'all'"),
    ],
)
def test_a_flag_of_another_type(words: tuple[str, str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert message in capsys.readouterr().err


def test_flags_are_these_and_no_others() -> None:
    # Growing the surface takes a deliberate edit here.
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert flags == {
        "-h", "--help", "--phase",
        "--data", "--test-data", "--label-column", "--val-fraction", "--limit", "--seed",
        "--backbone", "--weights", "--image-size", "--head", "--units", "--dropout", "--unfreeze",
        "--train-batch-norm", "--no-train-batch-norm",
        "--epochs", "--batch-size", "--optimizer", "--momentum", "--weight-decay", "--clip-norm",
        "--learning-rate", "--lr-finder", "--no-lr-finder", "--schedule", "--min-learning-rate",
        "--warmup-epochs", "--cycle-epochs",
        "--plateau-patience", "--plateau-factor",
        "--early-stopping", "--augment", "--label-smoothing", "--class-weights",
        "--layer-decay", "--ema-decay", "--test-time-flip",
        "--no-test-time-flip", "--precision", "--cache",
    }  # fmt: skip


def test_help_states_every_default() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    assert f"(default: frozen {DEFAULTS['frozen'].epochs}, finetune" in text
    for setting in dataclasses.fields(RunConfig):
        if isinstance(setting.default, (int, float)) and not isinstance(setting.default, bool):
            assert f"(default: {setting.default})" in text


def test_json_round_trip_is_identity() -> None:
    config, _ = complete_config({"phase": "scratch", "epochs": 3, "limit": 100})
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    finetune = dataclasses.replace(config, phase="finetune", unfreeze=("conv5",), parent="a")
    assert RunConfig.from_json(finetune.to_json()) == finetune


@pytest.mark.parametrize("phase", PHASES)
def test_phase_defaults_fill_what_was_not_said(phase: str) -> None:
    config, _ = complete_config({"phase": phase, "epochs": 7})
    assert config.epochs == 7
    assert config.batch_size == DEFAULTS[phase].batch_size
    assert config.learning_rate == DEFAULTS[phase].learning_rate


def test_a_pooled_head_has_its_own_rate_in_the_frozen_phase():
    def rate(**given):
        return complete_config(given)[0].learning_rate

    assert rate(head="gap") == FROZEN_GAP_RATE
    assert complete_config({}, recipe={"head": "gap"})[0].learning_rate == FROZEN_GAP_RATE
    assert rate(head="flatten") == rate() == DEFAULTS["frozen"].learning_rate
    assert rate(head="gap", phase="scratch") == DEFAULTS["scratch"].learning_rate
    assert rate(head="gap", learning_rate=1e-5) == 1e-5


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = [
    ({"val_fraction": 0.0}, "--val-fraction 0.0: expected a number above 0 and below 1"),
    ({"val_fraction": 1.0}, "--val-fraction 1.0"),
    ({"val_fraction": NAN}, "--val-fraction nan"),
    ({"dropout": 1.0}, "--dropout 1.0: expected a number from 0, below 1"),
    ({"dropout": -0.1}, "--dropout -0.1"),
    ({"seed": -1}, "--seed -1: expected a whole number from 0 to 2147483647"),
    ({"seed": 2**31}, "--seed 2147483648"),
    ({"units": -1}, "--units -1: expected a whole number from 0"),
    ({"units": 2**31}, "--units 2147483648: expected a whole number from 0 to 2147483647"),
    ({"limit": 1}, "--limit 1: expected a whole number from 2"),
    ({"limit": 2**31}, "--limit 2147483648: expected a whole number from 2 to 2147483647"),
    ({"batch_size": 2**31}, "--batch-size 2147483648: expected a whole number from 1 to 214"),
    ({"cycle_epochs": 1e308}, "--cycle-epochs 1e+308: expected a number above 0 and below"),
    ({"epochs": 0}, "--epochs 0: expected a whole number from 1"),
    ({"batch_size": 0}, "--batch-size 0: expected a whole number from 1"),
    ({"learning_rate": 0.0}, "--learning-rate 0.0: expected a finite number above 0"),
    ({"learning_rate": INF}, "--learning-rate inf"),
    ({"image_size": 0}, "--image-size 0: expected a whole number from 1 to 1024"),
    ({"image_size": 1025}, "--image-size 1025"),
    ({"head": "mlp"}, "--head mlp: expected one of flatten, gap"),
    ({"phase": "frozn"}, "--phase frozn: expected one of frozen, finetune, scratch"),
    ({"momentum": 1.0, "optimizer": "sgd"}, "--momentum 1.0: expected a number from 0, below 1"),
    ({"momentum": 0.8}, "--momentum 0.8: expected with --optimizer sgd alone; adam has none"),
    ({"weight_decay": 1.0, "optimizer": "sgd"}, "--weight-decay 1.0: expected a number from 0"),
    ({"weight_decay": 0.1}, "--weight-decay 0.1: expected with --optimizer adamw or sgd"),
    ({"clip_norm": 0.0}, "--clip-norm 0.0: expected a finite number above 0"),
    ({"clip_norm": NAN}, "--clip-norm nan"),
    (
        {"min_learning_rate": -1.0},
        "--min-learning-rate -1.0: expected a number from 0 to --learning-rate",
    ),
    ({"min_learning_rate": 0.2, "learning_rate": 0.1}, "--min-learning-rate 0.2"),
    ({"warmup_epochs": -1.0}, "--warmup-epochs -1.0: expected a number from 0 to --epochs"),
    ({"warmup_epochs": 3.5, "epochs": 3}, "--warmup-epochs 3.5: expected a number from 0"),
    (
        {"warmup_epochs": 1.0, "schedule": "plateau"},
        "--warmup-epochs 1.0: expected with --schedule constant or cosine",
    ),
    ({"cycle_epochs": 0.0, "schedule": "triangular2"}, "--cycle-epochs 0.0: expected a number"),
    ({"cycle_epochs": 2.0}, "--cycle-epochs 2.0: expected with --schedule triangular2"),
    ({"min_learning_rate": float("inf")}, "--min-learning-rate inf: expected a number from 0 to"),
    ({"plateau_patience": 0}, "--plateau-patience 0: expected a whole number from 1"),
    ({"plateau_factor": 1.0}, "--plateau-factor 1.0: expected a number above 0 and below 1"),
    ({"early_stopping": 0}, "--early-stopping 0: expected a whole number from 1"),
    ({"augment": ("flop",)}, "--augment flop: expected some of flip, shift-crop, erasing, mixup"),
    ({"augment": ("flip", "flip")}, "--augment flip,flip: expected some of flip"),
    ({"label_smoothing": 1.0}, "--label-smoothing 1.0: expected a number from 0, below 1"),
    ({"class_weights": "all"}, "--class-weights all: expected one of none, balanced"),
    (
        {"layer_decay": 0.0, "phase": "finetune"},
        "--layer-decay 0.0: expected a number above 0, up to 1",
    ),
    ({"layer_decay": 1.5, "phase": "finetune"}, "--layer-decay 1.5"),
    ({"layer_decay": 0.5}, "--layer-decay 0.5: expected with --phase finetune"),
    ({"ema_decay": 1.0}, "--ema-decay 1.0: expected a number from 0, below 1"),
    ({"ema_decay": -0.1}, "--ema-decay -0.1"),
    (
        {"unfreeze": ("a", "b")},
        "--unfreeze a,b: expected with --phase finetune alone; frozen trains nothing of the",
    ),
    (
        {"train_batch_norm": True, "phase": "scratch"},
        "--train-batch-norm: expected with --phase finetune alone; scratch trains everything",
    ),
    ({"parent": "first"}, "--parent first: expected with --phase finetune alone"),
    ({"split_seed": -1}, "--split-seed -1: expected a whole number from 0"),
]


@pytest.mark.parametrize(("settings", "message"), OUT_OF_RANGE)
def test_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig(**settings)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"units": 0, "dropout": 0.0, "seed": 2**31 - 1, "limit": 2, "image_size": 1024},
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        {"optimizer": "adam", "weight_decay": 0.0},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 1e-9},
        {"schedule": "cosine", "learning_rate": 0.1, "min_learning_rate": 0.1},
        {"schedule": "cosine", "warmup_epochs": 3.0, "epochs": 3},
        {"schedule": "triangular2", "cycle_epochs": 0.5, "min_learning_rate": 1.0},
        {"schedule": "plateau", "plateau_patience": 1, "early_stopping": 1},
        {"augment": ("mixup", "erasing", "shift-crop", "flip"), "label_smoothing": 0.0},
        {"phase": "finetune", "layer_decay": 1.0, "ema_decay": 0.0, "parent": "a"},
        {"phase": "scratch", "weights": "random", "class_weights": "balanced"},
    ],
)
def test_values_at_the_ends_of_their_range(settings: dict[str, Any]) -> None:
    config = RunConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_unknown_setting_in_json() -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig.from_json({"epoch": 3, "learning-rate": 0.1, "units": 3, "zzz": 1})
    lines = str(caught.value).splitlines()
    assert lines[0] == "unknown setting epoch in config.json; did you mean epochs?"
    assert lines[1].startswith("unknown setting learning-rate in config.json; did you mean lear")
    assert lines[2].startswith("unknown setting zzz in config.json; expected augment, backbone")
    assert len(lines) == 3
    with pytest.raises(UsageError) as caught:
        RunConfig.from_json(dict.fromkeys("abcdefghijkl"))
    assert str(caught.value).splitlines()[10:] == ["... and 2 more"]


def test_a_value_out_of_range_in_json_is_said_of_the_file() -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig.from_json({"unfreeze": ["conv5"]})
    assert str(caught.value).startswith("unfreeze in config.json is ['conv5']; expected with --ph")


def test_scratch_has_no_pretrained_weights() -> None:
    with pytest.raises(
        UsageError, match=r"--weights x\.h5: expected auto or random with --phase s"
    ):
        RunConfig(phase="scratch", weights="x.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "3"), ("val_fraction", "x"), ("unfreeze", "conv5"), ("unfreeze", [5]),
        ("seed", None), ("seed", True), ("units", 2.5), ("train_batch_norm", 1),
        ("units", 2**63), ("dropout", 10**400), ("dropout", False), ("head", ["gap"]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_in_json(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} in config.json is .*; expected"):
        RunConfig.from_json({name: value})


PARENT, _ = complete_config({"units": 64, "seed": 5, "limit": 100, "dropout": 0.2})


def test_finetune_inherits_and_says_so() -> None:
    config, lines = complete_config({"phase": "finetune"}, PARENT, "mother")
    for name in INHERITED:
        assert getattr(config, name) == getattr(PARENT, name)
    assert "units = 64  (inherited from mother)" in lines
    assert (config.parent, config.split_seed) == ("mother", 5)
    assert config.learning_rate == DEFAULTS["finetune"].learning_rate
    assert DEFAULTS["finetune"].learning_rate < DEFAULTS["frozen"].learning_rate


def test_finetune_overrides_and_says_so_but_keeps_the_split() -> None:
    given = {"phase": "finetune", "seed": 9, "dropout": 0.3}
    config, lines = complete_config(given, PARENT, "mother")
    assert (config.seed, config.split_seed, config.dropout) == (9, 5, 0.3)
    assert "seed = 9  (overrides 5 of mother)" in lines


@pytest.mark.parametrize("name", FIXED_BY_PARENT)
def test_what_the_parent_fixed_cannot_be_said_anew(name: str) -> None:
    other = {
        "val_fraction": 0.2, "limit": 50, "backbone": "toy", "weights": "random",
        "image_size": 64, "head": "gap", "units": 65,
    }[name]  # fmt: skip
    with pytest.raises(UsageError, match="which mother was trained with"):
        complete_config({"phase": "finetune", name: other}, PARENT, "mother")


RECIPE = {"epochs": 9, "optimizer": "sgd", "momentum": 0.8, "early_stopping": 3, "units": 512}


def complete(given: dict[str, Any], recipe: dict[str, Any], *parent: Any) -> Any:
    return complete_config(given, *parent, recipe=recipe, recipe_name="recipe r")


def test_flags_override_the_recipe_and_each_change_is_said() -> None:
    given = {"epochs": 4, "momentum": 0.8, "early_stopping": None}
    config, lines = complete(given, RECIPE)
    assert (config.epochs, config.optimizer, config.momentum) == (4, "sgd", 0.8)
    assert config.early_stopping is None
    # Not units, which are what they would be without the recipe; not momentum, said twice alike.
    assert lines == [
        "epochs = 4  (overrides 9 of recipe r)",
        "optimizer = sgd  (from recipe r)",
        "early_stopping = none  (overrides 3 of recipe r)",
    ]


def test_none_leaves_the_phase_its_default() -> None:
    config, _ = complete({"epochs": None, "phase": "scratch"}, RECIPE)
    assert config.epochs == DEFAULTS["scratch"].epochs


def test_a_lr_finder_leaves_the_learning_rate_open() -> None:
    assert complete({"lr_finder": True}, {})[0].learning_rate is None
    assert complete({}, {"lr_finder": True})[0].learning_rate is None
    assert complete({"lr_finder": False}, {"lr_finder": True})[0].learning_rate is not None
    assert complete({"lr_finder": True}, {"learning_rate": 0.1})[0].learning_rate == 0.1
    unsaid = {"lr_finder": True, "learning_rate": None}
    assert complete(unsaid, {"learning_rate": 0.1})[0].learning_rate is None


def test_the_phase_may_come_from_the_recipe() -> None:
    config, lines = complete({}, {"phase": "scratch"})
    assert (config.phase, config.learning_rate) == ("scratch", DEFAULTS["scratch"].learning_rate)
    assert lines == ["phase = scratch  (from recipe r)"]


def test_the_recipe_overrides_what_a_parent_left_open() -> None:
    recipe = {"phase": "finetune", "dropout": 0.5, "units": 64, "parent": "aunt", "split_seed": 8}
    config, lines = complete({}, recipe, PARENT, "mother")
    assert (config.dropout, config.parent, config.split_seed) == (0.5, "mother", 5)
    assert "dropout = 0.5  (from recipe r, overrides 0.2 of mother)" in lines
    assert "seed = 5  (inherited from mother)" in lines
    assert not [line for line in lines if line.startswith(("parent", "split"))]
    assert [line for line in lines if line.startswith("units")] == ["units = 64  (from recipe r)"]


def test_the_recipe_cannot_change_what_the_parent_fixed() -> None:
    recipe = {"phase": "finetune", "backbone": "toy"}
    with pytest.raises(UsageError) as caught:
        complete({}, recipe, PARENT, "mother")
    assert str(caught.value) == (
        "backbone in recipe r is 'toy'; expected resnet50, which mother was trained with; finetune "
        "continues that network on that split. Name another run with --from, override it with "
        "--backbone resnet50, or train a new frozen run with this first"
    )
    config, _ = complete({"backbone": "resnet50"}, recipe, PARENT, "mother")
    assert config.backbone == "resnet50"


@pytest.mark.parametrize(
    ("given", "recipe", "message"),
    [
        ({}, {"epochs": 0}, "epochs in recipe r is 0; expected a whole number from 1"),
        ({"epochs": 0}, {"epochs": 3}, "--epochs 0: expected a whole number from 1"),
        ({"schedule": "cosine"}, {"schedule": "triangular2", "cycle_epochs": 2.0},
         "cycle_epochs in recipe r is 2.0; expected with --schedule triangular2"),
        ({"cycle_epochs": 2.0}, {"schedule": "cosine"},
         "--cycle-epochs 2.0: expected with --schedule triangular2"),
        ({}, {"parent": "first"}, "parent in recipe r is 'first'; expected with --phase finetune"),
        ({}, {"phase": "x"}, "phase in recipe r is 'x'; expected one of frozen, finetune, scr"),
        ({}, {"warmup_epochs": 7.0}, "warmup_epochs in recipe r is 7.0; expected a number from 0"),
    ],
)  # fmt: skip
def test_an_error_names_who_said_the_value(
    given: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        complete(given, recipe)
    assert str(caught.value).startswith(message)


def test_a_value_out_of_range_may_be_overridden() -> None:
    assert complete({"epochs": 2}, {"epochs": 0})[0].epochs == 2


@pytest.mark.parametrize(
    ("given", "expected"), [({}, (3, 4)), ({"seed": 3}, (3, 4)), ({"seed": 6}, (6, 6))]
)
def test_a_seed_that_is_given_decides_the_split_too(
    given: dict[str, Any], expected: tuple[int, int]
) -> None:
    config, _ = complete(given, {"seed": 3, "split_seed": 4})
    assert (config.seed, config.split_seed) == expected


def test_what_a_file_says_is_printable() -> None:
    _, lines = complete({}, {"data": "a\x1b[31m\nb" + "c" * 5000})
    assert lines[0].startswith("data = a\\x1b[31m\\nbccc")
    assert len(lines[0]) < 300
