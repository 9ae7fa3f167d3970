"""What a run is asked to do: one frozen value, its flags, its JSON.

In: command-line words or a parent's config.json. Out: a `RunConfig` whose every knob is known and
checked. This module must not know TensorFlow, files of data, or how a knob is carried out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fmnist_tf.errors import UsageError

PHASES = ("frozen", "finetune", "scratch")
FLIP = "flip"
AUGMENTATIONS = (FLIP, "shift-crop", "erasing", "mixup")


def _knob(group: str, text: str, *, default: Any = None, **argparse_words: Any) -> Any:
    """Declare a knob once: its default, its place in --help and its argparse words."""
    return field(default=default, metadata={"group": group, "help": text, "words": argparse_words})


@dataclass(frozen=True)
class RunConfig:
    """Every knob of one run. `None` means "not said": the phase's or the card's value applies.

    Fractions and probabilities lie in 0..1, sides are in pixels, rates are per optimizer step.
    """

    phase: str = _knob(
        "run",
        "frozen: train the head on a frozen backbone; finetune: continue a frozen run with "
        "deep stages unfrozen; scratch: train everything",
        default="frozen",
        choices=PHASES,
    )

    data: str = _knob(
        "data",
        "auto, sample, or a CSV file or folder",
        default="auto",
        metavar="{auto,sample,PATH}",
    )
    test_data: str | None = _knob("data", "labelled CSV that is read once, at the end")
    label_column: str | None = _knob("data", "name of the label's column", metavar="NAME")
    val_fraction: float = _knob(
        "data", "share of the training rows held out for validation", default=0.1, metavar="F"
    )
    limit: int | None = _knob(
        "data", "use only N training and validation rows, stratified", metavar="N"
    )
    seed: int = _knob("data", "decides split, order, initial weights and dropout", default=0)

    backbone: str = _knob("model", "the network under the head", default="resnet50", metavar="NAME")
    weights: str = _knob(
        "model",
        "pretrained weights of the backbone; a file is in Keras' layout without top",
        default="auto",
        metavar="{auto,imagenet,random,PATH}",
    )
    image_size: int | None = _knob(
        "model", "side that images are resized to (default: the backbone's usual side)", metavar="N"
    )
    head: str = _knob(
        "model",
        "how the backbone's feature map becomes a vector",
        default="flatten",
        choices=("flatten", "gap"),
    )
    units: int = _knob("model", "width of the hidden dense layer; 0: none", default=512)
    dropout: float = _knob("model", "dropout before the last layer", default=0.5, metavar="P")
    unfreeze: tuple[str, ...] = _knob(
        "model",
        "finetune: stages to train, e.g. conv5 or conv4,conv5 or all (default: the deepest)",
        default=(),
        metavar="STAGE[,STAGE]",
    )
    train_batch_norm: bool = _knob(
        "model",
        "finetune: let the BatchNorm layers of unfrozen stages move too",
        default=False,
    )

    epochs: int | None = _knob("training", "passes over the training rows", metavar="N")
    batch_size: int | None = _knob("training", "examples per optimizer step", metavar="N")
    optimizer: str = _knob(
        "training", "update rule", default="adam", choices=("adam", "adamw", "sgd")
    )
    momentum: float = _knob("training", "of sgd, with Nesterov's look-ahead", default=0.9)
    weight_decay: float | None = _knob(
        "training",
        "share of a kernel that adamw and sgd take off per step, times the rate (default: adamw "
        "0.004, sgd 0)",
    )
    clip_norm: float | None = _knob("training", "largest norm of all gradients together")
    learning_rate: float | None = _knob("training", "peak learning rate", metavar="X")
    range_test: bool = _knob(
        "training",
        "first take some steps at rising rates, draw rates.png, and use what it suggests where no "
        "--learning-rate is given",
        default=False,
    )
    schedule: str = _knob(
        "training",
        "learning rate over the run",
        default="constant",
        choices=("constant", "cosine", "triangular2", "plateau"),
    )
    least_rate: float = _knob(
        "training",
        "rate where cosine ends and warm-up and triangular2 begin, and that plateau keeps above",
        default=0.0,
    )
    warmup_epochs: float = _knob(
        "training", "constant, cosine: epochs in which the rate rises to its peak", default=0.0
    )
    cycle_epochs: float | None = _knob(
        "training", "triangular2: epochs of one rise and fall (default: half the run)"
    )
    plateau_patience: int = _knob(
        "training",
        "plateau: epochs without a lower validation loss until the rate falls to a tenth",
        default=2,
    )
    early_stopping: int | None = _knob(
        "training", "stop after this many epochs without a better one", metavar="PATIENCE"
    )
    augment: tuple[str, ...] = _knob(
        "training",
        "changes of the training images: some of flip, shift-crop, erasing, mixup; flip is stored "
        "as a second view, the others need the frozen part anew in each epoch",
        default=(),
        metavar="KIND[,KIND]",
    )
    label_smoothing: float = _knob(
        "training", "share of the target spread over all classes", default=0.0, metavar="P"
    )
    class_weights: str = _knob(
        "training",
        "balanced: each class counts the same, however many rows it has",
        default="none",
        choices=("none", "balanced"),
    )
    stage_rate_factor: float = _knob(
        "training",
        "finetune: each stage below the head learns at this factor of the one above",
        default=1.0,
    )
    average_decay: float = _knob(
        "training",
        "per step, of a moving average of the weights, which is validated and kept; 0: none",
        default=0.0,
    )
    precision: str = _knob(
        "training",
        "arithmetic while training (weights and the saved model are float32); auto: bfloat16 where "
        "the processor computes in it",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
    )
    cache: str = _knob(
        "training",
        "where parsed files, downloads and the frozen part's output are kept; auto: .cache beside "
        "the runs; off: there, but the frozen part is computed anew in each epoch",
        default="auto",
        metavar="{auto,off,DIR}",
    )

    parent: str | None = field(default=None, metadata={})
    split_seed: int | None = field(default=None, metadata={})

    def cache_dir(self, runs_dir: Path) -> Path:
        """Return the folder for parsed files, downloads and the frozen part's output."""
        return runs_dir / ".cache" if self.cache in ("auto", "off") else Path(self.cache)

    def __post_init__(self) -> None:
        checks: list[tuple[bool, str, str]] = [
            (0 < self.val_fraction < 1, "val-fraction", "a number above 0 and below 1"),
            (0 <= self.dropout < 1, "dropout", "a number from 0, below 1"),
            (0 <= self.seed < 2**31, "seed", "a whole number from 0 to 2147483647"),
            (self.units >= 0, "units", "a whole number from 0"),
            (self.limit is None or self.limit >= 2, "limit", "a whole number from 2"),
            (self.epochs is None or self.epochs >= 1, "epochs", "a whole number from 1"),
            (self.batch_size is None or self.batch_size >= 1, "batch-size", "a number from 1"),
            (
                self.learning_rate is None or 0 < self.learning_rate < float("inf"),
                "learning-rate",
                "a finite number above 0",
            ),
            (
                self.image_size is None or 1 <= self.image_size <= 1024,
                "image-size",
                "a whole number from 1 to 1024",
            ),
            (0 <= self.momentum < 1, "momentum", "a number from 0, below 1"),
            (
                self.momentum == 0.9 or self.optimizer == "sgd",
                "momentum",
                f"with --optimizer sgd alone; {self.optimizer} has none",
            ),
            (
                self.weight_decay is None or 0 <= self.weight_decay < 1,
                "weight-decay",
                "a number from 0, below 1",
            ),
            (
                not self.weight_decay or self.optimizer != "adam",
                "weight-decay",
                "with --optimizer adamw or sgd",
            ),
            (
                self.clip_norm is None or 0 < self.clip_norm < float("inf"),
                "clip-norm",
                "a finite number above 0",
            ),
            (
                0 <= self.least_rate <= (self.learning_rate or float("inf")),
                "least-rate",
                "a number from 0 to --learning-rate",
            ),
            (
                0 <= self.warmup_epochs <= (self.epochs or float("inf")),
                "warmup-epochs",
                "a number from 0 to --epochs",
            ),
            (
                not self.warmup_epochs or self.schedule in ("constant", "cosine"),
                "warmup-epochs",
                "with --schedule constant or cosine",
            ),
            (
                self.cycle_epochs is None or 0 < self.cycle_epochs < float("inf"),
                "cycle-epochs",
                "a finite number above 0",
            ),
            (
                self.cycle_epochs is None or self.schedule == "triangular2",
                "cycle-epochs",
                "with --schedule triangular2",
            ),
            (self.plateau_patience >= 1, "plateau-patience", "a whole number from 1"),
            (
                self.early_stopping is None or self.early_stopping >= 1,
                "early-stopping",
                "a whole number from 1",
            ),
            (
                set(self.augment) <= set(AUGMENTATIONS)
                and len(set(self.augment)) == len(self.augment),
                "augment",
                f"some of {', '.join(AUGMENTATIONS)}, once each, or none",
            ),
            (0 <= self.label_smoothing < 1, "label-smoothing", "a number from 0, below 1"),
            (0 < self.stage_rate_factor <= 1, "stage-rate-factor", "a number above 0, up to 1"),
            (
                self.stage_rate_factor == 1 or self.phase == "finetune",
                "stage-rate-factor",
                "with --phase finetune",
            ),
            (0 <= self.average_decay < 1, "average-decay", "a number from 0, below 1"),
        ]
        for holds, flag, expected in checks:
            if not holds:
                found = getattr(self, flag.replace("-", "_"))
                found = ",".join(found) if isinstance(found, tuple) else found
                raise UsageError(f"--{flag} {found}: expected {expected}")
        if self.phase != "finetune" and (self.unfreeze or self.train_batch_norm):
            flag = (
                f"--unfreeze {','.join(self.unfreeze)}" if self.unfreeze else "--train-batch-norm"
            )
            trains = "everything" if self.phase == "scratch" else "nothing of the backbone"
            raise UsageError(
                f"{flag}: expected with --phase finetune alone; {self.phase} trains {trains}"
            )
        if self.phase == "scratch" and self.weights not in ("auto", "random"):
            raise UsageError(
                f"--weights {self.weights}: --phase scratch starts from random weights; leave it "
                "out, or use --phase frozen"
            )
        for knob in fields(self):
            choices = knob.metadata.get("words", {}).get("choices")
            if choices and getattr(self, knob.name) not in choices:
                raise UsageError(
                    f"{knob.name} is {getattr(self, knob.name)!r}; expected one of "
                    f"{', '.join(choices)}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the knobs as JSON values; `from_json` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read the knobs back.

        Raises:
            UsageError: a key is unknown, or a value is out of range.
        """
        known = {knob.name: str(knob.type) for knob in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(
                f"unknown setting {', '.join(unknown)} in config.json; expected "
                f"{', '.join(sorted(known))}"
            )
        for name, value in values.items():
            if not _is_of(known[name], value):
                raise UsageError(f"{name} in config.json is {value!r}; expected {known[name]}")
        knobs: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**knobs)


def _is_of(annotation: str, value: Any) -> bool:
    """Return whether a JSON value is of a knob's type; an integer is a float too."""
    if value is None:
        return annotation.endswith("| None")
    kinds: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
        "tuple": list,
    }
    kind = kinds[annotation.removesuffix(" | None").split("[")[0]]
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and (
        kind is not list or all(isinstance(item, str) for item in value)
    )


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

# A finetune run continues its parent's network on its parent's split: what shapes either comes
# from the parent, and cannot be said anew without training on the parent's validation rows or
# throwing the parent's head away.
FIXED_BY_PARENT = ("val_fraction", "limit", "backbone", "weights", "image_size", "head", "units")
INHERITED = (*FIXED_BY_PARENT, "data", "test_data", "label_column", "seed", "dropout")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one flag per knob; a flag that is not given leaves no trace in the result."""
    groups: dict[str, Any] = {}
    types = {"int": int, "float": float, "str": str}
    for knob in fields(RunConfig):
        if "group" not in knob.metadata:
            continue
        title = knob.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title))
        words = dict(knob.metadata["words"])
        annotation = str(knob.type).removesuffix(" | None")
        if annotation == "bool":
            words["action"] = "store_true"
        elif annotation.startswith("tuple"):
            words["type"] = _read_list
        else:
            words["type"] = types[annotation]
            if "choices" not in words:
                words.setdefault("metavar", {"int": "N", "float": "X"}.get(annotation, "PATH"))
        group.add_argument(
            "--" + knob.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=_help_with_default(knob),
            **words,
        )


def _read_list(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(filter(None, text.split(",")))


def _help_with_default(knob: dataclasses.Field[Any]) -> str:
    text = str(knob.metadata["help"])
    by_phase = {phase: getattr(value, knob.name, None) for phase, value in DEFAULTS.items()}
    if None not in by_phase.values():
        shown = ", ".join(f"{phase} {value:g}" for phase, value in by_phase.items())
        return f"{text} (default: {shown})"
    if knob.default is None or knob.default is False or knob.default == ():
        return text
    return f"{text} (default: {knob.default})"


def complete_config(
    given: Mapping[str, Any], parent: RunConfig | None = None, parent_name: str | None = None
) -> tuple[RunConfig, list[str]]:
    """Fill what was not said: from the parent first, then from the phase's defaults.

    Args:
        given: the knobs that the person set, and no others.
        parent: the frozen run that a finetune run continues.
        parent_name: its directory's name, kept in the result.

    Returns:
        The complete configuration, and one line per inherited or overridden value. The learning
        rate stays open to a range test.

    Raises:
        UsageError: a value is out of range, or contradicts the parent.
    """
    phase = given.get("phase", "frozen")
    values = dict(given)
    lines: list[str] = []
    if parent is not None:
        for name in INHERITED:
            inherited = getattr(parent, name)
            flag = "--" + name.replace("_", "-")
            if name not in given:
                values[name] = inherited
                lines.append(f"{name} = {inherited}  (inherited from {parent_name})")
            elif given[name] != inherited and name in FIXED_BY_PARENT:
                raise UsageError(
                    f"{flag} {given[name]}: expected {inherited}, which {parent_name} was trained "
                    f"with; finetune continues that network on that split. Leave {flag} out, or "
                    "train a new frozen run with it first"
                )
            elif given[name] != inherited:
                lines.append(f"{name} = {given[name]}  (overrides {inherited} of {parent_name})")
        values["parent"] = parent_name
        values["split_seed"] = parent.split_seed
    defaults = DEFAULTS.get(phase)
    if defaults:
        for name, value in dataclasses.asdict(defaults).items():
            if name != "learning_rate" or not values.get("range_test"):
                values.setdefault(name, value)
    values.setdefault("split_seed", values.get("seed", 0))
    return RunConfig(**values), lines
