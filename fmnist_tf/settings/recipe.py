"""Settings from a file: a recipe of this package, a file of one's own, or a run's config.json.

A file is TOML, or JSON if its name ends in .json. Either all its keys are settings, as in a run's
config.json, or it has sections: [settings] for all phases, [frozen], [finetune] and [scratch] for
one, and [about] for people. A phase's own section overrides [settings].
"""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_tf.errors import UsageError, printable, suggest
from fmnist_tf.settings.config import PHASES, check_settings
from fmnist_tf.settings.types import check_names

FOLDER = Path(__file__).with_name("recipes")
ABOUT = ("what", "source", "published", "ours")
SECTIONS = ("about", "settings", *PHASES)
_MAX_BYTES = 65_536


@dataclass(frozen=True)
class Recipe:
    """Checked settings of a file.

    Attributes:
        name: what messages call it.
        about: some of `ABOUT`, as text.
        shared: settings of every phase; without sections of phases they may name the phase.
        phases: phase -> its own settings, in the order of `PHASES`.
    """

    name: str
    about: Mapping[str, str]
    shared: Mapping[str, Any]
    phases: Mapping[str, Mapping[str, Any]]

    def settings_of(self, phase: str | None) -> dict[str, Any]:
        """Return the settings of a phase; None: of the first.

        Raises:
            UsageError: the recipe has no such phase.
        """
        if not self.phases:
            return dict(self.shared)
        phase = next(iter(self.phases)) if phase is None else phase
        if phase not in self.phases:
            raise UsageError(f"--phase {phase}: {self.name} has {', '.join(self.phases)}")
        return {**self.shared, **self.phases[phase], "phase": phase}


def list_names() -> list[str]:
    """Return the names of this package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """Read the recipe called `name`, else the file at the path `name`.

    Raises:
        UsageError: there is neither; the file is too large, not UTF-8, not TOML or JSON; a section
            or setting is unknown; a value is of another type or out of range.
    """
    names, path, flag = list_names(), Path(name), f"--recipe {name}"
    if name in names:
        return _parse((FOLDER / f"{name}.toml").read_bytes(), f"recipe {name}", is_json=False)
    try:
        if not path.exists():
            hint = suggest(name, names)
            raise UsageError(f"{flag}: no recipe and no file has this name; {hint}")
        if path.is_dir():
            config = path / "config.json"
            hint = f"; its settings are in {config}" if config.is_file() else ""
            raise UsageError(f"{flag}: expected a file, found a folder{hint}")
        if not path.is_file():  # a pipe or a device might never end
            raise UsageError(f"{flag}: expected a file, found something else")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--recipe {printable(name, 200)}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{flag}: expected settings, found a file of over {_MAX_BYTES:,} bytes")
    return _parse(data, name, is_json=path.suffix == ".json")


def describe_recipes() -> str:
    """Return a paragraph on each of this package's recipes, at most 80 columns wide."""
    lines = []
    for name in list_names():
        recipe = read_recipe(name)
        about = {"ours": "not measured yet", **recipe.about}
        lines.append(f"{name} ({', '.join(recipe.phases)})")
        for text in (about["what"], *(f"{key}: {about[key]}" for key in ABOUT[1:])):
            lines += textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")
    lines += ["", "Run one:  python -m fmnist_tf.train --recipe NAME [--phase PHASE]"]
    return "\n".join(lines)


def _parse(data: bytes, where: str, *, is_json: bool) -> Recipe:
    try:
        text = data.decode("utf-8-sig")
        return _check(json.loads(text) if is_json else tomllib.loads(text), where)
    except (ValueError, RecursionError) as error:  # not UTF-8, syntax, 5,000 digits, 1,000 brackets
        form = "JSON" if is_json else "TOML"
        found = printable(str(error), 200)  # with line and column
        raise UsageError(f"{where}: expected {form} in UTF-8, found: {found}") from error


def _check(content: Any, where: str) -> Recipe:
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UsageError(f"{where}: expected an object of settings, found a {found}")
    if not any(isinstance(value, dict) for value in content.values()):
        content = {"settings": content}
    check_names([k for k, v in content.items() if isinstance(v, dict)], SECTIONS, "section", where)
    for name, value in content.items():
        if not isinstance(value, dict):
            expected = "[settings], or under [PHASE] for one phase"
            shown = printable(name)
            raise UsageError(f"{shown} in {where} is in no section; expected it under {expected}")
    about = content.get("about", {})
    check_names(about, ABOUT, "key of [about]", where)
    for key, value in about.items():
        if not isinstance(value, str):
            raise UsageError(f"{key} in {where} is {printable(repr(value))}; expected text")
    named = [phase for phase in PHASES if phase in content]
    phases = {phase: check_settings(content[phase], f"[{phase}] of {where}") for phase in named}
    shared = check_settings(content.get("settings", {}), where)
    if any("phase" in settings for settings in (*phases.values(), shared if phases else {})):
        raise UsageError(f"phase in {where} is set; expected none, as a section names it")
    return Recipe(where, about, shared, phases)
