"""Types of settings, as pydantic checks them."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, PlainValidator


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
