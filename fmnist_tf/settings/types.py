"""Types of settings: ranges for pydantic, and the same in words for messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, InstanceOf
from pydantic.fields import FieldInfo


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("no flag and no file name can hold NUL")
    return text


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("repeated")
    return values


Fraction = Annotated[float, Ge(0), Lt(1)]
PositiveFraction = Annotated[float, Gt(0), Lt(1)]
Positive = Annotated[float, Gt(0), AllowInfNan(False)]
NotNegative = Annotated[float, Ge(0), AllowInfNan(False)]
Count = Annotated[int, Ge(1), Le(2**31 - 1)]
CountFrom0 = Annotated[int, Ge(0), Le(2**31 - 1)]
# pydantic's own `str` refuses surrogates, which stand for the bytes of file names not in UTF-8.
Text = Annotated[InstanceOf[str], AfterValidator(_check_text)]
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Unique = AfterValidator(_check_unique)

_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_BOUNDS = {"ge": " from", "gt": " above", "le": " up to", "lt": ", below"}


class ValueType(NamedTuple):
    """What a setting may be.

    Attributes:
        kind: `str`, `int`, `float`, `bool`, a Literal of texts, or a tuple of texts.
        is_optional: whether None is allowed too.
        in_words: what is expected, for messages.
    """

    kind: Any
    is_optional: bool
    in_words: str

    @classmethod
    def of(cls, field: FieldInfo) -> ValueType:
        """Read the type of a model's field."""
        kind: Any = field.annotation
        limits = field.metadata
        is_optional = type(None) in get_args(kind)
        if is_optional:
            kind, *limits = get_args(get_args(kind)[0])
        return cls(kind, is_optional, _describe(kind, limits))


def _describe(kind: Any, limits: list[Any]) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        choices = get_args(get_args(kind)[0])
        is_closed = get_origin(get_args(kind)[0]) is Literal
        return f"some of {', '.join(choices)}, each once" if is_closed else "a list of texts"
    bounds = "".join(
        f"{word} {getattr(limit, key)}"
        for limit in limits
        for key, word in _BOUNDS.items()
        if hasattr(limit, key)
    )
    is_finite = any(limit == AllowInfNan(False) for limit in limits)
    return f"{'a finite number' if is_finite else _KINDS[kind]}{bounds}"
