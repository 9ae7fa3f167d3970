"""Jinja environments, and the forms of what pages print; escaping happens here, for every value."""

from __future__ import annotations

import base64
import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from fmnist_tf.errors import printable
from fmnist_tf.reporting.style import PALETTE
from fmnist_tf.system.files import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

_TEXT_LIMIT = 400  # characters of a printed value; `cut` sets another limit
_NAME_LIMIT = 32  # characters of a class name; narrow places squeeze it further


@functools.cache  # templates are compiled once a process
def make_environment(**options: Any) -> Environment:
    """Return an environment for the templates; a name that the context lacks is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmnist_tf.reporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write an HTML page atomically.

    Raises:
        KeyError: the template needs something that the context lacks.
    """
    import jinja2

    page = make_environment(autoescape=True, finalize=cut_text)
    page.filters |= {
        "cut": cut_text,
        "image": encode_image,
        "setting": show_setting,
        "pct": lambda fraction, digits=1: f"{fraction:.{digits}%}",
        "squeeze": squeeze,
        "probability": format_probability,
        "seconds": lambda number: f"{number / 60:.1f} min" if number >= 120 else f"{number:.1f} s",
    }
    page.globals["palette"] = PALETTE
    try:
        text = page.get_template(template).render(context)
    except jinja2.UndefinedError as error:
        raise KeyError(error.message) from error
    with replacing(path.resolve()) as temporary:
        # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def show_setting(value: Any) -> str:
    """Return a setting as text; lists have commas."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def cut_text(value: object, limit: int = _TEXT_LIMIT) -> Markup:
    """Return a value as HTML text without control or bidi characters; Markup stays as it is."""
    return value if isinstance(value, Markup) else escape(printable(str(value), limit))


def display_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return printable names of at most 32 characters or so; none is empty, no two are equal."""
    shown = [
        printable(name.strip(), _NAME_LIMIT) or f"class {k}" for k, name in enumerate(class_names)
    ]
    numbered = [f"{name} [{k}]" for k, name in enumerate(shown)]
    counts = Counter([*shown, *numbered])
    return tuple(n if counts[name] > 1 else name for name, n in zip(shown, numbered, strict=True))


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


def encode_image(pixels: np.ndarray) -> Markup:
    """Return uint8 pixels, (784,), (H, W) or (H, W, 3), as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    array = pixels.reshape(28, 28) if pixels.ndim == 1 else pixels
    Image.fromarray(array).save(stream, format="png", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())


def blend_heat_map(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a grey image with a heat map over it, (28, 28, 3) uint8.

    Args:
        pixels: (784,) uint8.
        heat: (28, 28) uint8; 0 leaves the image grey, 255 is bright yellow.
    """
    import matplotlib

    grey = pixels.reshape(28, 28, 1).astype(np.float64)
    colour = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    weight = 0.75 * (heat / 255)[..., None] ** 0.7
    return np.rint(0.85 * grey * (1 - weight) + colour * weight).astype(np.uint8)
