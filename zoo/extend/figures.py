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
from zoo.extend.rewrite import POSITIONS, Plan
from zoo.extend.source import tensors
from zoo.lengths import short
from zoo.matrix import request
from zoo.position import Encoding

BYTES = {"float32": 4, "bfloat16": 2}


def said(model: Decoder, extent: int, weights: Mapping[str, Tensor] | None = None) -> Encoding:
    """What an encoding says of the first tokens of a request, and of the last.

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
    at = torch.tensor([[0.0], [1.0], [extent - 1.0]])
    found: Encoding = functional_call(position, known, (at, at, extent))
    return found


def same(plan: Plan) -> bool:
    """Whether the encoding that takes another's place tells the same within the trained length."""
    length = plan.about["extended"]["length"]
    held = dict(tensors(plan.source, sorted(name for name in plan.source.shapes if name.startswith(POSITIONS))))
    one, two = said(plan.before, length, held), said(plan.after, length, held | dict(plan.added))
    if one.rotation is None or two.rotation is None:
        return one.rotation is two.rotation and bool(one.scale == two.scale)
    pairs = (one.rotation.cos, two.rotation.cos), (one.rotation.sin, two.rotation.sin)
    return type(one.rotation) is type(two.rotation) and all(torch.equal(*torch.broadcast_tensors(*p)) for p in pairs)


def advice(plan: Plan) -> str:
    """What has to be done before the result is of use."""
    step = plan.step
    if converts(step["method"]):
        return str(plugins.load(GROUP, step["method"])(**step["arguments"]).advice)
    kinds = [plugins.load(GROUP, word.strip()) for word in step["method"].split("+")]
    return "; ".join(kind.advice for kind in kinds if kind.advice)


def waves(model: Decoder, extent: int) -> tuple[Tensor, float]:
    """Radians per position [waves] and the attention factor of a request of `extent` tokens; none where none turn."""
    rotation = None
    if isinstance(getattr(model.trunk.position, "frequencies", None), Tensor):
        rotation = said(model, extent).rotation
    if rotation is None:
        return torch.empty(0, dtype=torch.float64), 1.0
    return rotation.frequencies[0].detach().double().cpu(), float(rotation.factor)


def cached(model: Decoder, tokens: int) -> dict[str, int]:
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
    length, reach = plan.about["extended"]["length"], plan.after.reach
    before, plain = waves(plan.before, length)
    after, factor = waves(plan.after, reach)
    within = waves(plan.after, length)
    dynamic = any(plugins.load(GROUP, word.strip()).dynamic for word in plan.step["method"].split("+"))
    rows = []
    pairs = zip_longest(before.tolist(), after.tolist(), fillvalue=0.0)  # a conversion drops waves, or adds some
    for number, (old, new) in enumerate(pairs):
        turned = length * old / (2 * math.pi)
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
    unchanged = bool(torch.equal(within[0], before)) and within[1] == plain if rows else dynamic
    return {
        "length": length,
        "from": plan.step["from"],
        "to": reach,
        "factor": reach / length,
        "method": plan.step["method"],
        "arguments": plan.step["arguments"],
        "encoding": plan.about["network"]["init_args"]["position"]["class_path"],
        "attention": factor,
        "dynamic": dynamic,
        "unchanged": same(plan) if converts(plan.step["method"]) else unchanged,
        "advice": advice(plan),
        "waves": rows,
        "undertrained": [row["wave"] for row in rows if row["undertrained"]],
        "cache": cached(plan.after, reach),
    }


def table(told: dict[str, Any]) -> str:
    """The numbers for a person."""
    if not told["waves"]:
        return "\n".join(summary(told))
    lines = [
        f"{'wave':>4}  {'wavelength':>12}  {'turns in ' + short(told['length']):>14}  {'becomes':>12}  {'ratio':>7}"
    ]
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
    return "\n".join([*lines, "", *summary(told)])


def summary(told: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    few, several = len(told["undertrained"]), len(told["waves"])
    cache = told["cache"]
    length, reach = short(told["length"]), short(told["to"])
    lines = [
        f"{told['method']}: {told['encoding']} reads {reach} tokens, {told['factor']:g} times the {length} of training",
        f"a KV cache of {reach} tokens: {size(cache['float32'])} in float32, {size(cache['bfloat16'])} in bfloat16",
    ]
    if several:
        lines[1:1] = [
            f"attention factor {told['attention']:.4f}: rotated logits are multiplied by {told['attention'] ** 2:.4f}",
            f"{few} of {several} waves did not turn once over {length} tokens: some of their angles were never trained",
        ]
    if told["advice"]:
        lines.append(told["advice"])
    if told["dynamic"]:
        table = f"; the table is of one of {reach} tokens" if several else ""
        lines.append(f"chosen by the length of each request{table}")
    return lines


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
