"""Fill what a person did not set: from the recipe first, then the parent run, then the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmnist_tf.settings.backbones import check_words
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.settings.types import SettingError, flag_of, show_value

# What a phase uses for settings that are None: chosen on validation rows of Fashion-MNIST; the
# trials are in runs/LOG.md.
DEFAULTS: dict[str, dict[str, float]] = {
    "frozen": {"epochs": 6, "batch_size": 256, "learning_rate": 1e-4},
    "finetune": {"epochs": 3, "batch_size": 64, "learning_rate": 5e-5},
    "scratch": {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3},
}

FROZEN_GAP_RATE = 1e-3
"""In place of the frozen phase's rate: a pooled head has a hundredth of the weights."""

# A finetune run continues its parent's network on its parent's split. Other values would mean
# training on the parent's validation rows or throwing the parent's head away.
FIXED_BY_PARENT = (
    "val_fraction", "limit", "backbone", "weights", "image_size", "cut", "head", "standardize",
    "units",
)  # fmt: skip
INHERITED = (
    *FIXED_BY_PARENT, "data", "test_data", "labels", "label_column", "limit_test", "seed",
    "dropout", "test_time_flip",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is asked for, by source.

    Attributes:
        given: settings that the person set by flags or arguments, and no others.
        recipe: settings of a recipe, from `check_settings`.
        recipe_name: the recipe, as messages call it.
        parent: the settings of the frozen run that a finetune run continues.
        parent_name: the name of that run, which the result keeps.
    """

    given: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_name: str = ""
    parent: RunConfig | None = None
    parent_name: str | None = None

    @property
    def seed(self) -> int:
        """The seed that `complete` gives: of the flags, the recipe or the parent."""
        return int({"seed": (self.parent or RunConfig()).seed, **self.recipe, **self.given}["seed"])

    def complete(self, **overrides: Any) -> tuple[RunConfig, list[str]]:
        """Return the complete configuration of a run, and where its values are from.

        Args:
            **overrides: settings in place of those given.

        Returns:
            The configuration, and one line for each value that is inherited, overridden, or set by
            the recipe to something else than the default. With `lr_finder` the learning rate may be
            None.

        Raises:
            UsageError: a value is out of range, or contradicts another or the parent.
        """
        given, parent, recipe = self.given | overrides, self.parent, dict(self.recipe)
        both = recipe | given
        by_phase = _phase_defaults(both)
        defaults = {
            name: field.default for name, field in RunConfig.model_fields.items()
        } | by_phase
        seed = recipe.get("seed", defaults["seed"])
        if (
            parent is not None
            or given.get("seed", seed) != seed
            or recipe.get("split_seed") == seed
        ):
            recipe.pop("split_seed", None)  # the parent's or the seed counts instead
        recipe_parent = recipe.pop("parent", None)
        layers = [("", given), (self.recipe_name, recipe)]
        if parent is not None:
            inherited = {name: getattr(parent, name) for name in INHERITED}
            layers.append((str(self.parent_name), inherited))

        values: dict[str, Any] = {}
        lines: list[str] = []
        for name, default in defaults.items():
            found = [(where, layer[name]) for where, layer in layers if name in layer]
            if not found:
                continue
            (where, value), *overridden = found
            values[name] = value
            if parent is not None and name in FIXED_BY_PARENT and value != inherited[name]:
                shown = show_value(inherited[name])
                expected = (
                    f"{shown}, which {self.parent_name} was trained with; finetune continues that "
                    f"network on that split. Use {flag_of(name)} {shown}, name another run with "
                    "--from, or train a new frozen run with this value first"
                )
                error = SettingError(name, value, expected)
                raise error.in_file(where) if where else error
            notes = [f"overrides {show_value(v)} of {w}" for w, v in overridden if v != value][:1]
            if name not in both:
                usual = "features" if name == "standardize" else default
                notes = [f"inherited from {where}"] if value != usual else []
            elif name not in given and (notes or value != default):
                notes = [f"from {where}", *notes]
            if notes:
                lines.append(f"{name} = {show_value(value)}  ({', '.join(notes)})")
        values["parent"] = recipe_parent if parent is None else self.parent_name
        if parent is not None:
            values["split_seed"] = parent.split_seed
        values = by_phase | {name: value for name, value in values.items() if value is not None}
        values.setdefault("split_seed", values.get("seed", 0))
        frozen = values.get("phase", "frozen") == "frozen"
        values.setdefault("standardize", "features" if frozen else "none")
        try:
            config = RunConfig(**values)
            check_words(config)
            return config, lines
        except SettingError as error:
            if error.name in given or error.name not in {*recipe, "parent"}:
                raise
            raise error.in_file(self.recipe_name) from error


def _phase_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    phase = settings.get("phase", "frozen")
    values: dict[str, Any] = dict(DEFAULTS.get(phase, {}))
    if phase == "frozen" and settings.get("head") == "gap":
        values["learning_rate"] = FROZEN_GAP_RATE
    if settings.get("lr_finder"):
        values.pop("learning_rate", None)  # the learning rate finder suggests one
    return values
