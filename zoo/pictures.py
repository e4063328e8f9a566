"""Pictures of the encodings at initialisation: what position alone does to attention, before anything is learned.

One definition serves all of them. Every token has the same content, of such a length that the product of a query and a
key at one place is 1, and goes through the encoding: embedding, rotation, scale, bias or map of the logits. What is
drawn is each key's logit less the largest, which is what softmax sees: the key at 0 gets most, one at -1 gets 1/e of
that, and without positions all are at 0. Hidden states, where an encoding reads them, are random, by distance from the
query.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from zoo import plugins
from zoo.bias import LADDER
from zoo.errors import ZooError
from zoo.matrix import GEOMETRY, GRID, places
from zoo.position import Geometry, PositionEncoding
from zoo.tables import told
from zoo.vit import grid

SIZE: dict[str, Any] = {"dim": 512, "heads": 8, "kv_heads": 8, "head_dim": 64}
KINDS = {
    "text": replace(GEOMETRY, **SIZE, length=(256,)),
    "images": replace(GRID, **SIZE, length=(15, 15), prefix=0),
}
"""The models that are drawn: large enough that the curves are those of real ones."""
FAR = 4
"""A second query stands so many times as far from the first token; it is drawn where its curve is another."""
SHOWN = (1, 3, 6, 8)
"""The heads of which heat maps are drawn."""
FLOOR = -8.0
"""Curves leave the picture where a key gets e^-8 of the largest weight, which is nothing."""
HEADS = LinearSegmentedColormap.from_list("heads", ["#12355b", "#2a7f9e", "#6fb98f", "#e0a526"])
WEIGHT = LinearSegmentedColormap.from_list("weight", ["#f4f3ee", "#a9cbd0", "#3f86a5", "#12355b"])
TICKS = {"labelsize": 7, "color": "#555555", "major.width": 0.6, "major.size": 2.5}
STYLE = {
    "text.parse_math": False,  # a name with dollars is a name
    "font.size": 7.5,
    "text.color": "#222222",
    "axes.labelcolor": "#555555",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{axis}tick.{what}": value for axis in "xy" for what, value in TICKS.items()},
}


@dataclass(frozen=True)
class Panel:
    """What is drawn of one encoding in one kind of model.

    Args:
        name: Of the encoding.
        kind: "text" or "images".
        said: Places, rung and remarks.
        near: Relative logits by distance, [heads, distances], or by offset from the centre, [heads, rows, columns].
        far: Those of a text's farther query, where they are others.
        reason: Why there is nothing to draw, else empty.
    """

    name: str
    kind: str
    said: str = "cannot be drawn"
    near: Tensor | None = None
    far: Tensor | None = None
    reason: str = ""

    @property
    def family(self) -> int:
        """Where it stands among the others: nothing, embeddings, rotations, biases from the most special on."""
        order = ["nothing", "embedding", "rotation", *(step.__name__ for step in LADDER)]
        first = re.split(r"\W", self.said)[0]
        return order.index(first) if first in order else len(order)


@torch.no_grad()
def response(position: PositionEncoding, positions: Tensor, row: int) -> Tensor:
    """The logits of the token at `row` with all tokens, [heads, tokens].

    Args:
        position: The encoding.
        positions: Of all tokens, [tokens, axes].
        row: The query.
    """
    shape, tokens, hidden = position.geometry, len(positions), None
    if position.content:
        noise = torch.randn(FAR * 256, shape.dim, generator=torch.Generator().manual_seed(0))
        hidden = noise[(row - torch.arange(tokens)) % tokens][None]
    said = position(positions, positions, tokens, hidden)
    x = torch.ones(tokens, shape.head_dim) if said.embedding is None else said.embedding
    q = k = (x / x[row].norm().clamp(min=1e-12)).expand(1, shape.heads, -1, -1)
    if said.rotation is not None:
        q, k = said.rotation(q, k)
    q = q[:, :, row : row + 1]
    logits = q @ k.mT
    own = logits[..., row, None]
    logits = logits / own.where(own != 0, 1.0)
    logits = logits * (said.scale[..., row] if isinstance(said.scale, Tensor) else said.scale)
    if said.bias is not None:
        logits = said.bias.onto(logits, q, k, None, 1.0, slice(row, row + 1))
    return logits[0, :, 0]


def relative(logits: Tensor) -> Tensor:
    """Logits [heads, keys] less the largest of each head."""
    return logits - logits.amax(-1, keepdim=True)


def by_distance(position: PositionEncoding, tokens: int) -> Tensor:
    """Relative logits of the last of so many tokens of text, [heads, distances], no farther than trained."""
    line = torch.arange(tokens, dtype=torch.float32)[:, None]
    return relative(response(position, line, tokens - 1).flip(-1)[:, : position.geometry.length[0]])


def by_offset(position: PositionEncoding) -> Tensor:
    """Relative logits of the patch in the centre, [heads, rows, columns]."""
    height, width = position.geometry.length
    centre = height // 2 * width + width // 2
    return relative(response(position, grid(height, width), centre)).unflatten(-1, (height, width))


def panel(name: str, kind: str, plugin: Any, geometry: Geometry) -> Panel:
    """Build an encoding and ask it; the draws of one do not depend on the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        position = plugin(geometry)
    said = [told(places(position)), *["per layer"] * position.per_layer]
    far, near = None, by_offset(position) if kind == "images" else by_distance(position, geometry.length[0])
    if kind == "text":
        try:
            far = by_distance(position, FAR * geometry.length[0])
            far = far if (near - far).abs().max() > -0.02 * near.min() else None
        except ZooError:
            pass  # a table that ends
    if near.min() > -1e-6 and said != ["nothing"]:
        said.append("flat at first")
    return Panel(name, kind, ", ".join(said), near, far)


def panels(name: str) -> list[Panel]:
    """A panel for each kind of model that the encoding serves, or one that says why there is none."""
    drawn, broken, refused = [], [], []
    for kind, geometry in KINDS.items():
        try:
            drawn.append(panel(name, kind, plugins.load("zoo.positions", name), geometry))
        except ZooError as error:
            refused.append(Panel(name, kind, reason=str(error)))
        except Exception as error:  # a plugin's defect costs its panel, not the pictures of the others
            broken.append(Panel(name, kind, reason=f"{type(error).__name__}: {error}"))
    return drawn + broken if drawn else (broken + refused)[:1]


def plot(axes: Axes, panel: Panel) -> None:
    """Draw a panel, with name and subtitle above it."""
    if panel.near is None:
        reason = textwrap.fill(panel.reason, 34, max_lines=7, placeholder=" ...")
        axes.text(0, 0.97, reason, transform=axes.transAxes, va="top", color="#8c4a00", fontsize=7)
        axes.set_axis_off()
    elif panel.kind == "images":
        heat(axes, panel.near)
    else:
        lines(axes, panel.near, panel.far)
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(panel.name, (0, 1), (0, 16), fontsize=9.5, weight="bold", **above)
    axes.annotate(panel.said, (0, 1), (0, 6), fontsize=7, color="#666666", **above)


def alike(rows: Tensor) -> bool:
    """Whether all heads say the same."""
    return torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)


def lines(axes: Axes, near: Tensor, far: Tensor | None) -> None:
    """A line per head, the first head dark; dotted for the farther query."""
    axes.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    drawn = [near] if far is None else [near, far]
    for rows, dash in zip(drawn, ("-", (0, (1, 1.6))), strict=False):
        for head, row in enumerate(rows[:1] if alike(rows) else rows):
            axes.plot(row, color=HEADS(head / max(len(rows) - 1, 1)), linestyle=dash, linewidth=1.0, zorder=99 - head)
    low, end = max(torch.cat(drawn).min().item(), FLOOR), near.shape[-1]
    depth = -low if low < -1e-6 else 1.0
    below = 1.06 if low > FLOOR else 1.0
    axes.set(xlim=(0, end), ylim=(-below * depth, 0.06 * depth), xticks=[0, end // 2, end])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 4, 5, 10]))


def heat(axes: Axes, near: Tensor) -> None:
    """The heads' heat maps, four of them where they differ, in one scale of colours."""
    (heads, height, width), image = near.shape, near[0]
    if not alike(near):  # two by two, with a line between them
        image = near.new_full((2 * height + 1, 2 * width + 1), torch.nan)
        for tile, head in enumerate(SHOWN):
            top, left = tile // 2 * (height + 1), tile % 2 * (width + 1)
            image[top : top + height, left : left + width] = near[min(head, heads) - 1]
        axes.set_xlabel("heads " + ", ".join(map(str, SHOWN)))
    low = max(image.nan_to_num().min().item(), FLOOR)
    shown = axes.imshow(image, cmap=WEIGHT, vmin=min(low, -1e-6), vmax=0, interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="W")
    axes.spines[:].set_visible(False)
    if low < -1e-6:
        bar = axes.figure.colorbar(shown, cax=axes.inset_axes((1.05, 0, 0.05, 1)))
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 4, 5, 10]))


@dataclass(frozen=True)
class Section:
    """Panels in rows under a title; measures are inches."""

    title: str
    panels: list[Panel]
    columns: int
    wide: float
    high: float
    gap: float = 0.5


def compose(sections: list[Section]) -> Figure:
    """Sections under each other."""
    edge, above, head = 0.62, 0.68, 0.18
    width = edge + max(each.columns * (each.wide + each.gap) for each in sections)
    deep = [-(-len(each.panels) // each.columns) * (above + each.high) + 3 * head for each in sections]
    height = sum(deep) + head
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    top = height - 2 * head
    for each, depth in zip(sections, deep, strict=True):
        dotted = any(panel.far is not None for panel in each.panels)
        title = each.title + f" (dotted: token {FAR * KINDS['text'].length[0]})" * dotted
        figure.text(edge / width, top / height, title, fontsize=8.5, color="#444444")
        if any(panel.kind == "text" and panel.near is not None and not alike(panel.near) for panel in each.panels):
            key(figure, (width - each.gap) / width, top / height)
        for number, panel in enumerate(each.panels):
            row, column = divmod(number, each.columns)
            left, bottom = edge + column * (each.wide + each.gap), top - (row + 1) * (above + each.high) + head / 2
            axes = figure.add_axes((left / width, bottom / height, each.wide / width, each.high / height))
            plot(axes, panel)
            if panel.kind == "text" and panel.near is not None:
                axes.set_ylabel("relative logit" if column == 0 else "")
                axes.yaxis.set_label_coords(-0.44 / each.wide, 0.5)
                axes.set_xlabel("distance (tokens)" if number + each.columns >= len(each.panels) else "")
        top -= depth
    return figure


def key(figure: Figure, right: float, bottom: float) -> None:
    """Which colour is which head's."""
    wide, high = (inches / size for inches, size in zip((0.6, 0.06), figure.get_size_inches(), strict=True))
    axes = figure.add_axes((right - wide * 1.2, bottom + high / 2, wide, high))
    axes.imshow(torch.linspace(0, 1, 64)[None], cmap=HEADS, aspect="auto")
    axes.set_axis_off()
    for x, word, side in ((-0.08, "head 1", "right"), (1.08, str(SIZE["heads"]), "left")):
        axes.text(x, 0.5, word, ha=side, va="center", fontsize=7, color="#666666", transform=axes.transAxes)


def save(sections: list[Section], directory: Path, name: str) -> Path:
    """Write a PNG that says whom it shows, and whose bytes depend on nothing else."""
    path = directory / (re.sub(r"\W", "_", name) + ".png")  # a plugin's name may be none for a file
    shown = dict.fromkeys(panel.name for section in sections for panel in section.panels)
    compose(sections).savefig(path, metadata={"Software": None, "Description": ", ".join(shown)})
    return path


def draw(directory: Path) -> list[Path]:
    """Draw each installed encoding into the folder, as NAME.png, and all of them, by family, as sheet.png."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = {name: panels(name) for name in plugins.names("zoo.positions")}
        every = sorted((panel for each in found.values() for panel in each), key=lambda panel: panel.family)
        text, images = ([panel for panel in every if panel.kind == kind] for kind in KINDS)
        sheet = [
            Section("Text: the logit of a key, less the largest, over its distance from the query", text, 4, 1.75, 1.2),
            Section("Images: the same, over its offset from the patch in the centre", images, 6, 0.92, 0.92, gap=0.58),
        ]
        with style.context(["default", STYLE]):
            written = [
                save([Section("At initialisation", each, len(each), 3.2, 2.0)], directory, name)
                for name, each in found.items()
            ]
            return [*written, save(sheet, directory, "sheet")]
    except OSError as error:
        raise ZooError(
            f"The pictures cannot be written to {directory}: {error.strerror}. Name a folder that you may write to, "
            "such as  zoo plugins --pictures pictures"
        ) from error
