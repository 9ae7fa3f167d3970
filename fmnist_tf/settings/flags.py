"""Command-line flags, made from the settings of `RunConfig`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from fmnist_tf.settings.complete import DEFAULTS, FROZEN_GAP_RATE
from fmnist_tf.settings.config import RunConfig, check_value
from fmnist_tf.settings.types import flag_of

_METAVARS = {int: "N", float: "X", str: "PATH"}
_BOOLEANS = {"true": True, "false": False}
_SHORT = {"learning_rate": ["--lr"]}


def setting_names() -> tuple[str, ...]:
    """Return the settings that have a flag, in the order of --help."""
    return tuple(name for name, field in RunConfig.model_fields.items() if field.description)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting, in groups; a flag that is not given is absent from the result.

    Values are checked by `RunConfig`. `none` is read as None where a setting can be None: it clears
    what a recipe sets.
    """
    groups: dict[str, Any] = {}
    for name in setting_names():
        extra: Any = RunConfig.model_fields[name].json_schema_extra
        if extra["group"] not in groups:
            groups[extra["group"]] = parser.add_argument_group(extra["group"])
        kind, _ = _type_of(name)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(name)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            is_choice = get_origin(kind) is Literal
            choices = f"{{{','.join(get_args(kind))}}}" if is_choice else ""
            options["metavar"] = extra["metavar"] or choices or _METAVARS[kind]
            options["type"] = functools.partial(convert, name)
        group = groups[extra["group"]]
        group.add_argument(flag_of(name), *_SHORT.get(name, ()), **options)
        if name == "limit_test":
            options = {"action": "store_const", "const": 0, "dest": name, "help": "--limit-test 0"}
            group.add_argument("--no-test", default=argparse.SUPPRESS, **options)


def read_value(name: str, value: Any) -> Any:
    """Return a setting's value; a text is read as the setting's flag reads it.

    Booleans are `true` and `false`, lists have commas, `none` is None or an empty list.

    Raises:
        SettingError: the value is of another type, or out of range by itself.
    """
    return check_value(name, convert(name, value) if isinstance(value, str) else value)


def convert(name: str, text: str) -> Any:
    """Return a value as `read_value` does, unchecked: of another type it is the text itself."""
    kind, is_optional = _type_of(name)
    if is_optional and text == "none" and text not in get_args(kind):
        return None
    of_text: Callable[[str], Any] = kind
    if kind is bool:
        of_text = _BOOLEANS.__getitem__
    elif name == "image_size":
        of_text = _read_sizes
    elif kind not in _METAVARS:
        of_text = str if get_origin(kind) is Literal else _read_list
    try:
        return of_text(text)
    except (KeyError, ValueError):
        return text  # which `RunConfig` refuses with the right words


def to_arguments(values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that sets these values; False leaves a plain flag out."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--from" if name == "from_run" else flag_of(name)
        if isinstance(value, bool):
            is_setting = name in RunConfig.model_fields
            words += [flag] if value else [flag_of(f"no_{name}")] if is_setting else []
        else:
            parts = value if isinstance(value, tuple) else (value,)
            words += [flag, ",".join(map(str, parts)) or "none"]
    return words


def _type_of(name: str) -> tuple[Any, bool]:
    """Return str, int, float, bool, a Literal or a tuple type; and whether None is allowed too."""
    kind: Any = RunConfig.model_fields[name].annotation
    if type(None) not in get_args(kind):
        return kind, False
    kind = get_args(kind)[0]
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind, True  # without the range


def _read_sizes(text: str) -> int | tuple[int, ...]:
    return tuple(map(int, text.split(","))) if "," in text else int(text)


def _read_list(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(filter(None, text.split(",")))


def _help(name: str) -> str:
    field = RunConfig.model_fields[name]
    by_phase = {phase: values.get(name) for phase, values in DEFAULTS.items()}
    if None not in by_phase.values():
        shown = ", ".join(f"{phase} {value:g}" for phase, value in by_phase.items())
        gap = f"; frozen with --head gap {FROZEN_GAP_RATE:g}" * (name == "learning_rate")
        return f"{field.description} (default: {shown}{gap})"
    if field.default is None or field.default is False or field.default == ():
        return str(field.description)
    return f"{field.description} (default: {field.default})"
