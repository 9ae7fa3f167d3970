"""Names of settings and their values from text. Stand-in until the settings room has its own."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.config import RunConfig, check_range
from fmnist_tf.settings.config import add_flags as add_flags

_SETTINGS = {field.name: field for field in dataclasses.fields(RunConfig)}


def setting_names() -> tuple[str, ...]:
    """Return the settings that have a flag."""
    return tuple(name for name, field in _SETTINGS.items() if "group" in field.metadata)


def read_value(name: str, text: str) -> Any:
    """Return the value that `--name text` gives; switches take true or false.

    Raises:
        UsageError: the text is no value of this setting.
    """
    if str(_SETTINGS[name].type) == "bool":
        if text not in ("true", "false"):
            raise UsageError("expected true or false")
        return text == "true"
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    add_flags(parser)
    try:
        value = getattr(parser.parse_args([f"--{name.replace('_', '-')}={text}"]), name)
    except argparse.ArgumentError as error:
        raise UsageError(error.message) from error
    check_range(_SETTINGS[name], value)
    return value
