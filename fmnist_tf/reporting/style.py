"""Colours, fonts, and the two forms of a figure: a PNG file and inline SVG for the page.

matplotlib takes half a second to import, so it is imported inside functions. Only its object
interface is used: no global figure, no display.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup, escape

from fmnist_tf.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of pages, each a CSS variable, in the light and in the dark theme; PNG files have the light ones.
# Blue and orange are distinct to colour-blind readers too.
PALETTE = {
    "paper": ("#fcfbf8", "#141619"),
    "panel": ("#f4f2ec", "#1d2024"),
    "ink": ("#1c1d20", "#e9e7e2"),
    "soft": ("#55585f", "#b0b2b6"),
    "faint": ("#85878c", "#85888e"),
    "rule": ("#dedbd2", "#34383e"),
    "blue": ("#0a63a8", "#74b4ec"),
    "orange": ("#c04a00", "#ff9d5c"),
    "hit": ("#3e84c4", "#3474b2"),  # surfaces, with text on them
    "miss": ("#de7428", "#b05218"),
    "warn": ("#fdeccb", "#43340f"),
}
BLUE, ORANGE, INK, SOFT, FAINT, GRID, PAPER, WARN, HIT, MISS = (
    PALETTE[name][0]
    for name in ("blue", "orange", "ink", "soft", "faint", "rule", "paper", "warn", "hit", "miss")
)
# Mid-tones that are visible on white and on black; the first ten after Tableau's.
COLOURS = (
    "#4e79a7", "#f28e2b", "#e15759", "#59a14f", "#b07aa1", "#2fa8a0", "#c9a227", "#9c6b4a",
    "#ef7fa5", "#7f8c8d", "#7a5fd0", "#a3b93b", "#c2410c", "#4cc3e6", "#8b2f6b", "#3d6b35",
    "#d98f8f", "#5b6b8f", "#b5651d", "#00b894",
)  # fmt: skip
_STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so the same on every machine
    "text.parse_math": False,  # a class name is not a formula
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
TIP = "tip:"  # what follows it in the gid of an artist is a tooltip in inline SVG
_DPI = 130
_SVG_WIDTH = 5.0  # inches of 72 units; a unit is about a pixel on a phone


class Heading(NamedTuple):
    """The first lines of text above a PNG figure."""

    title: str
    banner: str | None = None  # a warning that must be seen


@contextmanager
def png_figure(
    path: Path, heading: Heading, subtitle: str = "", *, width: float, height: float
) -> Iterator[Figure]:
    """Yield an empty figure of `width` x `height` inches below its heading; then write the PNG.

    The same drawing gives the same bytes, whatever the user's own matplotlibrc says.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    lines: list[tuple[str, float, dict[str, Any]]] = []  # text, inches, style
    if heading.banner:
        box = {"facecolor": WARN, "edgecolor": ORANGE, "boxstyle": "round,pad=0.4"}
        lines.append((heading.banner, 0.44, {"fontsize": 11, "color": ORANGE, "bbox": box}))
    lines.append((heading.title, 0.34, {"fontsize": 13, "fontweight": "bold"}))
    if subtitle:
        lines.append((subtitle, 0.24, {"fontsize": 9, "color": SOFT}))
    total = height + 0.12 + sum(inches for _, inches, _ in lines)
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, total), dpi=_DPI)
        bottom = 0.1 / total
        below_heading = (0.1 / width, bottom, 1 - 0.2 / width, height / total - bottom)
        figure.set_layout_engine("constrained", rect=below_heading)
        from_top = 0.0
        for text, inches, style in lines:
            from_top += inches
            limit = int(72 * (width - 0.3) / (0.7 * style["fontsize"]))  # 0.7 em a letter
            figure.text(0.15 / width, 1 - from_top / total, drawable(text, limit, "?"), **style)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def draw_chart(
    name: str, height: float, plot: Callable[..., str], *data: Any, dpi: int = 100
) -> dict[str, str]:
    """Return a figure as SVG to put into a page, and the sentence that says what it shows.

    Its colours follow the page's theme. Texts stay texts, drawn by the browser in a font that has
    their letters.

    Args:
        name: CSS class of the chart, unique on its page.
        height: in inches; the width is 5.
        plot: draws on an empty figure, which is its first argument, and returns the sentence.
        data: its other arguments.
        dpi: of rasterized parts.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}
    stream = io.StringIO()
    with matplotlib.style.context(["default", _STYLE, style]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(_SVG_WIDTH, height), layout="constrained")
        finding = plot(figure, *data)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata, dpi=dpi)
    svg = stream.getvalue()
    svg = re.sub(r"\s*<(style|metadata)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used_ids = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def adapt(tag: re.Match[str]) -> str:
        """Take an unused id from a tag, and put tooltips and the page's colours and font in."""
        if tip := re.match(f'<g id="{TIP}([^"]*)"', tag[0]):
            return f"<g><title>{tip[1]}</title>"
        text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used_ids else "", tag[0])
        text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
        for name, (colour, _) in PALETTE.items():
            text = text.replace(f": {colour}", f": var(--{name})")
        return re.sub(r"\s+", " ", text)

    # matplotlib escapes texts, so what looks like a tag is one.
    svg = re.sub(r"<[^>]+>", adapt, svg)
    size = f'viewBox="0 0 {_SVG_WIDTH * 72:g} {height * 72:g}"'
    head = f'<svg class="chart {name}" role="img" aria-label="{escape(finding)}" {size}>'
    return {"svg": Markup(head + svg[svg.index(">") + 1 :]), "finding": finding}


def drawable(text: str, limit: int, fallback: str) -> str:
    """Return `text` on one line, at most `limit` characters; `fallback` if the font lacks one."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    shown = printable(text.strip(), limit)
    return shown if shown and all(font.get_char_index(ord(c)) for c in shown) else fallback


def drawable_names(class_names: Sequence[str], limit: int) -> list[str]:
    """Return a drawable name of at most `limit` characters for each class."""
    return [drawable(name, limit, f"class {k}") for k, name in enumerate(class_names)]
