"""The tables of `zoo plugins --details` and `--matrix`, and the README's, from the plugins themselves.

Nothing here is declared: an encoding's places and rung are read off what it returns, parameters are counted, the source
is the line of its docstring that says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from zoo import plugins
from zoo.bias import rung
from zoo.errors import ZooError
from zoo.extension import Conversion
from zoo.matrix import GEOMETRY, GRID, Cell, extended, mapped, places
from zoo.matrix import matrix as cells
from zoo.position import Encoding, Geometry

KINDS = {"text": GEOMETRY, "images": GRID}
"""The kinds of model that a plugin may serve."""


def source(plugin: type) -> str:
    """The docstring's source: what follows "Source:", or its first arXiv reference with the authors before it."""
    text = re.sub(r"\s+", " ", inspect.getdoc(plugin) or "")
    named = re.search(r"Source: (.*?arXiv:\d{4}\.\d{4,5}\)?)", text)
    named = named or re.search(r"([^.;(]*?arXiv:\d{4}\.\d{4,5})", text)
    return named.group(1).strip() if named else ""


def summary(plugin: type) -> str:
    """The docstring's first sentence."""
    return re.sub(r"\s+", " ", (inspect.getdoc(plugin) or "").partition("\n\n")[0])


def served(plugin: Callable[[Geometry], Any]) -> dict[str, Any]:
    """The plugin built for each kind of model that it serves; raises its first refusal where there is none."""
    made, refusals = {}, []
    for kind, geometry in KINDS.items():
        try:
            made[kind] = plugin(geometry)
        except ZooError as error:
            refusals.append(error)
    if not made:
        raise refusals[0]
    return made


def used(said: Encoding) -> list[str]:
    """The places at which an encoding tells positions."""
    return [place for place in ("embedding", "rotation", "bias") if getattr(said, place) is not None]


def told(said: Encoding) -> str:
    """The same for a reader: "rotation", "Slopes bias", "nothing"."""
    step = rung(said.bias)
    words = [f"{step.__name__} bias" if step and place == "bias" else place for place in used(said)]
    return ", ".join(words) or "nothing"


def details() -> tuple[list[dict[str, Any]], str]:
    """A document and a text: what each plugin is."""
    rows: list[dict[str, Any]] = []
    for row in plugins.table():
        try:
            plugin = plugins.load(row.group, row.name)
            entry: dict[str, Any] = {**row.asdict(), "summary": summary(plugin), "source": source(plugin)}
            entry["arguments"] = {
                name: "required" if parameter.default is parameter.empty else parameter.default
                for name, parameter in inspect.signature(plugin).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY
            }
            if row.group == "zoo.extensions":
                converts = issubclass(plugin, Conversion)
                entry["extends"] = [name for name, _ in extended(plugin)]
                entry |= {"converts": [*plugin.converts]} if converts else {}
                entry["dynamic"] = plugin.dynamic
                rows.append(entry)
                continue
            made = served(plugin)
            module = next(iter(made.values()))
            entry["parameters"] = sum(p.numel() for p in module.parameters() if p.requires_grad)
            entry["serves"] = list(made)
            if row.group == "zoo.positions":
                said = places(module)
                step = rung(said.bias)
                entry["places"], entry["rung"] = used(said), step.__name__ if step else None
                entry["per_layer"], entry["relative"] = module.per_layer, module.relative
            else:
                entry["form"], entry["fuses"] = module.form, module.fuses.__name__ if module.fuses else None
        except ZooError as error:
            entry = {**row.asdict(), "error": str(error)}
        rows.append(entry)
    lines = []
    for entry in rows:
        if "error" in entry:
            lines.append(f"{entry['name']}: {entry['error']}")
            continue
        arguments = ", ".join(f"{name}={value}" for name, value in entry["arguments"].items())
        if "converts" in entry:
            about = f"converts {', '.join(entry['converts'])}"
        elif "extends" in entry:
            about = f"extends {', '.join(entry['extends']) or 'none'}; " + (
                "chooses by the extent of a request" if entry["dynamic"] else "the same for every request"
            )
        else:
            about = (
                f"places {', '.join(entry['places']) or 'none'}; rung {entry['rung'] or 'none'}; "
                f"{'per layer' if entry['per_layer'] else 'shared'}"
                if "places" in entry
                else f"form {entry['form']}; fuses {entry['fuses'] or 'no bias'}"
            )
            about += f"; {entry['parameters']} parameters at 4 heads x 16; serves {' and '.join(entry['serves'])}"
        lines += [
            f"{entry['name']}({arguments})  {entry['distribution']} {entry['version']}",
            f"    {entry['summary']}",
            f"    {about}",
        ]
        if entry["source"]:
            lines.append(f"    {entry['source']}")
    return rows, "\n".join(lines)


def matrix() -> tuple[list[dict[str, Any]], str]:
    """A document and a text: which encoding goes with which kernel."""
    plain, longer = cells(), mapped()
    found = plain + longer
    document = [
        {"position": c.position, "kernel": c.kernel, "axes": c.axes, "works": not c.reasons, "reasons": list(c.reasons)}
        for c in found
    ]
    text = "\n\n".join(
        f"{title}\n{grid(part)}"
        for title, part in (
            ("decoder (text)", [cell for cell in plain if cell.axes == 1]),
            ("vision transformer (images)", [cell for cell in plain if cell.axes == 2]),
            ("decoder, extended by a map of the logits", longer),
        )
        if part
    )
    pairs: dict[str, list[Cell]] = {}
    for cell in found:
        for reason in cell.reasons[:1]:
            pairs.setdefault(reason, []).append(cell)
    kernels = len({cell.kernel for cell in found})
    reasons = [
        # What an encoding refuses by itself is said once, not once a kernel.
        f"{refused[0].position}{'' if len(refused) >= kernels else f' x {refused[0].kernel}'}: {reason}"
        for reason, refused in pairs.items()
    ]
    notes = "\n".join(f"  {reason}" for reason in reasons)
    return document, f"{text}\n\nwhy not:\n{notes}" if notes else text


def grid(found: list[Cell]) -> str:
    """Encodings down, kernels across: yes or a dash."""
    kernels = list(dict.fromkeys(cell.kernel for cell in found))
    positions = list(dict.fromkeys(cell.position for cell in found))
    works = {(cell.position, cell.kernel): not cell.reasons for cell in found}
    width = max(map(len, positions)) + 2
    columns = {name: max(len(name) + 2, 8) for name in kernels}
    lines = [" " * width + "".join(f"{name:<{wide}}" for name, wide in columns.items())]
    for name in positions:
        marks = (f"{'yes' if works[name, other] else '-':<{wide}}" for other, wide in columns.items())
        lines.append(f"{name:<{width}}" + "".join(marks))
    return "\n".join(line.rstrip() for line in lines)


def markdown() -> str:
    """The README's table: which encoding goes with which kernel in a decoder, and in a vision transformer."""
    found = cells()
    kernels = list(dict.fromkeys(cell.kernel for cell in found))
    works = {(cell.position, cell.kernel, cell.axes): not cell.reasons for cell in found}
    lines = ["| | tells positions by | " + " | ".join(kernels) + " |", "|---|---|" + "---|" * len(kernels)]
    for name in dict.fromkeys(cell.position for cell in found):
        try:
            said = told(places(next(iter(served(plugins.load("zoo.positions", name)).values()))))
        except ZooError:  # it serves neither
            said = "-"
        marks = [
            "".join(mark for mark, axes in (("T", 1), ("I", 2)) if works.get((name, k, axes))) or "-" for k in kernels
        ]
        lines.append(f"| **{name}** | {said} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n\nT: text (decoder), I: images (vision transformer), -: refused with a reason."
