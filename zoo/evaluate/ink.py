"""How every picture of a report looks: colours, sizes, and the two ways in which it is written.

A picture is drawn once and written twice: as a PNG on white, and as SVG whose ink is that of the page around it, light
or dark, and whose text is text.
"""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zoo.pictures import STYLE

COLORS = ("#2b7bba", "#d9862b", "#2a9d7c", "#c2518a", "#7a6fc4", "#8a8f3a")
"""Told apart by people who see two colours, and seen on white and on black; after Okabe and Ito."""
MARKERS = "osD^vP"
INK, SOFT, RULE = (str(STYLE[key]) for key in ("text.color", "axes.labelcolor", "axes.edgecolor"))
WIDTH = 7.4
"""Of every picture, inches."""
LOOK: dict[str, Any] = {
    **STYLE,
    "axes.facecolor": "none",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "zoo",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


def sheet(high: float) -> Figure:
    """An empty picture."""
    figure = Figure(figsize=(WIDTH, high), dpi=160, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def short(name: str) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= 22 else name[:21] + "…"


def panel(figure: Figure, left: float, right: float, high: float = 3.1, bottom: float = 0.52) -> Axes:
    """Axes between two places in inches."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, (right - left) / wide, high / tall))


def beside(axes: Axes, said: str, at: tuple[float, float], points: tuple[float, float], **look: Any) -> None:
    """Words at a place in fractions of the axes, moved by so many points."""
    axes.annotate(said, at, points, xycoords="axes fraction", textcoords="offset points", **look)


def png(figure: Figure) -> bytes:
    """On white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure) -> str:
    """For within a page: no size of its own, no names that another picture has, text in the page's font and ink."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<g id=\"[A-Za-z_]+[\d.]*_[\d.]+\">", "<g>", text)
    text = re.sub(r"^<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", text).replace("xlink:href", "href")
    text = text.replace("'DejaVu Sans'", "var(--font)")
    for color, name in ((INK, "ink"), (SOFT, "soft"), (RULE, "rule")):
        text = text.replace(color, f"var(--{name})")
    return text.strip()
