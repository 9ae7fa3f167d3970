"""What a run is asked to do: one frozen value, its flags, its JSON.

In: command-line words or a parent's config.json. Out: a `RunConfig` whose settings are all checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fmnist_tf.errors import UsageError, printable

WANDB_PROJECT = "fmnist-tf"
PHASES = ("frozen", "finetune", "scratch")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "triangular2", "plateau")
WITH_WARMUP = ("constant", "cosine")
FLIP = "flip"
DRAWN_AUGMENTATIONS = ("shift-crop", "erasing", "mixup")
"""Those with too many outcomes to store each; in the order in which they are applied."""
AUGMENTATIONS = (FLIP, *DRAWN_AUGMENTATIONS)
_MOST_SHOWN = 10  # unknown names of one file

# What a setting may be, and the words for it.
_Range = tuple[Callable[[Any], bool], str]
_SHARE: _Range = (lambda x: 0 <= x < 1, "a number from 0, below 1")
_PART: _Range = (lambda x: 0 < x < 1, "a number above 0 and below 1")
_FINITE: _Range = (lambda x: 0 < x < math.inf, "a finite number above 0")
_COUNT: _Range = (lambda x: 1 <= x < 2**31, "a whole number from 1 to 2147483647")
_FROM_0: _Range = (lambda x: 0 <= x < 2**31, "a whole number from 0 to 2147483647")


class SettingError(UsageError):
    """A setting's value is out of range, or does not go with another setting's.

    The message is that of a flag; `said_in` has it for a file.
    """

    def __init__(self, name: str, found: Any, expected: str) -> None:
        self.name, self.found, self.expected = name, found, expected
        shown = "" if found is True else f" {_shown(found)}"
        super().__init__(f"{_flag(name)}{shown}: expected {expected}")

    def said_in(self, where: str) -> UsageError:
        """Return the error for a value that was said in the file or recipe `where`."""
        return _wrong_value(self.name, self.found, self.expected, where)


def _setting(
    group: str,
    text: str,
    *,
    default: Any = None,
    within: _Range | None = None,
    **argparse_words: Any,
) -> Any:
    """Declare a setting once: default, range, place in --help, argparse words. None is in range."""
    words = {"group": group, "help": text, "within": within, "words": argparse_words}
    return field(default=default, metadata=words)


@dataclass(frozen=True)
class RunConfig:
    """Every setting of one run. `None` means "not said": the phase's or the spec's value applies.

    Fractions and probabilities lie in 0..1, sides are in pixels, rates are per optimizer step.
    """

    phase: str = _setting(
        "run",
        "frozen: train the head on a frozen backbone; finetune: continue a frozen run with "
        "deep stages unfrozen; scratch: train everything",
        default="frozen",
        choices=PHASES,
    )

    data: str = _setting(
        "data",
        "auto, sample, or a CSV file or folder",
        default="auto",
        metavar="{auto,sample,PATH}",
    )
    test_data: str | None = _setting("data", "labelled CSV that is read once, at the end")
    label_column: str | None = _setting("data", "name of the label's column", metavar="NAME")
    val_fraction: float = _setting(
        "data",
        "share of the training rows held out for validation",
        default=0.1,
        within=_PART,
        metavar="F",
    )
    limit: int | None = _setting(
        "data",
        "use only N training and validation rows, stratified",
        within=(lambda x: 2 <= x < 2**31, "a whole number from 2 to 2147483647"),
        metavar="N",
    )
    seed: int = _setting(
        "data", "decides split, order, initial weights and dropout", default=0, within=_FROM_0
    )

    backbone: str = _setting(
        "model", "the network under the head", default="resnet50", metavar="NAME"
    )
    weights: str = _setting(
        "model",
        "pretrained weights of the backbone; a file is in Keras' layout without top",
        default="auto",
        metavar="{auto,imagenet,random,PATH}",
    )
    image_size: int | None = _setting(
        "model",
        "side that images are resized to (default: the backbone's usual side)",
        within=(lambda x: 1 <= x <= 1024, "a whole number from 1 to 1024"),
        metavar="N",
    )
    head: str = _setting(
        "model",
        "how the backbone's feature map becomes a vector",
        default="flatten",
        choices=("flatten", "gap"),
    )
    units: int = _setting(
        "model",
        "width of the hidden dense layer; 0: none",
        default=512,
        within=_FROM_0,
    )
    dropout: float = _setting(
        "model", "dropout before the last layer", default=0.5, within=_SHARE, metavar="P"
    )
    unfreeze: tuple[str, ...] = _setting(
        "model",
        "finetune: stages to train, e.g. conv5 or conv4,conv5 or all (default: the deepest)",
        default=(),
        metavar="STAGE[,STAGE]",
    )
    train_batch_norm: bool = _setting(
        "model",
        "finetune: let the BatchNorm layers of unfrozen stages move too",
        default=False,
    )

    epochs: int | None = _setting(
        "training", "passes over the training rows", within=_COUNT, metavar="N"
    )
    batch_size: int | None = _setting(
        "training", "examples per optimizer step", within=_COUNT, metavar="N"
    )
    optimizer: str = _setting("training", "update rule", default="adam", choices=OPTIMIZERS)
    momentum: float = _setting(
        "training", "of sgd, with Nesterov's look-ahead", default=0.9, within=_SHARE
    )
    weight_decay: float | None = _setting(
        "training",
        "share of a kernel that adamw and sgd take off per step, times the rate (default: adamw "
        "0.004, sgd 0)",
        within=_SHARE,
    )
    clip_norm: float | None = _setting(
        "training", "largest norm of all gradients together", within=_FINITE
    )
    learning_rate: float | None = _setting(
        "training", "peak learning rate", within=_FINITE, metavar="X"
    )
    lr_finder: bool = _setting(
        "training",
        "first take some steps at rising rates, draw lr_finder.png, and use what it suggests where "
        "neither flag nor recipe says a rate (--learning-rate none unsays a recipe's)",
        default=False,
    )
    schedule: str = _setting(
        "training",
        "learning rate over the run",
        default="constant",
        choices=SCHEDULES,
    )
    min_learning_rate: float = _setting(
        "training",
        "rate where cosine ends and warm-up and triangular2 begin, and that plateau keeps above",
        default=0.0,
    )
    warmup_epochs: float = _setting(
        "training", "constant, cosine: epochs in which the rate rises to its peak", default=0.0
    )
    cycle_epochs: float | None = _setting(
        "training",
        "triangular2: epochs of one rise and fall (default: half the run)",
        within=(lambda x: 0 < x < 2**31, "a number above 0 and below 2147483648"),
    )
    plateau_patience: int = _setting(
        "training",
        "plateau: epochs without a lower validation loss until the rate falls",
        default=2,
        within=_COUNT,
    )
    plateau_factor: float = _setting(
        "training",
        "plateau: what the rate is multiplied by",
        default=0.1,
        within=_PART,
    )
    early_stopping: int | None = _setting(
        "training",
        "stop after this many epochs without a better one",
        within=_COUNT,
        metavar="PATIENCE",
    )
    augment: tuple[str, ...] = _setting(
        "training",
        "changes of the training images: some of flip, shift-crop, erasing, mixup; flip is stored "
        "as a second view, the others need the frozen part anew in each epoch",
        default=(),
        within=(
            lambda x: set(x) <= set(AUGMENTATIONS) and len(set(x)) == len(x),
            f"some of {', '.join(AUGMENTATIONS)}, once each, or none",
        ),
        metavar="KIND[,KIND]",
    )
    label_smoothing: float = _setting(
        "training",
        "share of the target spread over all classes",
        default=0.0,
        within=_SHARE,
        metavar="P",
    )
    class_weights: str = _setting(
        "training",
        "balanced: each class counts the same, however many rows it has",
        default="none",
        choices=("none", "balanced"),
    )
    layer_decay: float = _setting(
        "training",
        "finetune: each stage below the head learns at this factor of the one above",
        default=1.0,
        within=(lambda x: 0 < x <= 1, "a number above 0, up to 1"),
    )
    ema_decay: float = _setting(
        "training",
        "per step, of a moving average of weights and BatchNorm statistics, which is validated and "
        "kept; 0: none",
        default=0.0,
        within=_SHARE,
    )
    test_time_flip: bool = _setting(
        "training",
        "val and test figures, evaluate and predict: average the probabilities of each image and "
        "its mirror image; the best epoch is chosen without",
        default=False,
    )
    precision: str = _setting(
        "training",
        "arithmetic while training (weights and the saved model are float32); auto: bfloat16 where "
        "the processor computes in it",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
    )
    cache: str = _setting(
        "training",
        "where parsed files, downloads and the frozen part's output are kept; auto: .cache beside "
        "the runs; off: there, but the frozen part is computed anew in each epoch",
        default="auto",
        metavar="{auto,off,DIR}",
    )

    parent: str | None = field(default=None, metadata={})
    split_seed: int | None = field(default=None, metadata={"within": _FROM_0})

    def cache_dir(self, runs_dir: Path) -> Path:
        """Return the folder for parsed files, downloads and the frozen part's output."""
        return runs_dir / ".cache" if self.cache in ("auto", "off") else Path(self.cache)

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_range(setting, getattr(self, setting.name))
        finetune, sgd = self.phase == "finetune", self.optimizer == "sgd"
        trains = "everything" if self.phase == "scratch" else "nothing of the backbone"
        finetune_alone = f"with --phase finetune alone; {self.phase} trains {trains}"
        for holds, name, expected in (
            (
                self.momentum == 0.9 or sgd,
                "momentum",
                f"with --optimizer sgd alone; {self.optimizer} has none",
            ),
            (
                not self.weight_decay or self.optimizer != "adam",
                "weight_decay",
                "with --optimizer adamw or sgd",
            ),
            (
                0 <= self.min_learning_rate <= (self.learning_rate or math.inf)
                and math.isfinite(self.min_learning_rate),
                "min_learning_rate",
                "a number from 0 to --learning-rate",
            ),
            (
                0 <= self.warmup_epochs <= (self.epochs or math.inf),
                "warmup_epochs",
                "a number from 0 to --epochs",
            ),
            (
                not self.warmup_epochs or self.schedule in WITH_WARMUP,
                "warmup_epochs",
                f"with --schedule {' or '.join(WITH_WARMUP)}",
            ),
            (
                self.cycle_epochs is None or self.schedule == "triangular2",
                "cycle_epochs",
                "with --schedule triangular2",
            ),
            (
                self.layer_decay == 1 or finetune,
                "layer_decay",
                "with --phase finetune",
            ),
            (not self.unfreeze or finetune, "unfreeze", finetune_alone),
            (not self.train_batch_norm or finetune, "train_batch_norm", finetune_alone),
            (self.parent is None or finetune, "parent", "with --phase finetune alone"),
            (
                self.phase != "scratch" or self.weights in ("auto", "random"),
                "weights",
                "auto or random with --phase scratch, which starts from random weights; leave it "
                "out, or use --phase frozen",
            ),
        ):
            if not holds:
                raise SettingError(name, getattr(self, name), expected)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; `from_json` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read the settings back.

        Raises:
            UsageError: a key is unknown, or a value is of another type or out of range.
        """
        where = "config.json"
        try:
            return cls(**check_settings(values, where))
        except SettingError as error:
            raise error.said_in(where) from error


def check_range(setting: dataclasses.Field[Any], value: Any) -> None:
    """Check a value by itself; what one setting demands of another is seen in a whole `RunConfig`.

    Raises:
        SettingError: it is out of the setting's range.
    """
    within = setting.metadata.get("within")
    if within and value is not None and not within[0](value):
        raise SettingError(setting.name, value, within[1])
    choices = setting.metadata.get("words", {}).get("choices")
    if choices and value not in choices:
        raise SettingError(setting.name, value, f"one of {', '.join(choices)}")


def check_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings from JSON or TOML as a `RunConfig` takes them; null is left out.

    Args:
        values: setting -> value; lists become tuples, and integers floats where needed.
        where: the file they stand in, as messages call it.

    Raises:
        UsageError: a key is no setting, or a value is of another type.
    """
    kinds = {setting.name: str(setting.type) for setting in fields(RunConfig)}
    check_names(values, kinds, "setting", where)
    settings = {}
    for name, value in values.items():
        kind = kinds[name].removesuffix(" | None").split("[")[0]
        if value is None and kinds[name].endswith("| None"):
            continue
        if not _is_of(kind, value):
            raise _wrong_value(name, value, _KINDS[kind][1], where)
        if kind == "tuple":
            value = tuple(value)
        elif kind == "float":
            value = float(value)
        settings[name] = value
    return settings


def check_names(names: Collection[str], known: Collection[str], kind: str, where: str) -> None:
    """Refuse names that are not known, and say which known ones are most like them.

    Raises:
        UsageError: with one line for each unknown name, or the first ten.
    """
    unknown = [name for name in names if name not in known]
    lines = [
        f"unknown {kind} {printable(name)} in {where}; {suggest(name, known)}"
        for name in unknown[:_MOST_SHOWN]
    ]
    if len(unknown) > _MOST_SHOWN:
        lines.append(f"... and {len(unknown) - _MOST_SHOWN} more")
    if lines:
        raise UsageError("\n".join(lines))


def suggest(name: str, known: Collection[str]) -> str:
    """Return the known names that are most like `name`, as a hint; all if none is like it."""
    near = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(sorted(known))}"


# A setting's type -> the types of JSON and TOML, and the words for it. An integer is a float too.
_KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "tuple": (list, "a list of texts"),
}


def _is_of(kind: str, value: Any) -> bool:
    """Return whether a JSON or TOML value is of a kind; true is no number, nor are 64 bits."""
    if isinstance(value, list):
        return kind == "tuple" and all(isinstance(item, str) for item in value)
    if isinstance(value, int) and value.bit_length() >= 64:
        return False
    if isinstance(value, str) and "\0" in value:
        return False  # which no flag can hold and no file name
    return isinstance(value, _KINDS[kind][0]) and isinstance(value, bool) == (kind == "bool")


def _wrong_value(name: str, found: Any, expected: str, where: str) -> UsageError:
    found = printable(repr(list(found) if isinstance(found, tuple) else found), 100)
    return UsageError(f"{name} in {where} is {found}; expected {expected}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flag_text(value: Any) -> str:
    """Return a value as its flag takes it."""
    text = ",".join(value) if isinstance(value, tuple) else str("" if value is None else value)
    return text or "none"


def _shown(value: Any) -> str:
    return printable(flag_text(value), 200)


@dataclass(frozen=True)
class PhaseDefaults:
    """What a phase uses where nothing was said."""

    epochs: int
    batch_size: int
    learning_rate: float


# Chosen on validation rows of Fashion-MNIST; the trials are in runs/LOG.md.
DEFAULTS = {
    "frozen": PhaseDefaults(epochs=6, batch_size=256, learning_rate=1e-4),
    "finetune": PhaseDefaults(epochs=3, batch_size=64, learning_rate=5e-5),
    "scratch": PhaseDefaults(epochs=10, batch_size=64, learning_rate=1e-3),
}

FROZEN_GAP_RATE = 1e-3
"""In place of the frozen phase's rate: a pooled head has a hundredth of the weights."""

# A finetune run continues its parent's network on its parent's split: what shapes either comes
# from the parent, and cannot be said anew without training on the parent's validation rows or
# throwing the parent's head away.
FIXED_BY_PARENT = ("val_fraction", "limit", "backbone", "weights", "image_size", "head", "units")
INHERITED = (*FIXED_BY_PARENT, "data", "test_data", "label_column", "seed", "dropout")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one flag per setting; a flag that is not given leaves no trace in the result.

    `none` is read as None where a setting can be None: it unsays what a recipe says.
    """
    groups: dict[str, Any] = {}
    types = {"int": int, "float": float, "str": str}
    for setting in fields(RunConfig):
        if "group" not in setting.metadata:
            continue
        title = setting.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title))
        words = dict(setting.metadata["words"])
        annotation = str(setting.type).removesuffix(" | None")
        if annotation == "bool":
            words["action"] = argparse.BooleanOptionalAction
        elif annotation.startswith("tuple"):
            words["type"] = _read_list
        else:
            read = types[annotation]
            words["type"] = read if annotation == setting.type else _or_none(read)
            if "choices" not in words:
                words.setdefault("metavar", {"int": "N", "float": "X"}.get(annotation, "PATH"))
        group.add_argument(
            _flag(setting.name),
            default=argparse.SUPPRESS,
            help=_help_with_default(setting),
            **words,
        )


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Return settings as the words of a command line that `add_flags` reads back."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(_flag(name if value else f"no_{name}"))
        else:
            words.append(f"{_flag(name)}={flag_text(value)}")
    return words


def _read_list(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(filter(None, text.split(",")))


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(read)  # argparse tells the name when it refuses a value
    def read_or_none(text: str) -> Any:
        return None if text == "none" else read(text)

    return read_or_none


def _help_with_default(setting: dataclasses.Field[Any]) -> str:
    text = str(setting.metadata["help"])
    by_phase = {phase: getattr(value, setting.name, None) for phase, value in DEFAULTS.items()}
    if None not in by_phase.values():
        shown = ", ".join(f"{phase} {value:g}" for phase, value in by_phase.items())
        gap = f"; frozen with --head gap {FROZEN_GAP_RATE:g}" * (setting.name == "learning_rate")
        return f"{text} (default: {shown}{gap})"
    if setting.default is None or setting.default is False or setting.default == ():
        return text
    return f"{text} (default: {setting.default})"


def complete_config(
    given: Mapping[str, Any],
    parent: RunConfig | None = None,
    parent_name: str | None = None,
    *,
    recipe: Mapping[str, Any] | None = None,
    recipe_name: str = "",
) -> tuple[RunConfig, list[str]]:
    """Fill what was not said: from the recipe first, then the parent, then the phase's defaults.

    Args:
        given: the settings that the person set by flags, and no others.
        parent: the frozen run that a finetune run continues.
        parent_name: what finds it, kept in the result.
        recipe: the settings that a recipe sets; those of `check_settings`.
        recipe_name: where they stand, as messages call it.

    Returns:
        The complete configuration, and one line per value that is inherited, overridden, or from
        the recipe and not what it would have been without. The learning rate stays open to a range
        test.

    Raises:
        UsageError: a value is out of range, or contradicts the parent.
    """
    recipe = dict(recipe or {})
    phase = given.get("phase", recipe.get("phase", "frozen"))
    defaults = dataclasses.asdict(DEFAULTS[phase]) if phase in DEFAULTS else {}
    if phase == "frozen" and given.get("head", recipe.get("head")) == "gap":
        defaults["learning_rate"] = FROZEN_GAP_RATE
    if given.get("lr_finder", recipe.get("lr_finder")):
        defaults.pop("learning_rate", None)
    usual = {setting.name: setting.default for setting in fields(RunConfig)} | defaults
    seed = recipe.get("seed", usual["seed"])
    if parent is not None or given.get("seed", seed) != seed or recipe.get("split_seed") == seed:
        recipe.pop("split_seed", None)  # what counts is the parent's, or the seed
    recipe_parent = recipe.pop("parent", None)
    layers = [("", given), (recipe_name, recipe)]
    if parent is not None:
        inherited = {name: getattr(parent, name) for name in INHERITED}
        layers.append((str(parent_name), inherited))

    values: dict[str, Any] = {}
    lines: list[str] = []
    for name, default in usual.items():
        said = [(where, layer[name]) for where, layer in layers if name in layer]
        if not said:
            continue
        (where, value), *lower = said
        values[name] = value
        if parent is not None and name in FIXED_BY_PARENT and value != inherited[name]:
            raise _contradiction(name, value, where, inherited[name], parent_name)
        notes = [f"overrides {_shown(v)} of {w}" for w, v in lower if v != value][:1]
        if name not in given and name not in recipe:
            notes = [f"inherited from {where}"]
        elif name not in given and (notes or value != default):
            notes = [f"from {where}", *notes]
        if notes:
            lines.append(f"{name} = {_shown(value)}  ({', '.join(notes)})")
    values["parent"] = recipe_parent if parent is None else parent_name
    if parent is not None:
        values["split_seed"] = parent.split_seed
    values = defaults | {name: value for name, value in values.items() if value is not None}
    values.setdefault("split_seed", values.get("seed", 0))
    try:
        return RunConfig(**values), lines
    except SettingError as error:
        if error.name in given or error.name not in {*recipe, "parent"}:
            raise
        raise error.said_in(recipe_name) from error


def _contradiction(
    name: str, value: Any, where: str, expected: Any, parent_name: str | None
) -> UsageError:
    reason = (
        f"{_shown(expected)}, which {parent_name} was trained with; finetune continues that "
        "network on that split"
    )
    if where:
        hint = (
            f"Name another run with --from, override it with {_flag(name)} {_shown(expected)}, or "
            "train a new frozen run with this first"
        )
        return _wrong_value(name, value, f"{reason}. {hint}", where)
    flag = _flag(name)
    return UsageError(
        f"{flag} {_shown(value)}: expected {reason}. Leave {flag} out, or train a new frozen run "
        "with it first"
    )
