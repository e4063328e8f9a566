"""The pictures of an analysis, and which part of its document each of them shows."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib import style
from matplotlib.figure import Figure

from zoo.analyze.attention import bias, heads, redundancy
from zoo.analyze.canvas import Document
from zoo.analyze.spectra import coefficients, response, spectrum, streams
from zoo.pictures import STYLE

NAME = 24
"""Letters of a checkpoint's name that a picture has room for."""
PICTURES: dict[str, tuple[Callable[[list[Document]], Figure | None], str]] = {
    "spectrum": (spectrum, "spectrum"),
    "coefficients": (coefficients, "spectrum"),
    "response": (response, "response"),
    "bias": (bias, "bias"),
    "streams": (streams, "streams"),
    "heads": (heads, "heads"),
    "redundancy": (redundancy, "heads"),
}
"""Each picture by the name of its file, and the part of the document that it shows."""


def figures(documents: list[Document]) -> dict[str, tuple[Figure, list[Document]]]:
    """Every picture that has something to show, with its numbers."""
    found = {}
    with style.context(["default", STYLE]):
        drawn = [
            {**d, "name": d["name"] if len(d["name"]) <= NAME else f"...{d['name'][3 - NAME :]}"} for d in documents
        ]
        for name, (draw, part) in PICTURES.items():
            figure = draw(drawn)
            if figure is not None:
                found[name] = figure, [{"name": d["name"], part: d[part]} for d in documents]
    return found
