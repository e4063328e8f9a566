"""What an extension does, in numbers: each wave before and after, the attention factor, the memory of a cache.

All is read off what the two encodings return, as data, so that it is what the models will do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo import plugins
from zoo.decoder import Decoder
from zoo.extend.methods import GROUP
from zoo.extend.rewrite import Plan
from zoo.lengths import short
from zoo.matrix import request

BYTES = {"float32": 4, "bfloat16": 2}


def waves(model: Decoder, extent: int) -> tuple[Tensor, float]:
    """Radians per position [waves] and the attention factor of a request of `extent` tokens; none where none turn.

    Where positions are mapped the waves turn in a map of the logits, which tells the rotation that it works with.
    """
    position = model.trunk.position
    rotation = None
    if not position.content and isinstance(getattr(position, "frequencies", None), Tensor):
        at = torch.zeros(1, 1)
        told = position(at, at, extent)
        rotation = told.rotation or getattr(told.bias, "rotation", None)
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
    position = plan.after.trunk.position
    mapped = request(position).rung is not request(plan.before.trunk.position).rung
    dynamic = any(plugins.load(GROUP, word.strip()).dynamic for word in plan.step["method"].split("+"))
    still = torch.zeros(len(before) - len(after), dtype=torch.float64)  # of a conversion
    rows = []
    for number, (old, new) in enumerate(zip(before.tolist(), torch.cat((after, still)).tolist(), strict=True)):
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
                "undertrained": old != 0 and turned < 1,
            }
        )
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
        "account": [line for one in getattr(position, "extensions", ()) for line in one.account()],
        "unchanged": dynamic if mapped or not rows else bool(torch.equal(within[0], before)) and within[1] == plain,
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
        if row["ratio"] is None:
            lines.append(f"{row['wave']:>4}  {'stands still':>12}")
            continue
        long = {side: f"{each:.2f}" if each else "stands still" for side, each in row["wavelength"].items()}
        mark = "  under-trained" * row["undertrained"]
        lines.append(
            f"{row['wave']:>4}  {long['before']:>12}  {row['rotations']:>14.3f}  {long['after']:>12}  "
            f"{row['ratio']:>7.4f}{mark}"
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
    lines[1:1] = told["account"]
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
