"""Every setting of a run: type, range, default and help in one place, checked by pydantic."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from fmnist_tf.errors import did_you_mean
from fmnist_tf.settings.types import (
    Count,
    CountFrom0,
    Fraction,
    FromList,
    NotNegative,
    Positive,
    PositiveFraction,
    SettingError,
    Size,
    Text,
    Unique,
    check_names,
    flag_of,
    show_value,
)

WANDB_PROJECT = "fmnist-tf"
WANDB_MODES = ("auto", "online", "offline", "disabled")
FLIP = "flip"
WITH_WARMUP = ("constant", "cosine")

Phase = Literal["frozen", "finetune", "scratch"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "triangular2", "plateau"]
# A new one goes to the end: the random numbers of each kind depend on its place.
Augmentation = Literal["flip", "shift-crop", "erasing", "mixup", "randaugment", "cutmix"]

PHASES: tuple[str, ...] = get_args(Phase)
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
RANDOM_AUGMENTATIONS = AUGMENTATIONS[1:]
"""Those with too many outcomes to store each."""


def _setting(group: str, text: str, default: Any = None, metavar: str | None = None) -> Any:
    """Declare a setting with a flag: its group and text in --help, default, placeholder."""
    return Field(default, description=text, json_schema_extra={"group": group, "metavar": metavar})


_run, _data = partial(_setting, "run"), partial(_setting, "data")
_model, _training = partial(_setting, "model"), partial(_setting, "training")


class _Settings(BaseModel):
    """Settings, each checked by itself. None stands for the default of the phase or the backbone.

    Raises:
        SettingError: a value has a wrong type or is out of range.
        UsageError: a setting is unknown.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    phase: Phase = _run(
        "frozen: train the head on a frozen backbone; finetune: continue a frozen run with its "
        "deepest stages unfrozen; scratch: train everything",
        "frozen",
    )

    data: Text = _data(
        "auto, sample, or a file or folder: CSV, IDX, NPY, NPZ, Parquet, a zip of them, or a "
        "folder of pictures for each class; 'train-*.csv' in quotes: several files",
        "auto",
        "{auto,sample,PATH}",
    )
    test_data: Text | None = _data("labelled file or folder that is read once, at the end")
    labels: Text | None = _data(
        "file of the training labels, if they are in another one than the images; those of the "
        'test images are in the file named alike, with "test" for "train"',
        metavar="PATH",
    )
    label_column: Text | None = _data(
        "label column: a name, a number from 1, first or last; found if not given", metavar="COLUMN"
    )
    val_fraction: PositiveFraction = _data(
        "fraction of the training rows held out for validation", 0.1, "F"
    )
    limit: Annotated[int, Ge(2), Le(2**31 - 1)] | None = _data(
        "use only N training and validation rows, stratified"
    )
    limit_test: CountFrom0 | None = _data(
        "test on only N of the test images, stratified, the same for every seed; 0, or --no-test: "
        "do not test; `evaluate RUN` tests on all"
    )
    seed: CountFrom0 = _data("seed of split, order, initial weights and dropout", 0)

    backbone: Text = _model("network under the head", "resnet50", "{NAME,hub:PRESET}")
    weights: Text = _model(
        "pretrained weights of the backbone; a file is in Keras' layout without top",
        "auto",
        "{auto,imagenet,random,PATH}",
    )
    image_size: Size | Annotated[tuple[Size, ...], FromList] | None = _model(
        "side in pixels that images are resized to; with --cut auto several, such as 64,112 "
        "(default: the backbone's)",
        metavar="N[,N]",
    )
    cut: Text | None = _model(
        "end the backbone after this stage or block, such as conv4 or block5/c: nothing above is "
        "computed or saved; auto: where a linear probe on training rows does best (default: after "
        "the last)",
        metavar="{auto,STAGE[/BLOCK]}",
    )
    time_budget: Positive | None = _model(
        "with --cut auto: seconds that computing the backbone features of all images may take"
    )
    head: Literal["flatten", "gap"] = _model(
        "how the backbone's feature maps become a vector", "flatten"
    )
    standardize: Literal["features", "none"] | None = _model(
        "features: subtract from each backbone feature its mean over the training rows, and divide "
        "by its standard deviation (default: features, scratch none)"
    )
    units: CountFrom0 = _model("width of the hidden dense layer; 0: none", 512)
    dropout: Fraction = _model("dropout before the last layer", 0.5, "P")
    unfreeze: Annotated[tuple[Text, ...], FromList] = _model(
        "finetune: stages or blocks to train, such as conv5, conv4/block6,conv5 or all (default: "
        "the deepest stage)",
        (),
        "STAGE[/BLOCK][,...]",
    )
    train_batch_norm: bool = _model(
        "finetune: train the BatchNorm layers of unfrozen stages too", False
    )

    epochs: Count | None = _training("passes over the training rows")
    batch_size: Count | None = _training("examples per optimizer step")
    optimizer: Optimizer = _training("update rule", "adam")
    momentum: Fraction = _training("sgd: Nesterov momentum", 0.9)
    weight_decay: Fraction | None = _training(
        "adamw, sgd: fraction subtracted from each kernel per step, times the learning rate "
        "(default: adamw 0.004, sgd 0)"
    )
    clip_norm: Positive | None = _training("maximum norm of all gradients together")
    learning_rate: Positive | None = _training("peak learning rate")
    lr_finder: bool = _training(
        "first take some steps at rising learning rates, plot lr_finder.png, and use the suggested "
        "rate unless a flag or recipe sets one (--learning-rate none clears a recipe's)",
        False,
    )
    schedule: Schedule = _training("learning rate over the run", "constant")
    min_learning_rate: NotNegative = _training(
        "learning rate at which cosine ends, warm-up and triangular2 begin, and plateau stops", 0.0
    )
    warmup_epochs: NotNegative = _training(
        "constant, cosine: epochs in which the learning rate rises to its peak", 0.0
    )
    cycle_epochs: Annotated[float, Gt(0), Lt(2**31)] | None = _training(
        "triangular2: epochs of one rise and fall (default: half the run)"
    )
    plateau_patience: Count = _training(
        "plateau: epochs without a lower validation loss before the learning rate falls", 2
    )
    plateau_factor: PositiveFraction = _training(
        "plateau: factor that the learning rate is multiplied by", 0.1
    )
    early_stopping: Count | None = _training(
        "stop after this many epochs without a better one", metavar="PATIENCE"
    )
    augment: Annotated[tuple[Augmentation, ...], FromList, Unique] = _training(
        f"augmentations of the training images, some of {', '.join(AUGMENTATIONS)}; with flip "
        "alone backbone features are still stored, with others computed in each epoch",
        (),
        "KIND[,KIND]",
    )
    label_smoothing: Fraction = _training(
        "fraction of the target spread over all classes", 0.0, "P"
    )
    class_weights: Literal["none", "balanced"] = _training(
        "balanced: each class counts the same, however many rows it has", "none"
    )
    layer_decay: Annotated[float, Gt(0), Le(1)] = _training(
        "finetune: learning rate of a stage as a fraction of that of the stage above", 1.0
    )
    ema_decay: Fraction = _training(
        "decay per step of a moving average of weights and BatchNorm statistics, which is then "
        "validated and saved; 0: none",
        0.0,
    )
    test_time_flip: bool = _training(
        "average the probabilities of each image and its mirror image in the final val and test "
        "figures, evaluate and predict; the best epoch is chosen without",
        False,
    )
    precision: Literal["auto", "float32", "bfloat16"] = _training(
        "compute precision of training (weights and the saved model are float32); auto: bfloat16 "
        "where the processor or GPU supports it",
        "auto",
    )
    engine: Literal["auto", "tensorflow", "openvino"] = _training(
        "what computes backbone features; auto: OpenVINO where it is installed and no GPU is there",
        "auto",
    )
    cache: Text = _training(
        "where parsed files, downloads and backbone features are stored; auto: .cache in the "
        "folder of runs; off: the same, but backbone features are computed in each epoch",
        "auto",
        "{auto,off,DIR}",
    )

    keep_for_finetune: Text = _training(
        "frozen: the lowest stage or block that finetune will train: TensorFlow's pass over the "
        "images caches its input too, where the disk has four times the room; auto: finetune's "
        "default",
        "auto",
        "{auto,none,STAGE}",
    )

    # Without flags: what a run's config.json holds besides.
    parent: Text | None = None
    split_seed: CountFrom0 | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            check_names([name], cls.model_fields, "setting", "the settings")
            expected = re.sub("^(Input should be|Value error,) ", "", first["msg"])
            expected = re.sub("^(?=greater|less)", "a number ", expected)
            expected = expected.replace("valid tuple", "list of texts")
            if first["type"] == "literal_error":
                choices = re.findall("'(.*?)'", expected)
                hint = did_you_mean(str(first["input"]), choices)
                expected = "; ".join(filter(None, (", ".join(choices), hint)))
            raise SettingError(name, values[name], expected) from None


# A setting that is neither at its default nor off -> another one, and the values it goes with.
_ONLY_WITH = {
    "momentum": ("optimizer", ("sgd",)),
    "weight_decay": ("optimizer", ("adamw", "sgd")),
    "warmup_epochs": ("schedule", WITH_WARMUP),
    "cycle_epochs": ("schedule", ("triangular2",)),
    "layer_decay": ("phase", ("finetune",)),
    "unfreeze": ("phase", ("finetune",)),
    "train_batch_norm": ("phase", ("finetune",)),
    "parent": ("phase", ("finetune",)),
    "keep_for_finetune": ("phase", ("frozen",)),
    "time_budget": ("cut", ("auto",)),
}


class RunConfig(_Settings):
    """Every setting of one run; those that depend on each other agree."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise SettingError(name, getattr(self, name), expected)

        for name, (other, allowed) in _ONLY_WITH.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            is_set = value != default and bool(value or default)
            found = getattr(self, other)
            expected = f"only with {flag_of(other)} {' or '.join(allowed)}"
            expected += f", and the {other} is {show_value(found)}"
            require(not is_set or found in allowed, name, expected)
        scratch, searches = self.phase == "scratch", self.cut == "auto"
        peak, epochs = self.learning_rate or math.inf, self.epochs or math.inf
        expected = "a number up to --learning-rate"
        require(self.min_learning_rate <= peak, "min_learning_rate", expected)
        require(self.warmup_epochs <= epochs, "warmup_epochs", "a number up to --epochs")
        require(not scratch or not searches, "cut", "a stage with --phase scratch")
        expected = "one number, or several with --cut auto"
        require(searches or not isinstance(self.image_size, tuple), "image_size", expected)
        expected = "none with --phase scratch, which trains what makes the features"
        require(not scratch or self.standardize != "features", "standardize", expected)
        expected = (
            "auto or random with --phase scratch, which starts from random weights; leave it out, "
            "or use --phase frozen"
        )
        require(not scratch or self.weights in ("auto", "random"), "weights", expected)
        return self

    @property
    def side(self) -> int | None:
        """The one image size, in pixels; None: the backbone's default."""
        return None if isinstance(self.image_size, tuple) else self.image_size

    def cache_dir(self, runs_dir: Path) -> Path:
        """Return the folder for parsed files, downloads and backbone features."""
        return runs_dir / ".cache" if self.cache in ("auto", "off") else Path(self.cache)

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with these settings changed, checked like a new one."""
        return RunConfig(**(dict(self) | changes))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; `from_json` is its inverse."""
        return json.loads(json.dumps(dict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read the settings of a config.json.

        Raises:
            UsageError: a setting is unknown, of another type, out of range, or contradicts another.
        """
        where = "config.json"
        try:
            return cls(**check_settings(values, where))
        except SettingError as error:
            raise error.in_file(where) from None


def check_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings from JSON or TOML as a `RunConfig` takes them; null is left out.

    Args:
        values: setting -> value; lists become tuples, and integers floats where needed.
        where: the file that they are in, as messages call it.

    Raises:
        UsageError: a setting is unknown, of another type, or out of range by itself.
    """
    check_names(values, _Settings.model_fields, "setting", where)
    try:
        checked = dict(_Settings(**values))
    except SettingError as error:
        raise error.in_file(where) from None
    return {name: checked[name] for name in values if checked[name] is not None}


def check_value(name: str, value: Any) -> Any:
    """Return one setting's value as a `RunConfig` takes it.

    Raises:
        SettingError: it is of another type, or out of range by itself.
    """
    return getattr(_Settings(**{name: value}), name)
