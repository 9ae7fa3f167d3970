"""Jinja environments and formats of the pages; escaping happens here, for every printed value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from fmnist_tf.errors import printable
from fmnist_tf.system.files import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

_TEXT_LIMIT = 400  # characters of a printed value; `cut` sets another limit
_NAME_LIMIT = 32  # characters of a class name; narrow places squeeze it further


def make_environment(**options: Any) -> Environment:
    """Return an environment for the templates; a name that the context lacks is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("fmnist_tf.reporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write an HTML page atomically, readable by its owner only: images may be private.

    Raises:
        KeyError: the template needs something that the context lacks.
    """
    import jinja2

    page = make_environment(autoescape=True, finalize=cut_text)
    page.filters |= {
        "cut": cut_text,
        "pct": lambda fraction, digits=1: f"{fraction:.{digits}%}",
        "squeeze": squeeze,
        "probability": format_probability,
        "count": lambda number: f"{number:,}",
        "seconds": lambda number: f"{number / 60:.1f} min" if number >= 120 else f"{number:.1f} s",
    }
    try:
        text = page.get_template(template).render(context)
    except jinja2.UndefinedError as error:
        raise KeyError(error.message) from error
    with replacing(path, mode=0o600) as temporary:
        # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def cut_text(value: object, limit: int = _TEXT_LIMIT) -> Markup:
    """Return a value as HTML text without control or bidi characters; Markup stays as it is."""
    return value if isinstance(value, Markup) else escape(printable(str(value), limit))


def display_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return printable names of at most 32 characters or so; none is empty, no two are equal."""
    shown = [
        printable(name.strip(), _NAME_LIMIT) or f"class {k}" for k, name in enumerate(class_names)
    ]
    counts = Counter(shown)
    return tuple(f"{name} [{k}]" if counts[name] > 1 else name for k, name in enumerate(shown))


def squeeze(name: str, limit: int) -> str:
    """Return a name of at most `limit` characters, cut in the middle."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[limit // 2 + 1 - limit :]}"


def format_probability(probability: float) -> str:
    """Return a whole percentage; only an exact 0 is "0%", only an exact 1 "100%"."""
    if 0 < probability < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"
