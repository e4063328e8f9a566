"""The canvas of an analysis's pictures: a sentence above says what is seen; two checkpoints share one scale.

A picture shows no more than six layers and eight heads apart, evenly chosen; the numbers beside it hold all of them.
Maps over a grid have a scale each, which their titles tell.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from zoo.pictures import HEADS, WEIGHT

Document = dict[str, Any]
COLUMNS, TILES = 6, 8
"""Layers side by side, and heads, at most."""
LATE = "#d9822b"
"""The colour of what training never saw whole."""


def chosen(count: int, most: int) -> list[int]:
    """Evenly chosen numbers below `count`, the first and the last among them."""
    return list(range(count)) if count <= most else sorted({round(step) for step in np.linspace(0, count - 1, most)})


def columns(parts: list[Document]) -> list[list[int]]:
    """The layers that are drawn of each checkpoint; one may have more than the other."""
    return [chosen(len(part["layers"]), COLUMNS) for part in parts]


def sheet(
    rows: int, columns: int, title: str, words: str, *, wide: float = 2.3, high: float = 1.8, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes under a sentence."""
    width = max(columns * wide, 7.2)
    lines = textwrap.wrap(words, int(width * 17))
    top = 0.45 + 0.14 * len(lines)
    height = rows * high + top
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - top / height), h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    figure.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=10, weight="bold")
    figure.text(
        0.1 / width, 1 - 0.35 / height, "\n".join(lines), va="top", fontsize=7.5, color="#555555", linespacing=1.3
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def tint(head: int, heads: int) -> Any:
    """The colour of a head: the first dark, the last bright."""
    return HEADS(head / max(heads - 1, 1))


def ends(heads: int) -> str:
    """How colours are read."""
    return "" if heads == 1 else f" One line a head, from head 1 (dark blue) to head {heads} (yellow)."


def label(axes: np.ndarray, documents: list[Document], each: int = 1) -> None:
    """Names of the checkpoints above their rows; frames without data go."""
    for number, document in enumerate(documents):
        first = axes[number * each, 0]
        said = first.get_title(loc="left")
        first.set_title(f"{document['name']}: {document['position']}\n{said}".rstrip(), fontsize=7.5, loc="left")
    bare(axes)


def bare(axes: np.ndarray) -> None:
    """Take away the frames that nothing is drawn in."""
    for one in axes.flat:
        if not one.has_data():
            one.set_axis_off()


def periods(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of frequencies that reads as periods."""
    ticks = [2**k for k in range(1, 20) if low <= 1 / 2**k <= high * 1.001]
    ticks = ticks[:: -(-len(ticks) // 6)]
    axes.set_xscale("log")
    axes.set_xlim(high * 1.06, low / 1.06)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([1 / tick for tick in ticks], [str(tick) for tick in ticks])


def maps(shown: list[tuple[Document, list[Document], str]], title: str, words: str) -> Figure:
    """Heat maps over (dy, dx), a layer a row, a head a column."""
    tiles = [(document, found[layer], key) for document, found, key in shown for layer in chosen(len(found), COLUMNS)]
    heads = [chosen(len(entry[key]), TILES) for _, entry, key in tiles]
    words += " Above each panel: the logits of its lightest and its darkest colour."
    figure, axes = sheet(len(tiles), max(map(len, heads)), title, words, wide=1.35, high=1.5)
    for row, (document, entry, key) in enumerate(tiles):
        for column, head in enumerate(heads[row]):
            one, values = axes[row, column], np.array(entry[key][head])
            high, wide = (side // 2 for side in values.shape)
            one.imshow(
                # Rows of the table are query less key; drawn is the key as seen from the query.
                values[::-1, ::-1],
                cmap=WEIGHT,
                extent=(-wide - 0.5, wide + 0.5, high + 0.5, -high - 0.5),
                interpolation="nearest",
            )
            one.set(xticks=[-wide, 0, wide], yticks=[-high, 0, high])
            name = f"{document['name']}\n" if not entry["layer"] and not column else ""
            said = f"{name}layer {entry['layer'] + 1}, head {head + 1}\n{values.min():.2g} to {values.max():.2g}"
            one.set_title(said, fontsize=6.5)
    axes[-1, 0].set(xlabel="columns (patches)", ylabel="rows (patches)")
    bare(axes)
    return figure
