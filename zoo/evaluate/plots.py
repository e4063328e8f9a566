"""The pictures of a results document, one a measure: every checkpoint in one picture, in the same colour everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zoo.evaluate import grids
from zoo.evaluate.curves import chart, compact, curves, ends, items, log, margin, plot, title, trained
from zoo.evaluate.grids import Cell, Grid, found
from zoo.evaluate.ink import COLORS, LOOK, RULE, SOFT, WIDTH, beside, panel, png, sheet, short, svg
from zoo.pictures import WEIGHT


def perplexity(document: dict[str, Any]) -> Figure | None:
    """Perplexity over the length of the windows."""
    drawn = curves(document, "perplexity", "perplexity")
    return chart(document, drawn, "length of the window, tokens", "perplexity", scale=True)


def position(document: dict[str, Any]) -> Figure | None:
    """Loss over the place in the window; a bucket stands at the geometric mean of its first and last place."""

    def middle(item: dict[str, Any]) -> tuple[float, float]:
        return math.sqrt(max(item["start"], 1) * max(item["stop"] - 1, 1)), item["nats"]

    drawn = items(document, "position", "buckets", middle)
    return chart(document, drawn, "position in the window, tokens", "loss, nats per token")


def gain(document: dict[str, Any]) -> Figure | None:
    """Left the loss of the last tokens over their context, right what context beyond training is worth."""
    left = items(document, "gain", "contexts", lambda item: (item["context"], item["nats"]))
    right = curves(document, "gain", "gain")
    if not left or not right:
        return chart(document, left or right, "context, tokens", "loss" if left else "gain, nats per token")
    figure, edge = sheet(3.95), WIDTH - margin(left + right)
    middle = (0.62 + edge) / 2
    full = {name: grids.largest(each, "contexts") for name, each in found(document, "gain").items()}
    scored = {name: value.get("scored", 0) for name, value in full.items()}
    for axes, drawn, said, across, less in (
        (panel(figure, 0.62, middle - 0.3), left, "loss, nats per token", "context, tokens", scored),
        (panel(figure, middle + 0.4, edge), right, "gain, nats per token", "length, tokens", None),
    ):
        plot(axes, drawn)
        log(axes, drawn)
        title(axes, said)
        axes.set_xlabel(across)
        trained(document, axes, less)
    axes.axhline(0, color=RULE, linewidth=1, zorder=0)
    for each in left:
        reach = full[each.name].get("reach")
        if reach is not None:
            at = np.interp(math.log2(max(reach, 1)), np.log2(np.maximum(each.x, 1)), each.y)
            figure.axes[0].plot([reach], [at], "o", markersize=11, markerfacecolor="none", color=each.ink["color"])
    ends(axes, right)
    return figure


def offset(document: dict[str, Any]) -> Figure | None:
    """Loss of one text over how far its positions are shifted, at equal steps since the first is 0."""
    found_at = items(document, "offset", "offsets", lambda item: (item["offset"], item["nats"]))
    if not found_at:
        return None
    places = sorted({x for each in found_at for x in each.x})
    drawn = [replace(each, x=[places.index(x) for x in each.x]) for each in found_at]
    figure = sheet(3.95)
    axes = panel(figure, 0.62, WIDTH - margin(drawn))
    plot(axes, drawn)
    axes.set_xlim(-0.2, len(places) - 0.8)
    axes.set_xticks(range(len(places)), [compact(place) for place in places])
    title(axes, "loss, nats per token")
    axes.set_xlabel("positions shifted by, tokens")
    ends(axes, drawn)
    return figure


def resolution(document: dict[str, Any]) -> Figure | None:
    """Top-1 accuracy over the side of the images."""
    drawn = curves(document, "resolution", "top1", 100)
    return chart(document, drawn, "side of the image, pixels", "right at the first guess, percent")


def heat(maps: list[tuple[int, Grid]], down: str) -> Figure | None:
    """Maps side by side as many as fit, one a checkpoint: cells with their text, shaded from 0 to 1."""
    maps = [(order, grid) for order, grid in maps if grid.rows]
    if not maps:
        return None
    shared = len({tuple(grid.rows) for _, grid in maps}) == 1  # then rows are named once a line
    edge = 0.25 + 0.08 * max(len(row) for _, grid in maps for row in grid.rows) + 0.15 * bool(down)
    between = 0.3 if shared else edge + 0.15
    columns, rows = len(maps[0][1].columns), max(len(grid.rows) for _, grid in maps)
    words = [cell.text for _, grid in maps for row in grid.rows.values() for cell in row]
    side = min(max(0.46, 0.085 * max(map(len, words)) + 0.06), (WIDTH - edge) / columns)
    many = max(1, min(len(maps), int((WIDTH - edge + between) / (columns * side + between))))
    side = min(0.7, (WIDTH - edge + between) / many / columns - between / columns)
    above, below, high = 0.45, 0.6, 0.27
    deep = above + rows * high + below
    figure = sheet(-(-len(maps) // many) * deep)
    for at, (order, grid) in enumerate(maps):
        row, column = divmod(at, many)
        left = column * (columns * side + between) + edge
        top = figure.get_size_inches()[1] - row * deep - above
        here = len(grid.rows) * high
        axes = panel(figure, left, left + columns * side, here, top - here)
        tiles(axes, grid)
        axes.tick_params(labelleft=column == 0 or not shared)
        beside(
            axes, short(grid.caption), (0, 1), (1, 8), fontsize=9.5, weight="bold", color=COLORS[order % len(COLORS)]
        )
        axes.set_xlabel("length, tokens")
        axes.set_ylabel(down if column == 0 else "")
    return figure


def tiles(axes: Axes, grid: Grid) -> None:
    """A map's cells, with a line of paper between them."""
    axes.set(xlim=(0, len(grid.columns)), ylim=(len(grid.rows), 0))
    for y, row in enumerate(grid.rows.values()):
        for x, cell in enumerate(row[: len(grid.columns)]):
            axes.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, **fill(cell)))
            axes.text(x + 0.5, y + 0.5, cell.text, ha="center", va="center_baseline", fontsize=8, color=ink(cell))
    ticks = [compact(int(column.replace("\u202f", ""))) for column in grid.columns]
    axes.set_xticks([x + 0.5 for x in range(len(ticks))], ticks)
    axes.set_yticks([y + 0.5 for y in range(len(grid.rows))], list(grid.rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def fill(cell: Cell) -> dict[str, Any]:
    """A cell's ground; an outline where there is no number."""
    if cell.shade is None:
        return {"facecolor": "none", "edgecolor": RULE, "linewidth": 0.4, "alpha": 0.5}
    return {"facecolor": WEIGHT(float(cell.shade)), "linewidth": 0}


def ink(cell: Cell) -> str:
    """A cell's text: dark on light and light on dark, whatever the page's."""
    if cell.shade is None:
        return str(SOFT)
    return "#fdfdfd" if cell.shade > 0.66 else "#1c1c1c"


def maps(document: dict[str, Any], measure: str) -> list[tuple[int, Grid]]:
    """A retrieval measure's map of every checkpoint that has one."""
    return [
        (order, grids.depths(document, measure, name))
        for order, (name, each) in enumerate(found(document, measure).items())
        if each
    ]


def ruler(document: dict[str, Any]) -> Figure | None:
    """RULER's tasks over lengths, for every checkpoint."""
    there = found(document, "ruler").items()
    return heat([(order, grids.tasks(document, name)) for order, (name, each) in enumerate(there) if each], "")


PICTURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "perplexity": perplexity,
    "position": position,
    "gain": gain,
    "offset": offset,
    "passkey": lambda document: heat(maps(document, "passkey"), "depth"),
    "needle": lambda document: heat(maps(document, "needle"), "depth"),
    "ruler": ruler,
    "resolution": resolution,
}


def draw(document: dict[str, Any]) -> dict[str, tuple[bytes, str]]:
    """The pictures of all measures that have numbers, by measure: a PNG and an SVG each."""
    drawn = {}
    with style.context(["default", LOOK]):
        for measure, picture in PICTURES.items():
            figure = picture(document)
            if figure is not None:
                drawn[measure] = (png(figure), svg(figure))
    return drawn
