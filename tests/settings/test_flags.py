"""Flags are made from the settings, and one value is read as its flag reads it."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from fmnist_tf.settings.complete import DEFAULTS
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.flags import add_flags, read_value, setting_names
from fmnist_tf.settings.types import SettingError


def parse(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(words))


def test_flags_set_and_clear_and_leave_no_trace_if_not_given() -> None:
    assert parse() == {}
    assert parse("--epochs", "3", "--train-batch-norm", "--unfreeze", "conv4,conv5") == {
        "epochs": 3, "train_batch_norm": True, "unfreeze": ("conv4", "conv5"),
    }  # fmt: skip
    cleared = parse("--no-train-batch-norm", "--augment", "none", "--limit", "none",
                    "--clip-norm", "none", "--test-data", "none")  # fmt: skip
    assert cleared == {
        "train_batch_norm": False, "augment": (), "limit": None, "clip_norm": None,
        "test_data": None,
    }  # fmt: skip


def test_short_forms_set_the_same_settings() -> None:
    assert parse("--lr", "0.1") == {"learning_rate": 0.1}
    assert parse("--no-test") == parse("--limit-test", "0") == {"limit_test": 0}


def test_flags_are_these_and_no_others() -> None:
    # More flags take a deliberate edit here.
    assert setting_names() == (
        "phase", "data", "test_data", "labels", "label_column", "val_fraction", "limit",
        "limit_test", "seed",
        "backbone", "weights", "image_size", "cut", "time_budget", "head", "standardize", "units",
        "dropout", "unfreeze", "train_batch_norm",
        "epochs", "batch_size", "optimizer", "momentum", "weight_decay", "clip_norm",
        "learning_rate", "lr_finder", "schedule", "min_learning_rate", "warmup_epochs",
        "cycle_epochs", "plateau_patience", "plateau_factor", "early_stopping", "augment",
        "label_smoothing", "class_weights", "layer_decay", "ema_decay", "test_time_flip",
        "precision", "engine", "cache", "keep_for_finetune",
    )  # fmt: skip


def test_help_has_groups_and_every_default() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    assert f"(default: frozen {DEFAULTS['frozen']['epochs']}, finetune" in text
    assert [text.index(f" {group}: ") for group in ("run", "data", "model", "training")]
    for name in setting_names():
        default = RunConfig.model_fields[name].default
        assert f"--{name.replace('_', '-')}" in text
        if isinstance(default, (int, float)) and default is not False:
            assert f"(default: {default})" in text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("units", "3", 3), ("dropout", "0", 0.0), ("lr_finder", "true", True),
        ("lr_finder", "false", False), ("augment", "flip,mixup", ("flip", "mixup")),
        ("augment", "none", ()), ("early_stopping", "none", None),
        ("class_weights", "none", "none"), ("label_column", "none", None),
        ("standardize", "none", "none"),
        ("data", "none", "none"), ("augment", "flip,", ("flip",)),
    ],
)  # fmt: skip
def test_one_value_is_read_as_its_flag_reads_it(name: str, text: str, value: Any) -> None:
    assert read_value(name, text) == value
    assert type(read_value(name, text)) is type(value)
    if not isinstance(value, bool):
        assert parse(f"--{name.replace('_', '-')}={text}") == {name: value}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("units", "x"), ("units", "2.5"), ("units", "-1"), ("units", "none"), ("dropout", "1"),
        ("dropout", "nan"), ("lr_finder", "yes"), ("head", "mean"), ("augment", "turn"),
        ("augment", "flip,flip"), ("seed", ""), ("data", "\0"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(name: str, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_value(name, text)
    assert str(caught.value).startswith(f"--{name} ".replace("_", "-"))
