"""What a GGUF file says of rotary positions, and the same in transformers' words.

A scaling has a type (linear, yarn, longrope) with numbers in keys, or is a divisor for each wave in a tensor, which is
how Llama 3's comes. Of that the numbers it was made of are found again where it is one.

llama.cpp multiplies the attention factor of YaRN, 0.1 ln(factor) + 1, by the file's `attn_factor`; that of the others
is `attn_factor`, or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.description import callable_of
from zoo.errors import ZooError, listing
from zoo.hub.gguf.file import File
from zoo.position import Geometry

Take = Callable[..., Any]
"""Takes one of the keys of an architecture: name, type, default."""
DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (DIVISORS, LONG, SHORT)
LOW, HIGH = 1.0, 4.0
"""The bounds of every Llama 3; only with these are its numbers found again."""


def read(file: File, take: Take, head_dim: int, limit: int) -> dict[str, Any]:
    """`rope_parameters`.

    Args:
        file: The file.
        take: Of its architecture.
        head_dim: Channels of a head.
        limit: Tokens that it is said to read.
    """
    rotated, base = take("rope.dimension_count", int, head_dim), take("rope.freq_base", float, 1e4)
    plain = {"rope_theta": base, "partial_rotary_factor": fraction(rotated, head_dim)}
    factor = take("rope.scaling.factor", float, take("rope.scale_linear", float, 0.0)) or 1.0
    kind = take("rope.scaling.type", str, "linear")
    original, gain = take("rope.scaling.original_context_length", int, limit), take(
        "rope.scaling.attn_factor", float, 1.0
    )  # fmt: skip
    take("rope.scaling.finetuned", bool, False)
    ramp = {name: take(f"rope.scaling.yarn_{name}", float, None) for name in ("beta_fast", "beta_slow")}
    deep = take("rope.scaling.yarn_log_multiplier", float, 0.0)
    for name, usual in (("yarn_ext_factor", (-1.0, 1.0 if kind == "yarn" else 0.0)), ("yarn_attn_factor", (1.0,))):
        if (value := take(f"rope.scaling.{name}", float, usual[0])) not in usual:
            raise ZooError(f"{file.path} says rope.scaling.{name} {value:g}, and zoo knows {usual[-1]:g} only.")
    divisors = {name: file.take(name) for name in TENSORS if name in file.tensors}
    if kind == "yarn" and not divisors:
        return plain | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": gain * temper(factor) / (temper(factor, deep) if deep else 1.0),
            **{name: value for name, value in ramp.items() if value is not None},
        }
    if kind == "longrope" and LONG in divisors and SHORT in divisors:
        return plain | lists(divisors[SHORT], divisors[LONG], original, limit, gain)
    if kind not in ("none", "linear") or divisors.keys() - {DIVISORS} or gain != 1:
        raise ZooError(
            f"{file.path} says rope.scaling.type {kind}, with attn_factor {gain:g} and the tensors "
            f"{listing(divisors)}: zoo knows none and linear (alone, or with {DIVISORS}), yarn (alone), and longrope "
            f"(with {SHORT} and {LONG})."
        )
    factor = 1.0 if kind == "none" else factor
    if DIVISORS in divisors:
        same = [factor * each for each in divisors[DIVISORS]]
        return plain | ((factor == 1 and llama3(same, base)) or lists(same, same, original, limit, 1.0))
    if factor == 1:
        return plain
    return plain | {"rope_type": "linear", "factor": factor, "original_max_position_embeddings": original}


def fraction(rotated: int, head_dim: int) -> float:
    """The part of a head that is rotated, such that the integer below its product is the number again."""
    part = rotated / head_dim
    return part if int(head_dim * part) == rotated else math.nextafter(part, 1)


def temper(factor: float, scale: float = 1.0) -> float:
    """YaRN's attention factor."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def lists(short: list[float], long: list[float], original: int, limit: int, gain: float) -> dict[str, Any]:
    """A divisor for each wave, as transformers has them."""
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "factor": max(1.0, limit / original),
        "attention_factor": gain,
    }


def llama3(divisors: list[float], base: float) -> dict[str, Any] | None:
    """The numbers of Llama 3's scaling that gives these divisors; None where none does.

    A wave of the ramp turned r times in training, and its divisor d is of 1/d = g + (1 - g) / factor for
    g = (r - low) / (high - low); r is the trained length times its frequency, by 2 pi.
    """
    factor = max(divisors)
    waves = base ** (-torch.arange(len(divisors), dtype=torch.float64) / len(divisors))
    inside = [number for number, each in enumerate(divisors) if 1 + 1e-4 < each < factor * (1 - 1e-4)]
    if not inside or factor < 1:
        return None
    kept = (1 / divisors[inside[0]] - 1 / factor) / (1 - 1 / factor)
    length = round(2 * math.pi * (LOW + kept * (HIGH - LOW)) / float(waves[inside[0]]))
    found = torch.tensor(divided(waves, factor, length), dtype=torch.float64)
    if not torch.allclose(found, torch.tensor(divisors, dtype=torch.float64), rtol=1e-5, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": length,
    }


def divided(waves: torch.Tensor, factor: float, length: int) -> list[float]:
    """Llama 3's divisors."""
    kept = ((waves * length / (2 * math.pi) - LOW) / (HIGH - LOW)).clamp(0, 1)
    return [float(each) for each in 1 / (kept + (1 - kept) / factor)]


def described(node: Mapping[str, Any], geometry: Geometry, reach: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keys of an encoding, without the architecture before them, and the tensors that belong to them.

    Raises ZooError for one that such a file cannot describe.

    Args:
        node: The encoding, as a checkpoint describes it.
        geometry: Of the model.
        reach: Tokens that it reads.
    """
    arguments, length = dict(node.get("init_args") or {}), geometry.length[0]
    asked = arguments.pop("extension", None) or {"class_path": "", "init_args": {}}
    name, own = asked["class_path"], dict(asked.get("init_args") or {})
    if node["class_path"] != "RoPE":
        raise ZooError(f"A GGUF file has rotary positions (RoPE), and these are {node['class_path']}.")
    found = built(node, geometry)
    if found.relocation is not None or (found.dynamic and name != "LongRoPE"):
        raise ZooError(f"A GGUF file cannot describe {name}: llama.cpp has none of it.")
    plain, (waves, gain) = built({**node, "init_args": arguments}, geometry), found.request(reach)
    divisors = (plain.frequencies / waves)[0]
    keys: dict[str, Any] = {"rope.dimension_count": plain.width, "rope.freq_base": plain.base}
    scaled = {"rope.scaling.type": name.lower(), "rope.scaling.original_context_length": length}
    if not name:
        return keys, {}
    if name == "Linear":
        return {**keys, **scaled, "rope.scaling.factor": own["factor"]}, {}
    if name == "YaRN" and torch.allclose(waves, rounded(node, geometry).request(reach)[0], rtol=1e-6, atol=0):
        scaled |= {"rope.scaling.factor": own["factor"], "rope.scaling.attn_factor": gain / temper(own["factor"])}
        scaled |= {f"rope.scaling.yarn_beta_{end}": own[end] for end in ("fast", "slow") if end in own}
        return {**keys, **scaled}, {}
    if name == "LongRoPE" or gain != 1:
        short = (plain.frequencies / found.request(length)[0])[0]
        keys |= {**scaled, "rope.scaling.type": "longrope", "rope.scaling.attn_factor": gain}
        return keys, {SHORT: short, LONG: divisors}
    count = len(divisors)
    base = float(waves[0, -1]) ** (-count / (count - 1)) if count > 1 else plain.base
    if torch.allclose(waves[0], base ** (-torch.arange(count) / count), rtol=1e-6, atol=0):  # NTK, ABF
        return {**keys, "rope.freq_base": base}, {}
    return keys, {DIVISORS: divisors}


def rounded(node: Mapping[str, Any], geometry: Geometry) -> Any:
    """The encoding with the ramp of its YaRN from one whole wave to another, as llama.cpp has it."""
    extension = node["init_args"]["extension"]
    own = {**(extension.get("init_args") or {}), "truncate": True}
    return built({**node, "init_args": {**node["init_args"], "extension": {**extension, "init_args": own}}}, geometry)


def built(node: Mapping[str, Any], geometry: Geometry) -> Any:
    """The encoding of a description."""
    return callable_of(node, "zoo.positions")(geometry)
