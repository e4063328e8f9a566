"""The numbers of a results document as grids: checkpoints down, lengths across, for the page and for the terminal.

A grid has a cell for everything that was asked of every checkpoint. One without a number says why: what was refused,
and tasks that are absent or do not fit, have their reason; what has not been measured is a dash. Nothing is left out
and nothing counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TITLES = {
    "perplexity": "Perplexity over length",
    "position": "Loss over position",
    "gain": "Gain from context",
    "offset": "Loss at shifted positions",
    "passkey": "Passkey",
    "needle": "Needles in a haystack",
    "ruler": "RULER",
    "longppl": "LongPPL",
    "redundancy": "Redundancy of heads",
    "resolution": "Accuracy over resolution",
}
"""The measures in the order in which they are shown; one that is not among them comes after, under its own name."""
UNITS = {
    "perplexity": "lower is better",
    "position": "nats per token, lower is better",
    "gain": "nats per token, above 0 is better",
    "offset": "nats per token, level is better",
    "passkey": "found of asked",
    "needle": "mean share of the needles found",
    "ruler": "mean score, 100 is best",
    "longppl": "lower is better",
    "redundancy": "0 nothing in common, 1 the same",
    "resolution": "right at the first guess",
}
MEANT = {**UNITS, "position": "nats per token at the end", "offset": "nats per token, the largest change"}
"""The same for the one number that stands for a value."""
AXES = {"start": "position", "context": "context", "offset": "shifted by"}
TERMINAL = 120
"""Characters in a line of text."""
REASONS = ("refused", "unfit", "absent")
"""The keys under which a result, or an item within it, says why it has no number."""


@dataclass(frozen=True)
class Cell:
    """A number as it is written, its 95 % interval, and a shade between 0 and 1; or the reason why there is none."""

    text: str = "–"
    band: str = ""
    shade: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Grid:
    """Rows of cells under columns; `corner` says what the columns are, `caption` what the cells are or whose."""

    caption: str
    corner: str
    columns: list[str]
    rows: dict[str, list[Cell]] = field(default_factory=dict)


def number(x: Any) -> str:
    """Four digits of a number, thousands apart; anything else as it is."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return "–" if x is None else str(x)
    if isinstance(x, int) or 1e3 <= abs(x) < 1e7:
        return f"{x:,.0f}".replace(",", "\u202f") if abs(x) >= 1e4 else f"{x:.0f}"
    return f"{x:.4g}"


def decimals(x: Any, places: int = 3) -> str:
    """The same with fixed decimals, for columns; large numbers need none."""
    return number(x) if not isinstance(x, float) or abs(x) >= 1e3 else f"{x:.{places}f}"


def percent(x: Any) -> str:
    """A share as a percentage."""
    return "–" if x is None else f"{100 * x:.1f} %"


def signed(x: float, places: int = 3) -> str:
    """A difference."""
    return f"{round(x, places) + 0.0:+.{places}f}".replace("-", "−")  # never -0


def band(value: dict[str, Any], write: Callable[[Any], str]) -> str:
    """'low to high', or nothing where there is no interval."""
    low, high = value.get("low"), value.get("high")
    return "" if low is None or high is None else f"{write(low).removesuffix(' %')} to {write(high)}"


def names(document: dict[str, Any]) -> list[str]:
    """The checkpoints in the document's order."""
    told = [each["name"] for each in document.get("checkpoints", [])]
    return list(dict.fromkeys([*told, *(each["checkpoint"] for each in document.get("results", []))]))


def measures(document: dict[str, Any]) -> list[str]:
    """The measures that have results, in the order in which they are shown."""
    there = dict.fromkeys(each["measure"] for each in document.get("results", []))
    return [*(name for name in TITLES if name in there), *(name for name in there if name not in TITLES)]


def pending(document: dict[str, Any]) -> list[str]:
    """The measures that were asked for and have no result yet."""
    return [name for name in document.get("settings", {}).get("measures", []) if name not in measures(document)]


def found(document: dict[str, Any], measure: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The results of one measure by checkpoint and length, in order."""
    mine = [each for each in document.get("results", []) if each["measure"] == measure]
    return {
        name: {each["length"]: each for each in sorted(mine, key=lambda r: r["length"]) if each["checkpoint"] == name}
        for name in names(document)
    }


def lengths(document: dict[str, Any], measure: str) -> list[int]:
    """The lengths at which any checkpoint was asked."""
    return sorted({length for results in found(document, measure).values() for length in results})


def largest(results: dict[int, dict[str, Any]], key: str) -> dict[str, Any]:
    """The value with such a key at the largest length; empty where there is none."""
    return next((r["value"] for _, r in sorted(results.items(), reverse=True) if r.get("value", {}).get(key)), {})


def reason(entry: dict[str, Any]) -> str:
    """Why a result, or an item within it, has no number; empty where it has one."""
    return next((str(entry[key]) for key in REASONS if entry.get(key)), "")


def notes(document: dict[str, Any], measure: str) -> dict[str, str]:
    """Every reason for a missing number, with the places where it holds: 'fope, rope at 128, 256'."""
    said: dict[str, dict[str, dict[str, list[str]]]] = {}  # reason, task, checkpoint, lengths

    def note(entry: dict[str, Any], task: str, result: dict[str, Any]) -> None:
        if why := reason(entry):
            said.setdefault(why, {}).setdefault(task, {}).setdefault(result["checkpoint"], []).append(
                number(result["length"])
            )

    for result in (each for each in document.get("results", []) if each["measure"] == measure):
        note(result, "", result)
        for key, items in result.get("value", {}).items():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict):
                    axis = key.removesuffix("s")
                    note(item, item.get("task", f"{axis} {number(item.get(axis))}"), result)
    places: dict[str, list[str]] = {}
    for why, of in said.items():
        for task, checkpoints in of.items():
            alike: dict[str, list[str]] = {}
            for name, at in checkpoints.items():
                alike.setdefault(", ".join(at), []).append(name)
            here = "; ".join(f"{', '.join(who)} at {at}" for at, who in alike.items())
            places.setdefault(why, []).append(f"{task}: {here}" if task else here)
    return {why: "; ".join(each) for why, each in places.items()}


def score(value: dict[str, Any]) -> float:
    """The share that was found: of needles where it is told, else of trials."""
    return value["score"] if value.get("score") is not None else value["right"] / max(value["trials"], 1)


def trials(value: dict[str, Any]) -> Cell:
    """Counts of retrieval."""
    return Cell(f"{value['right']}/{value['trials']}", band(value, percent), score(value))


def drift(nats: list[float]) -> float:
    """The largest change against the first."""
    return max((each - nats[0] for each in nats), key=abs)


HEADS: dict[str, Callable[[dict[str, Any]], Cell]] = {
    "perplexity": lambda v: Cell(decimals(v["perplexity"], 2), band(v, lambda x: decimals(x, 2))),
    "position": lambda v: Cell(decimals(v["buckets"][-1]["nats"])),
    "gain": lambda v: Cell(signed(v["gain"]), band(v, signed)),
    "offset": lambda v: Cell(signed(drift([item["nats"] for item in v["offsets"] if "nats" in item]), 4)),
    "passkey": trials,
    "needle": lambda v: Cell(percent(score(v)), band(v, percent), score(v)),
    "ruler": lambda v: Cell(f"{v['mean']:.1f}" if v.get("mean") is not None else "–", f"of {v['counted']} tasks"),
    "longppl": lambda v: Cell(decimals(v["longppl"], 2)),
    "redundancy": lambda v: Cell(decimals(v["redundancy"])),
    "resolution": lambda v: Cell(percent(v["top1"]), band(v, percent)),
}
"""The one number that stands for a value."""


def head(measure: str, result: dict[str, Any] | None, show: Callable[[dict[str, Any]], Cell] | None = None) -> Cell:
    """A result's cell."""
    if result is None:
        return Cell()
    if why := reason(result):
        return Cell("n/a", reason=why)
    try:
        return (show or HEADS.get(measure, lambda _: Cell("yes")))(result["value"])
    except (KeyError, IndexError, TypeError):  # a value of another version, whose numbers are listed all the same
        return Cell("?")


def by_length(
    document: dict[str, Any], measure: str, caption: str, show: Callable[[dict[str, Any]], Cell] | None = None
) -> Grid:
    """Checkpoints down, lengths across."""
    across, there = lengths(document, measure), found(document, measure)
    rows = {name: [head(measure, each.get(length), show) for length in across] for name, each in there.items()}
    corner = "pixels" if measure == "resolution" else "tokens"
    return Grid(caption, corner, [number(length) for length in across], rows)


def by_item(
    document: dict[str, Any],
    measure: str,
    caption: str,
    key: str,
    axis: str,
    label: Callable[[dict[str, Any]], str] | None = None,
) -> Grid:
    """Checkpoints down, the items of a list across, by their `axis`: the list at the largest length that has one."""
    label = label or (lambda item: number(item[axis]))
    lists = {name: largest(each, key).get(key, []) for name, each in found(document, measure).items()}
    order = {label(item): item[axis] for items in lists.values() for item in items}
    across, rows = sorted(order, key=lambda name: order[name]), {}
    for name, items in lists.items():
        there = {
            label(item): Cell("n/a", reason=reason(item)) if reason(item) else Cell(decimals(item["nats"]))
            for item in items
        }
        refused = next((why for each in reversed(found(document, measure)[name].values()) if (why := reason(each))), "")
        empty = Cell("n/a", reason=refused) if refused and not there else Cell()
        rows[name] = [there.get(column, empty) for column in across]
    return Grid(caption, AXES[axis], across, rows)


def tasks(document: dict[str, Any], name: str) -> Grid:
    """RULER's tasks down, lengths across, of one checkpoint."""
    across, results = lengths(document, "ruler"), found(document, "ruler")[name]
    order = [task["task"] for each in results.values() for task in each.get("value", {}).get("tasks", [])]
    grid = Grid(name, "tokens", [number(length) for length in across], {task: [] for task in order})
    for task, row in grid.rows.items():
        for length in across:
            listed = results.get(length, {}).get("value", {}).get("tasks", [])
            item = next((each for each in listed if each["task"] == task), None)
            why = reason(item or results.get(length, {}))
            if item and not why:
                row.append(Cell(f"{item['score']:.1f}", shade=item["score"] / 100))
            else:
                row.append(Cell("n/a", reason=why) if why else Cell())
    return grid


def depths(document: dict[str, Any], measure: str, name: str) -> Grid:
    """Depths down, lengths across, of one checkpoint: counts, shaded by the share that was found."""
    across, results = lengths(document, measure), found(document, measure)[name]
    listed = {length: each.get("value", {}).get("depths", []) for length, each in results.items()}
    down = sorted({item["depth"] for items in listed.values() for item in items})
    rows = {}
    for depth in down:
        row = []
        for length in across:
            item = next((each for each in listed.get(length, []) if each["depth"] == depth), None)
            why = reason(item or results.get(length, {}))
            row.append(Cell("n/a", reason=why) if why else Cell() if item is None else trials(item))
        rows[f"{depth:.4g}"] = row
    return Grid(name, "tokens", [number(length) for length in across], rows)


def grids(document: dict[str, Any], measure: str) -> list[Grid]:
    """The grids of a measure: the one over lengths first."""
    over = by_length(document, measure, UNITS.get(measure, ""))
    if measure == "perplexity" and caution(document):
        bits = by_length(document, measure, "bits per byte of text", lambda v: Cell(decimals(v["bits_per_byte"])))
        return [over, bits]
    if measure in ("position", "offset"):
        key, axis, label = ("buckets", "start", span) if measure == "position" else ("offsets", "offset", None)
        listed = by_item(document, measure, over.caption, key, axis, label)
        return [listed if listed.columns else over]
    if measure == "gain":
        reach = {name: largest(each, "contexts").get("reach") for name, each in found(document, measure).items()}
        for name, row in over.rows.items():
            row.append(Cell(number(reach[name])))
        listed = by_item(document, measure, "loss of the same last tokens by their context", "contexts", "context")
        with_reach = Grid(over.caption, over.corner, [*over.columns, "reach"], over.rows)
        return [with_reach, listed] if listed.columns else [with_reach]
    if measure == "resolution":
        five = by_length(document, measure, "right within five guesses", lambda v: Cell(percent(v.get("top5"))))
        return [over, five]
    return [over]


def span(item: dict[str, Any]) -> str:
    """The positions of a bucket; its stop is the first that is not among them."""
    start, last = item["start"], item["stop"] - 1
    return number(start) if last <= start else f"{number(start)}–{number(last)}"


def line(result: dict[str, Any]) -> str:
    """One short line for a result, as it appears during a run."""
    unit = "pixels" if result["measure"] == "resolution" else "tokens"
    where = f"{result['checkpoint']}  {result['measure']}  {result['length']} {unit}"
    cell = head(result["measure"], result)
    if cell.reason:
        return f"{where}  n/a: {cell.reason}"
    seconds = f"  [{result['seconds']:.1f} s]" if "seconds" in result else ""
    unit = MEANT.get(result["measure"], "")
    return f"{where}  {cell.text}{f' ({cell.band})' * bool(cell.band)}{'  ' * bool(unit)}{unit}{seconds}"


def text(grid: Grid) -> str:
    """A grid in aligned columns, turned on its side where it is wider than a terminal."""
    rows = [[grid.corner, *grid.columns], *([name, *(cell.text for cell in row)] for name, row in grid.rows.items())]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(wide) + 2 * len(wide) > TERMINAL and len(rows) < len(wide):
        rows = [list(column) for column in zip(*rows, strict=True)]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(wide[0]), *(word.rjust(size) for word, size in zip(row[1:], wide[1:], strict=True))])
        for row in rows
    )
    return "\n".join([grid.caption, *(f"  {each}".rstrip() for each in lines)]).strip("\n")


def caution(document: dict[str, Any]) -> str:
    """What keeps the checkpoints' numbers from being compared; empty where nothing does."""
    told = {each["tokenizer"] for each in document.get("checkpoints", []) if each.get("tokenizer")}
    alike = "The models have different tokenizers, so a token is not the same piece of text for each: compare bits per "
    return f"{alike}byte, not perplexities or nats per token; and equal lengths are not equal texts." * (len(told) > 1)


def blocks(document: dict[str, Any]) -> Iterator[str]:
    """A block of text for each measure."""
    for measure in measures(document):
        why = [f"  n/a: {said} ({places})" for said, places in notes(document, measure).items()]
        title = TITLES.get(measure, measure)
        yield f"{title}: " + "\n".join([*map(text, grids(document, measure)), *why])
    if waiting := pending(document):
        yield f"Not measured yet: {', '.join(waiting)}"
    if warning := caution(document):
        yield warning


def table(document: dict[str, Any]) -> str:
    """The results as plain text: a block per measure, checkpoints down, lengths across, and why numbers are missing."""
    return "\n\n".join(blocks(document)).replace("\u202f", " ") or "Nothing has been measured."
