"""Types of settings, as pydantic checks them, and what is said of a wrong value."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, PlainValidator

from fmnist_tf.errors import UsageError, printable, suggest


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("text, as flags and file names hold it")
    return value


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("each once")
    return values


Fraction = Annotated[float, Ge(0), Lt(1)]
PositiveFraction = Annotated[float, Gt(0), Lt(1)]
Positive = Annotated[float, Gt(0), AllowInfNan(False)]
NotNegative = Annotated[float, Ge(0), AllowInfNan(False)]
Count = Annotated[int, Ge(1), Le(2**31 - 1)]
Size = Annotated[int, Ge(1), Le(1024)]
CountFrom0 = Annotated[int, Ge(0), Le(2**31 - 1)]
# pydantic's own `str` refuses surrogates, which stand for the bytes of file names not in UTF-8.
Text = Annotated[str, PlainValidator(_check_text)]
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Unique = AfterValidator(_check_unique)


class SettingError(UsageError):
    """A setting has a wrong type, is out of range, or does not go with another setting.

    The message names the flag; that of `in_file` names the file.

    Attributes:
        name: the setting.
        found: its value.
        expected: what it may be, in words.
    """

    def __init__(self, name: str, found: Any, expected: str) -> None:
        self.name, self.found, self.expected = name, found, expected
        shown = "" if found is True else f" {show_value(found)}"
        super().__init__(f"{flag_of(name)}{shown}: expected {expected}")

    def in_file(self, where: str) -> UsageError:
        """Return the error for a value that the file or recipe `where` sets."""
        found = list(self.found) if isinstance(self.found, tuple) else self.found
        shown = printable(repr(found), 100)
        return UsageError(f"{self.name} in {where} is {shown}; expected {self.expected}")


def check_names(names: Collection[str], known: Collection[str], kind: str, where: str) -> None:
    """Refuse unknown names, and suggest the known ones that are most like them.

    Raises:
        UsageError: with one line for each unknown name, or the first ten.
    """
    lines = [
        f"unknown {kind} {printable(name)} in {where}; {suggest(name, known)}"
        for name in names
        if name not in known
    ]
    if lines:
        raise UsageError(*lines[:10])


def flag_of(name: str) -> str:
    """Return the flag of a setting, such as `--batch-size`."""
    return "--" + name.replace("_", "-")


def show_value(value: Any) -> str:
    """Return a value for a message, as its flag takes it, cut where it is long."""
    parts = value if isinstance(value, tuple) else () if value is None else (value,)
    return printable(",".join(map(str, parts)) or "none", 200)
