"""Every setting is checked by itself and with the others, and survives its way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.complete import (
    DEFAULTS,
    FIXED_BY_PARENT,
    FROZEN_GAP_RATE,
    INHERITED,
    Settings,
)
from fmnist_tf.settings.config import PHASES, RunConfig, check_settings
from fmnist_tf.settings.types import SettingError

NAN, INF = float("nan"), float("inf")
SGD, FINETUNE = {"optimizer": "sgd"}, {"phase": "finetune"}
# name, values that are refused, values at the ends of the range, what else is set
RANGES: list[tuple[str, list[Any], list[Any], dict[str, Any]]] = [
    ("phase", ["frozn", None], [*PHASES], {}),
    ("data", ["a\0", 3, b"a"], ["a\nb", "\udcff.csv"], {}),
    ("test_data", ["\0"], ["a", None], {}),
    ("val_fraction", [0.0, 1.0, NAN, "0.5", True, None], [1e-9, 0.999], {}),
    ("limit", [1, 2**31, 2.5, "3", True], [2, 2**31 - 1, None], {}),
    ("seed", [-1, 2**31, None], [0, 2**31 - 1], {}),
    ("weights", [None], ["auto", "random", "x.h5"], {}),
    ("image_size", [0, 1025], [1, 1024, None], {}),
    ("head", ["mlp", ["gap"]], ["flatten", "gap"], {}),
    ("units", [-1, 2**31, 2**63, 2.5, "3", None], [0], {}),
    ("dropout", [1.0, -0.1, 10**400, False], [0.0, 0, 0.999], {}),
    ("unfreeze", ["conv5", [5], (5,), None, {"a"}], [("a", "b"), ("all",), ()], FINETUNE),
    ("unfreeze", [("conv5",)], [()], {}),
    ("keep_for_finetune", [1, None], ["none", "conv4"], {}),
    ("keep_for_finetune", ["none", "conv4"], ["auto"], FINETUNE),
    ("train_batch_norm", [1, "true", None], [True], FINETUNE),
    ("train_batch_norm", [True], [False], {"phase": "scratch"}),
    ("epochs", [0, 2**31, 1.0], [1, None], {}),
    ("batch_size", [0, 2**31], [1, None], {}),
    ("momentum", [1.0, -0.1], [0.0], SGD),
    ("momentum", [0.8], [0.9], {}),
    ("weight_decay", [1.0, -0.1], [0.0, 0.1], SGD),
    ("weight_decay", [0.1], [0.0, None], {"optimizer": "adam"}),
    ("clip_norm", [0.0, NAN, INF], [1e-9, None], {}),
    ("learning_rate", [0.0, INF, NAN], [1e-9, 1, None], {}),
    ("min_learning_rate", [-1.0, INF, NAN, 0.2], [0.0, 0.1], {"learning_rate": 0.1}),
    ("schedule", ["step"], ["plateau"], {}),
    ("warmup_epochs", [-1.0, 3.5], [0.0, 3.0], {"epochs": 3, "schedule": "cosine"}),
    ("warmup_epochs", [1.0], [0.0], {"schedule": "plateau"}),
    ("cycle_epochs", [0.0, 1e308], [0.5, None], {"schedule": "triangular2"}),
    ("cycle_epochs", [2.0], [None], {}),
    ("plateau_patience", [0], [1], {}),
    ("plateau_factor", [0.0, 1.0], [0.5], {}),
    ("early_stopping", [0], [1, None], {}),
    ("augment", ["flip", ("flop",), ("flip", "flip")], [("mixup", "erasing"), ()], {}),
    ("label_smoothing", [1.0], [0.0], {}),
    ("class_weights", ["all", None], ["balanced"], {}),
    ("layer_decay", [0.0, 1.5, NAN], [0.1, 1.0], FINETUNE),
    ("layer_decay", [0.5], [1.0], {}),
    ("ema_decay", [1.0, -0.1], [0.0], {}),
    ("parent", ["first"], [None], {}),
    ("parent", ["\0"], ["first"], FINETUNE),
    ("split_seed", [-1], [0, None], {}),
    ("weights", ["x.h5", "imagenet"], ["auto", "random"], {"phase": "scratch"}),
    ("standardize", ["all"], ["features", "none", None], {}),
    ("standardize", ["features"], ["none", None], {"phase": "scratch"}),
]


@pytest.mark.parametrize(("name", "refused", "taken", "others"), RANGES, ids=lambda v: str(v)[:20])
def test_each_value_is_taken_or_refused(
    name: str, refused: list[Any], taken: list[Any], others: dict[str, Any]
) -> None:
    for value in taken:
        config = RunConfig(**(others | {name: value}))
        assert getattr(config, name) == value
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for value in refused:
        with pytest.raises(SettingError) as caught:
            RunConfig(**(others | {name: value}))
        assert (caught.value.name, caught.value.exit_code) == (name, 2)
        assert repr(caught.value.found) == repr(value)
        assert str(caught.value).startswith(f"--{name.replace('_', '-')}")
        assert str(caught.value).isprintable()


def test_messages_say_what_was_expected() -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(UsageError) as caught:
            RunConfig(**settings)
        return str(caught.value)

    assert message(dropout=1.0) == "--dropout 1.0: expected a number less than 1"
    assert message(epoch=3) == "unknown setting epoch in the settings; did you mean epochs?"


def test_json_has_every_setting_and_gives_numbers_their_type() -> None:
    config = RunConfig(phase="finetune", unfreeze=("conv5",), parent="a")
    content = config.to_json()
    assert content.keys() == RunConfig.model_fields.keys()
    assert content["unfreeze"] == ["conv5"]
    read = RunConfig.from_json(content | {"dropout": 0, "unfreeze": ["conv4"], "limit": None})
    assert repr(read.dropout) == "0.0"
    assert read.unfreeze == ("conv4",)


def test_errors_of_a_file_name_the_file() -> None:
    with pytest.raises(UsageError, match=r"^unfreeze in config.json is \['conv5'\]; expected only"):
        RunConfig.from_json({"unfreeze": ["conv5"]})
    with pytest.raises(UsageError, match=r"^units in r.toml is '3'; expected a valid integer"):
        check_settings({"units": "3"}, "r.toml")
    with pytest.raises(UsageError) as caught:
        RunConfig.from_json(dict.fromkeys("abcdefghijkl"))
    assert len(caught.value.args) == 10


def complete(
    given: dict[str, Any], recipe: dict[str, Any] | None = None, *parent: Any
) -> tuple[RunConfig, list[str]]:
    return Settings(given, recipe or {}, "recipe r", *parent).complete()


@pytest.mark.parametrize("phase", PHASES)
def test_phase_defaults_fill_what_is_not_set(phase: str) -> None:
    config, _ = complete({"phase": phase, "epochs": 7}, {"epochs": 8})
    assert config.epochs == 7
    assert config.batch_size == DEFAULTS[phase]["batch_size"]
    assert config.learning_rate == DEFAULTS[phase]["learning_rate"]
    config, _ = complete({"phase": phase, "epochs": None}, {"epochs": 8})
    assert config.epochs == DEFAULTS[phase]["epochs"]


def test_a_pooled_head_has_its_own_learning_rate_in_the_frozen_phase() -> None:
    def rate(**given: Any) -> float | None:
        return complete(given)[0].learning_rate

    assert rate(head="gap") == FROZEN_GAP_RATE
    assert complete({}, {"head": "gap"})[0].learning_rate == FROZEN_GAP_RATE
    assert rate(head="flatten") == rate() == DEFAULTS["frozen"]["learning_rate"]
    assert rate(head="gap", phase="scratch") == DEFAULTS["scratch"]["learning_rate"]
    assert rate(head="gap", learning_rate=1e-5) == 1e-5


CHANGED = {"units": 64, "seed": 5, "limit": 100, "limit_test": 30, "dropout": 0.2}
PARENT, _ = complete(CHANGED)


def test_finetune_inherits_from_its_parent() -> None:
    config, lines = complete({"phase": "finetune"}, None, PARENT, "mother")
    for name in INHERITED:
        assert getattr(config, name) == getattr(PARENT, name)
    shown = {f"{name} = {value}  (inherited from mother)" for name, value in CHANGED.items()}
    assert set(lines) == shown  # and no default
    assert (config.parent, config.split_seed) == ("mother", 5)
    assert config.learning_rate == DEFAULTS["finetune"]["learning_rate"]
    assert config.standardize == "features"
    assert complete({"phase": "scratch"})[0].standardize == "none"


def test_finetune_overrides_but_keeps_the_split() -> None:
    given = {"phase": "finetune", "seed": 9, "dropout": 0.3}
    config, lines = complete(given, None, PARENT, "mother")
    assert (config.seed, config.split_seed, config.dropout) == (9, 5, 0.3)
    assert "seed = 9  (overrides 5 of mother)" in lines


@pytest.mark.parametrize("name", FIXED_BY_PARENT)
def test_what_the_parent_fixes_cannot_be_changed(name: str) -> None:
    other = {
        "val_fraction": 0.2, "limit": 50, "backbone": "toy", "weights": "random",
        "image_size": 64, "cut": "conv4", "head": "gap", "standardize": "none", "units": 65,
    }[name]  # fmt: skip
    flag = f"^--{name.replace('_', '-')} {other}: .*mother"
    with pytest.raises(UsageError, match=flag):
        complete({"phase": "finetune", name: other}, None, PARENT, "mother")
    recipe = {"phase": "finetune", name: other}
    with pytest.raises(UsageError, match=f"^{name} in recipe r is .*mother"):
        complete({}, recipe, PARENT, "mother")
    same = {name: getattr(PARENT, name)}
    assert complete(same, recipe, PARENT, "mother")[0].parent == "mother"


RECIPE = {"epochs": 9, "optimizer": "sgd", "momentum": 0.8, "early_stopping": 3, "units": 512}


def test_flags_override_the_recipe_and_each_change_is_listed() -> None:
    given = {"epochs": 4, "momentum": 0.8, "early_stopping": None}
    config, lines = complete(given, RECIPE)
    assert (config.epochs, config.optimizer, config.momentum) == (4, "sgd", 0.8)
    assert config.early_stopping is None
    # Neither units, which are at their default, nor momentum, where both agree.
    assert lines == [
        "epochs = 4  (overrides 9 of recipe r)",
        "optimizer = sgd  (from recipe r)",
        "early_stopping = none  (overrides 3 of recipe r)",
    ]


def test_lr_finder_leaves_the_learning_rate_open() -> None:
    assert complete({"lr_finder": True}, {})[0].learning_rate is None
    assert complete({}, {"lr_finder": True})[0].learning_rate is None
    assert complete({"lr_finder": False}, {"lr_finder": True})[0].learning_rate is not None
    assert complete({"lr_finder": True}, {"learning_rate": 0.1})[0].learning_rate == 0.1
    cleared = {"lr_finder": True, "learning_rate": None}
    assert complete(cleared, {"learning_rate": 0.1})[0].learning_rate is None


def test_the_recipe_overrides_what_a_parent_leaves_open() -> None:
    recipe = {"phase": "finetune", "dropout": 0.5, "units": 64, "parent": "aunt", "split_seed": 8}
    config, lines = complete({}, recipe, PARENT, "mother")
    assert (config.dropout, config.parent, config.split_seed) == (0.5, "mother", 5)
    assert "dropout = 0.5  (from recipe r, overrides 0.2 of mother)" in lines
    assert "seed = 5  (inherited from mother)" in lines
    assert not [line for line in lines if line.startswith(("parent", "split"))]
    assert [line for line in lines if line.startswith("units")] == ["units = 64  (from recipe r)"]


@pytest.mark.parametrize(
    ("given", "recipe", "beginning"),
    [
        ({}, {"epochs": 0}, "epochs in recipe r is 0; "),
        ({"epochs": 0}, {"epochs": 3}, "--epochs 0: "),
        ({"schedule": "cosine"}, {"schedule": "triangular2", "cycle_epochs": 2.0},
         "cycle_epochs in recipe r is 2.0; "),
        ({"cycle_epochs": 2.0}, {"schedule": "cosine"}, "--cycle-epochs 2.0: "),
        ({}, {"parent": "first"}, "parent in recipe r is 'first'; "),
        ({}, {"warmup_epochs": 7.0}, "warmup_epochs in recipe r is 7.0; "),
    ],
)  # fmt: skip
def test_an_error_names_where_the_value_is_from(
    given: dict[str, Any], recipe: dict[str, Any], beginning: str
) -> None:
    with pytest.raises(UsageError) as caught:
        complete(given, recipe)
    assert str(caught.value).startswith(beginning)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, (3, 4)), ({"seed": 3}, (3, 4)), ({"seed": 6}, (6, 6))]
)
def test_a_given_seed_decides_the_split_too(
    given: dict[str, Any], expected: tuple[int, int]
) -> None:
    config, _ = complete(given, {"seed": 3, "split_seed": 4})
    assert (config.seed, config.split_seed) == expected


def test_long_values_are_cut() -> None:
    _, lines = complete({}, {"data": "c" * 5000})
    assert len(lines[0]) < 300
