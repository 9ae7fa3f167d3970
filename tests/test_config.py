"""Every knob is checked, told once, and survives its way through JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from fmnist_tf.config import (
    DEFAULTS,
    FIXED_BY_PARENT,
    INHERITED,
    PHASES,
    RunConfig,
    add_flags,
    complete_config,
)
from fmnist_tf.errors import UsageError


def parse(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(words))


def test_what_is_not_said_leaves_no_trace() -> None:
    assert parse() == {}
    assert parse("--epochs", "3", "--train-batch-norm") == {"epochs": 3, "train_batch_norm": True}
    assert parse("--unfreeze", "conv4,conv5") == {"unfreeze": ("conv4", "conv5")}


def test_flags_are_these_and_no_others() -> None:
    # Growing the surface takes a deliberate edit here.
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert flags == {
        "-h", "--help", "--phase",
        "--data", "--test-data", "--label-column", "--val-fraction", "--limit", "--seed",
        "--backbone", "--weights", "--image-size", "--head", "--units", "--dropout", "--unfreeze",
        "--train-batch-norm",
        "--epochs", "--batch-size", "--optimizer", "--learning-rate", "--schedule", "--precision",
        "--cache",
    }  # fmt: skip


def test_help_states_every_default() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    assert f"(default: frozen {DEFAULTS['frozen'].epochs}, finetune" in text
    for knob in dataclasses.fields(RunConfig):
        if isinstance(knob.default, (int, float)) and not isinstance(knob.default, bool):
            assert f"(default: {knob.default})" in text


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


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("val_fraction", 0.0, "--val-fraction 0.0: expected a number above 0 and below 1"),
        ("val_fraction", 1.0, "--val-fraction 1.0"),
        ("val_fraction", float("nan"), "--val-fraction nan"),
        ("dropout", 1.0, "--dropout 1.0: expected a number from 0, below 1"),
        ("dropout", -0.1, "--dropout -0.1"),
        ("seed", -1, "--seed -1: expected a whole number from 0"),
        ("units", 0, "--units 0"),
        ("limit", 1, "--limit 1: expected a whole number from 2"),
        ("epochs", 0, "--epochs 0"),
        ("batch_size", 0, "--batch-size 0"),
        ("learning_rate", 0.0, "--learning-rate 0.0: expected a finite number above 0"),
        ("learning_rate", float("inf"), "--learning-rate inf"),
        ("image_size", 0, "--image-size 0"),
        ("head", "mlp", "head is 'mlp'; expected one of flatten, gap"),
        ("unfreeze", ("a", "b"), "--unfreeze a,b: expected with --phase finetune alone; frozen tr"),
        ("train_batch_norm", True, "--train-batch-norm: expected with --phase finetune alone"),
    ],
)
def test_values_out_of_range(knob: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig(**{knob: value})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_setting_in_json() -> None:
    with pytest.raises(UsageError, match="unknown setting epoch in config"):
        RunConfig.from_json({"epoch": 3})


def test_scratch_has_no_pretrained_weights() -> None:
    with pytest.raises(UsageError, match=r"--weights x\.h5: --phase scratch starts from random"):
        RunConfig(phase="scratch", weights="x.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "3"), ("val_fraction", "x"), ("unfreeze", "conv5"), ("unfreeze", [5]),
        ("seed", None), ("seed", True), ("units", 2.5), ("train_batch_norm", 1),
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
