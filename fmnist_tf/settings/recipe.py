"""Settings from a file: a recipe of this package, a file of one's own, or a run's config.json.

In: a recipe's name or a path. Out: a `Recipe`, its keys and types checked, which gives the settings
of a phase; and a table of the recipes there are. This module must not know flags, runs or data.

A file is TOML, or JSON if its name ends in .json. Either all its keys are settings, as in a run's
config.json, or it is in sections: [settings] for all phases, [frozen], [finetune] and [scratch] for
one, and [about] for people. A section named after a phase has the last word.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_tf.errors import UsageError, printable
from fmnist_tf.settings.config import PHASES, check_names, check_settings, suggest

FOLDER = Path(__file__).with_name("recipes")
ABOUT = ("what", "source", "published", "ours")
SECTIONS = ("about", "settings", *PHASES)
NOT_MEASURED = "not measured yet"
_MOST_BYTES = 65_536
_COLUMNS = {"recipe": 13, "phases": 16, "published": 21, "ours": 24}  # with gaps, 80 wide


@dataclass(frozen=True)
class Recipe:
    """Checked settings, and what they are.

    Attributes:
        name: what messages call it.
        about: some of `ABOUT`, as text.
        shared: settings of every phase.
        phases: phase -> its own settings, in the order of `PHASES`; empty: one phase, which
            `shared` may name.
    """

    name: str
    about: Mapping[str, str]
    shared: Mapping[str, Any]
    phases: Mapping[str, Mapping[str, Any]]

    def settings_of(self, phase: str | None) -> dict[str, Any]:
        """Return the settings of a phase; None: of the first.

        Raises:
            UsageError: the recipe has other phases alone.
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
        UsageError: there is neither; the file is none, too large, not UTF-8, not TOML or JSON; a
            section or setting is unknown; a value is of another type.
    """
    if name in (names := list_names()):
        return _parse((FOLDER / f"{name}.toml").read_bytes(), f"recipe {name}", is_json=False)
    path, where = Path(name), printable(name, 200)
    try:
        if path.is_dir():
            config = path / "config.json"
            hint = (
                f"; its settings are in {printable(str(config), 200)}" if config.is_file() else ""
            )
            raise UsageError(f"--recipe {where}: expected a file, found a folder{hint}")
        if not path.exists():
            raise UsageError(
                f"--recipe {where}: no recipe and no file has this name; {suggest(name, names)}"
            )
        if not path.is_file():  # a pipe or a device might never end
            raise UsageError(f"--recipe {where}: expected a file, found something else")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--recipe {where}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(
            f"--recipe {where}: expected settings, found a file of more than {_MOST_BYTES:,} bytes"
        )
    return _parse(data, where, is_json=path.suffix == ".json")


def describe_recipes() -> str:
    """Return the table of this package's recipes, at most 80 columns wide."""
    lines = [*_align(list(_COLUMNS)), "-" * 80]
    for name in list_names():
        recipe = read_recipe(name)
        about = recipe.about
        cells = [name, ", ".join(recipe.phases), about["published"], about.get("ours", "")]
        lines += _align([cell or NOT_MEASURED for cell in cells])
        for text in (about["what"], f"from: {about['source']}"):
            lines += textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")
    lines += ["", "Run one:  python -m fmnist_tf.train --recipe NAME [--phase PHASE]"]
    return "\n".join(lines)


def _align(cells: list[str]) -> list[str]:
    widths = _COLUMNS.values()
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        "  ".join(f"{part:<{width}}" for part, width in zip(row, widths, strict=True)).rstrip()
        for row in itertools.zip_longest(*wrapped, fillvalue="")
    ]


def _parse(data: bytes, where: str, *, is_json: bool) -> Recipe:
    try:
        text = data.decode("utf-8-sig")
        return _check(json.loads(text) if is_json else tomllib.loads(text), where)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        found = f"byte 0x{data[error.start]:02x}, which is not UTF-8"
        raise UsageError(f"{where}:{line}:{column}: {found}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}:{error.colno}"
        raise UsageError(f"{place}: {error.msg}; expected JSON") from error
    except tomllib.TOMLDecodeError as error:
        reason, line, column = _place(str(error), text)
        raise UsageError(
            f"{where}:{line}:{column}: {printable(reason, 200)}; expected TOML"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 brackets
        raise UsageError(
            f"{where}: expected settings, found: {printable(str(error), 200)}"
        ) from error


def _place(message: str, text: str) -> tuple[str, int, int]:
    """Return the reason, line and column that tomllib's message tells, 1-based."""
    if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        return found[1], int(found[2]), int(found[3])
    lines = text.split("\n")
    return message.removesuffix(" (at end of document)"), len(lines), len(lines[-1]) + 1


def _check(content: Any, where: str) -> Recipe:
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UsageError(f"{where}: expected an object of settings, found a {found}")
    if not any(isinstance(value, dict) for value in content.values()):
        content = {"settings": content}
    check_names([k for k, v in content.items() if isinstance(v, dict)], SECTIONS, "section", where)
    if outside := [name for name, value in content.items() if not isinstance(value, dict)]:
        raise UsageError(
            f"{printable(outside[0])} in {where} stands in no section; expected it under "
            f"[settings], or under {', '.join(f'[{phase}]' for phase in PHASES)} for one phase"
        )
    about = content.get("about", {})
    check_names(about, ABOUT, "key of [about]", where)
    for key, value in about.items():
        if not isinstance(value, str):
            raise UsageError(f"{key} in {where} is {printable(repr(value))}; expected text")
    phases = {
        phase: check_settings(content[phase], f"[{phase}] of {where}")
        for phase in PHASES
        if phase in content
    }
    shared = check_settings(content.get("settings", {}), where)
    for said in (*phases.values(), shared if phases else {}):
        if "phase" in said:
            raise UsageError(
                f"phase in {where} is {said['phase']!r}; expected none, for the sections "
                f"{', '.join(f'[{phase}]' for phase in phases)} tell it"
            )
    return Recipe(where, about, shared, phases)
