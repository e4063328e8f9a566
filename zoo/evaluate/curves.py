"""Lines of a results document: one a checkpoint, over lengths, positions or contexts, with 95 % bands.

They are told apart by colour, marker and, from the seventh on, dashes, and are named where they end, so that neither a
legend nor colours are needed to read them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from zoo.evaluate import grids
from zoo.evaluate.grids import found, number
from zoo.evaluate.ink import COLORS, INK, MARKERS, RULE, SOFT, WIDTH, beside, panel, sheet, short


@dataclass(frozen=True)
class Series:
    """A checkpoint's line; `low` and `high` hold None where there is no interval."""

    name: str
    order: int
    x: list[float]
    y: list[float]
    low: list[float | None]
    high: list[float | None]

    @property
    def ink(self) -> dict[str, Any]:
        """How it is drawn: six colours, then the same with dashes and hollow markers."""
        color, hollow = COLORS[self.order % len(COLORS)], self.order >= len(COLORS)
        return {
            "color": color,
            "linestyle": (0, (4, 2)) if hollow else "-",
            "marker": MARKERS[self.order % len(MARKERS)],
            "markerfacecolor": "none" if hollow else color,
            "markersize": 4.5,
            "linewidth": 1.6,
        }


def series(name: str, order: int, points: Iterable[tuple[Any, ...]]) -> Series:
    """From points of x, y, low and high."""
    x, y, low, high = map(list, zip(*sorted(points, key=lambda p: p[0]), strict=True))
    return Series(name, order, x, y, low, high)


def curves(document: dict[str, Any], measure: str, key: str, times: float = 1) -> list[Series]:
    """A number and its interval over the lengths, `times` a factor, of every checkpoint that has some."""
    drawn = []
    for order, (name, results) in enumerate(found(document, measure).items()):
        values = {length: each["value"] for length, each in results.items() if key in each.get("value", {})}
        if values:
            told = {at: (value[key], value.get("low"), value.get("high")) for at, value in values.items()}
            points = [(at, *(None if y is None else times * y for y in each)) for at, each in told.items()]
            drawn.append(series(name, order, points))
    return drawn


def items(
    document: dict[str, Any], measure: str, key: str, point: Callable[[dict[str, Any]], tuple[float, float]]
) -> list[Series]:
    """A list within the value at the largest length that has one, of every checkpoint."""
    drawn = []
    for order, (name, results) in enumerate(found(document, measure).items()):
        if listed := grids.largest(results, key).get(key):
            told = [(*point(item), None, None) for item in listed if "nats" in item]
            drawn += [series(name, order, told)] if told else []
    return drawn


def margin(lines: list[Series]) -> float:
    """Inches for the names at the right."""
    return 0.35 + 0.085 * max(len(short(each.name)) for each in lines)


def trained(document: dict[str, Any], axes: Axes, less: dict[str, float] | None = None) -> None:
    """A line at every length of first training, less what is not context."""
    marks: dict[float, list[str]] = {}
    for each in document.get("checkpoints", []):
        if isinstance(each.get("trained"), int | float):
            marks.setdefault(each["trained"] - (less or {}).get(each["name"], 0), []).append(each["name"])
    low, high = axes.get_xlim()
    for row, (at, who) in enumerate(sorted(marks.items())):
        if low <= at <= high:
            axes.axvline(at, color=RULE, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
            said = "trained" if len(marks) == 1 else f"{short(who[0])}{' …' * (len(who) > 1)} trained"
            across = axes.transAxes.inverted().transform(axes.transData.transform((at, 1)))[0]
            beside(axes, said, (across, 1), (4, -7 - 10 * row), fontsize=7.5, color=SOFT)


def log(axes: Axes, drawn: list[Series]) -> None:
    """A log-2 axis with a tick at each measured place, or, where those are many, at powers of two."""
    places = sorted({x for each in drawn for x in each.x})
    axes.set_xscale("log", base=2)
    axes.set_xlim(places[0] / 2**0.25, places[-1] * 2**0.25)
    ticks = [2**power for power in range(0, 40) if places[0] <= 2**power <= places[-1]]
    ticks = places if len(places) <= 8 and all(float(x).is_integer() for x in places) else ticks[:: len(ticks) // 9 + 1]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))


def compact(x: float) -> str:
    """512, 1k, 32k."""
    return f"{x / 1024:.0f}k" if x >= 1024 and x % 1024 == 0 else f"{x:.0f}"


def tall(axes: Axes, drawn: list[Series]) -> None:
    """A logarithmic y axis where the lines would otherwise be flat beside the highest."""
    y = [value for each in drawn for value in each.y]
    if min(y) > 0 and max(y) > 8 * min(y):
        axes.set_yscale("log")
        low, high = math.floor(math.log10(min(y))), math.ceil(math.log10(max(y)))
        steps, every = (1, 2, 5) if high - low <= 3 else (1,), (high - low) // 8 + 1
        ticks = [step * 10.0**power for power in range(low, high + 1, every) for step in steps]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: number(float(x))))
        axes.set_ylim(min(y) / 1.15, max(y) * 1.15)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def plot(axes: Axes, drawn: list[Series]) -> None:
    """Lines with their bands."""
    axes.grid(axis="y", color=RULE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for each in drawn:
        axes.plot(each.x, each.y, zorder=50 - each.order, **each.ink)
        known = [low is not None and high is not None for low, high in zip(each.low, each.high, strict=True)]
        if any(known):
            low, high = ([math.nan if v is None else v for v in side] for side in (each.low, each.high))
            axes.fill_between(
                each.x, low, high, where=known, color=each.ink["color"], alpha=0.14, linewidth=0, zorder=1
            )


def ends(axes: Axes, drawn: list[Series]) -> None:
    """Name every line at the right, at the height of its last point, moved apart where names would touch."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  # settles the limits
    high = axes.get_window_extent().height / axes.figure.dpi  # inches
    into = axes.transData + axes.transAxes.inverted()
    wanted = [(into.transform((each.x[-1], each.y[-1]))[1], each) for each in drawn]
    wanted = sorted(((min(max(at, 0.0), 1.0), each) for at, each in wanted), key=lambda pair: pair[0])
    step = min(0.17 / high, 1 / len(wanted))
    places = [at for at, _ in wanted]
    for _ in range(200):  # push neighbours apart by halves until none touch
        for i, j in itertools.pairwise(range(len(places))):
            lack = step - (places[j] - places[i])
            if lack > 1e-6:
                places[i], places[j] = places[i] - lack / 2, places[j] + lack / 2
        shift = max(0.0, -places[0]) - max(0.0, places[-1] - 1)
        places = [place + shift for place in places]
    wide = axes.get_window_extent().width / axes.figure.dpi
    for place, (_, each) in zip(places, wanted, strict=True):
        ink = {**each.ink, "linestyle": "none"}
        axes.plot([1 + 0.13 / wide], [place], transform=axes.transAxes, clip_on=False, **ink)
        axes.text(1 + 0.24 / wide, place, short(each.name), transform=axes.transAxes, color=ink["color"], va="center")


def chart(document: dict[str, Any], drawn: list[Series], across: str, up: str, scale: bool = False) -> Figure | None:
    """Lines over a log-2 axis; `scale`: the y axis may be logarithmic."""
    if not drawn:
        return None
    figure = sheet(3.95)
    axes = panel(figure, 0.62, WIDTH - margin(drawn))
    plot(axes, drawn)
    log(axes, drawn)
    if scale:
        tall(axes, drawn)
    title(axes, up)
    axes.set_xlabel(across)
    trained(document, axes)
    ends(axes, drawn)
    return figure


def title(axes: Axes, said: str) -> None:
    """What the y axis shows, written level above it."""
    beside(axes, said, (0, 1), (-26, 12), fontsize=9, color=INK)
