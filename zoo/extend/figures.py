"""What an extension does, in numbers: each wave before and after, the attention factor, the memory of a cache.

All is read off what the two encodings return, as data, so that it is what the models will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from zoo import plugins
from zoo.decoder import Decoder
from zoo.extend.methods import GROUP, converts
from zoo.extend.rewrite import POSITIONS, Plan, described
from zoo.lengths import short
from zoo.matrix import request
from zoo.position import Encoding
from zoo.vit import ViT

BYTES = {"float32": 4, "bfloat16": 2}


def said(model: Decoder | ViT, extent: int, weights: Mapping[str, Tensor] | None = None) -> Encoding:
    """What an encoding says of the first positions of a request, and of the last, along the diagonal of a grid.

    Args:
        model: It has no memory for its weights.
        extent: Of the request.
        weights: Of the model, as far as they are known; others count as 0.
    """
    position, first = model.trunk.position, f"{POSITIONS}0."
    known = {name: torch.zeros_like(each, device="cpu") for name, each in position.state_dict().items()}
    for name, each in (weights or {}).items():
        if name.startswith(first):
            known[name.removeprefix(first)] = each
    last = extent if position.geometry.axes == 1 else min(position.geometry.length)
    at = torch.tensor([[0.0], [1.0], [last - 1.0]]).expand(-1, position.geometry.axes)
    found: Encoding = functional_call(position, known, (at, at, extent))
    return found


def same(plan: Plan) -> bool:
    """Whether the encoding that takes another's place tells the same within the trained length."""
    if not hasattr(plan.before.trunk.position, "frequencies") and plan.before.trunk.position.state_dict():
        return not plan.added  # a table
    extent = math.prod(plan.before.trunk.geometry.length)
    held = {name: stored.tensor() for name, stored in plan.source.weights.items() if name.startswith(POSITIONS)}
    one, two = said(plan.before, extent, held), said(plan.after, extent, held | dict(plan.added))
    if one.rotation is None or two.rotation is None:
        return one.rotation is two.rotation and bool(one.scale == two.scale)
    pairs = (one.rotation.cos, two.rotation.cos), (one.rotation.sin, two.rotation.sin)
    return type(one.rotation) is type(two.rotation) and all(torch.equal(*torch.broadcast_tensors(*p)) for p in pairs)


def advice(plan: Plan, unchanged: bool) -> str:
    """What has to be done before the result is of use; nothing after a conversion that lost and gained nothing."""
    step = plan.step
    if converts(step["method"]):
        if unchanged:
            return ""
        return str(plugins.load(GROUP, step["method"])(**step["arguments"]).advice)
    kinds = [plugins.load(GROUP, word.strip()) for word in step["method"].split("+")]
    return "; ".join(kind.advice for kind in kinds if kind.advice)


def waves(model: Decoder | ViT, extent: int) -> tuple[Tensor, float]:
    """Radians per position [waves] and the attention factor of a request of `extent` tokens; none where none turn at a
    rate that is no weight.

    On a grid they are those of the rows. Where positions are mapped the waves turn in a map of the logits, which tells
    the rotation that it works with.
    """
    rotation, held = None, getattr(model.trunk.position, "frequencies", None)
    if not model.trunk.position.content and isinstance(held, Tensor) and not held.is_meta:
        told = said(model, extent)
        rotation = told.rotation or getattr(told.bias, "rotation", None)
    if rotation is None:
        return torch.empty(0, dtype=torch.float64), 1.0
    return rotation.frequencies[0].detach().double().cpu(), float(rotation.factor)


def cached(model: Decoder | ViT, tokens: int) -> dict[str, int]:
    """Bytes of the keys and values of one text."""
    asked, geometry = request(model.trunk.position), model.trunk.geometry
    numbers = geometry.layers * geometry.kv_heads * tokens * (asked.head_dim + asked.value_dim)
    return {kind: numbers * size for kind, size in BYTES.items()}


def figures(plan: Plan) -> dict[str, Any]:
    """The numbers of an extension.

    A wave has its frequency in radians per position before and after, at the target where the method is dynamic, their
    ratio, the wavelength 2 pi / frequency in positions (None: it stands still), and how often it turned over the length
    of first training. One that did not turn once is undertrained: some of its angles never occurred.
    """
    axes = plan.before.trunk.geometry.length
    further = tuple(round(plan.step["factor"] * length) for length in axes)
    before, plain = waves(plan.before, math.prod(axes))
    after, factor = waves(plan.after, math.prod(further))
    within = waves(plan.after, math.prod(axes))
    position = plan.after.trunk.position
    mapped = request(position).rung is not request(plan.before.trunk.position).rung
    dynamic = any(plugins.load(GROUP, word.strip()).dynamic for word in plan.step["method"].split("+"))
    rows = []
    pairs = zip_longest(before.tolist(), after.tolist(), fillvalue=0.0)  # a conversion drops waves, or adds some
    for number, (old, new) in enumerate(pairs):
        turned = axes[0] * old / (2 * math.pi)
        rows.append(
            {
                "wave": number,
                "frequency": {"before": old, "after": new},
                "ratio": new / old if old else None,
                "wavelength": {
                    side: 2 * math.pi / each if each else None for side, each in (("before", old), ("after", new))
                },
                "rotations": turned,
                "undertrained": turned < 1 and (old, new) != (0, 0),
            }
        )
    kept = dynamic if mapped or not rows else bool(torch.equal(within[0], before)) and within[1] == plain
    unchanged = same(plan) if converts(plan.step["method"]) else kept
    return {
        "length": plan.about["extended"]["length"],
        "from": plan.step["from"],
        "to": plan.step["to"],
        "factor": plan.step["factor"],
        "method": plan.step["method"],
        "arguments": plan.step["arguments"],
        "encoding": plan.about["network"]["init_args"]["position"]["class_path"],
        "was": described(plan.source)["init_args"]["position"]["class_path"],
        "attention": factor,
        "dynamic": dynamic,
        "account": [line for one in getattr(position, "extensions", ()) for line in one.account()],
        "unchanged": unchanged,
        "advice": advice(plan, unchanged),
        "waves": rows,
        "undertrained": [row["wave"] for row in rows if row["undertrained"]],
        "added": sorted(plan.added),
        **({"grid": [axes, further]} if len(axes) > 1 else {"cache": cached(plan.after, further[0])}),
    }


def table(told: dict[str, Any]) -> str:
    """The numbers for a person."""
    if not told["waves"]:
        return "\n".join(summary(told))
    turns = f"turns in {told['grid'][0][0] if 'grid' in told else short(told['length'])}"
    lines = [f"{'wave':>4}  {'wavelength':>12}  {turns:>14}  {'becomes':>12}  {'ratio':>7}"]
    for row in told["waves"]:
        long = {side: f"{each:.2f}" if each else "stands still" for side, each in row["wavelength"].items()}
        if not any(row["wavelength"].values()):
            lines.append(f"{row['wave']:>4}  {'stands still':>12}")
            continue
        mark = "  under-trained" * row["undertrained"]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.4f}"
        lines.append(
            f"{row['wave']:>4}  {long['before']:>12}  {row['rotations']:>14.3f}  {long['after']:>12}  {ratio:>7}{mark}"
        )
    if told["dynamic"]:
        lines += ["", f"the table is of a request of {short(told['to'])} tokens"]
    return "\n".join([*lines, "", *summary(told)])


def spelt(told: dict[str, Any]) -> str:
    """The method, with the one that it works upon even where that was not named: Resonance+YaRN."""
    words, inner = [told["method"].partition("+")[0].strip()], told["arguments"].get("extension")
    while inner:
        words.append(inner["class_path"])
        inner = inner["init_args"].get("extension")
    return "+".join(words)


def titled(told: dict[str, Any]) -> str:
    """The encoding and what was done to it; a conversion leaves no method in it."""
    method, encoding, was = spelt(told), told["encoding"], told["was"]
    if was != encoding:
        return f"{encoding} in the place of {was}" + (f" ({method})" if method != encoding else "")
    return f"{encoding}, expanded" if method == encoding else f"{encoding} + {method}"


def summary(told: dict[str, Any]) -> list[str]:
    """What stands below the table, and on the card."""
    turning = [row for row in told["waves"] if row["wavelength"]["after"]]
    few, several = sum(row["undertrained"] for row in turning), len(told["waves"])
    length, reach = short(told["length"]), short(told["to"])
    images = "grid" in told
    what, over = (f"images of {reach}", "a side of the grid") if images else (f"{reach} tokens", f"{length} tokens")
    alike = told["was"] == told["encoding"] != told["method"]
    name = f"{spelt(told)}: {told['encoding']}" if alike else titled(told)
    lines = [
        f"{name} reads {what}, {told['factor']:g} times the {length} of training",
        cost(told),
    ]
    if few:
        lines.insert(
            1, f"{few} of {several} waves did not turn once over {over}: some of their angles were never trained"
        )
    if turning:
        factor = told["attention"]
        lines.insert(1, f"attention factor {factor:.4f}: rotated logits are multiplied by {factor**2:.4f}")
    lines[1:1] = told["account"]
    if told["advice"]:
        lines.append(told["advice"])
    if told["dynamic"]:
        lines.append("chosen by the length of each request")
    return lines


def cost(told: dict[str, Any]) -> str:
    """What reading so far takes: memory for a text, attention for an image."""
    if "grid" not in told:
        cache, reach = told["cache"], short(told["to"])
        return (
            f"a KV cache of {reach} tokens: {size(cache['float32'])} in float32, {size(cache['bfloat16'])} in bfloat16"
        )
    more = math.prod(told["grid"][1]) / math.prod(told["grid"][0])
    old, new = (" x ".join(map(str, grid)) for grid in told["grid"])
    return f"{new} patches for {old}: {more:.3g} times as many, with {more**2:.3g} times as many pairs for attention"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
