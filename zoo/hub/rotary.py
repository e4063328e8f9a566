"""What transformers says of rotary positions, in the words of both its generations, and RoPE's arguments.

Version 4 has `rope_theta` and `rope_scaling`, version 5 one dictionary `rope_parameters`; GPT-NeoX has `rotary_pct` and
`rotary_emb_base` too. Each names its form by `rope_type` (or `type`). A folder may hold both; they must say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from zoo.errors import ZooError, listing
from zoo.hub.config import Config

SERIES = frozenset(("fope_init_factor", "fope_sep_head", "num_inv_freq", "fope_num_inv_freq"))
"""Keys of FoPE: one that is not null says that it is one."""
THETA = {"smollm3": 2e6}
"""The base where none is given, if it is not 10 000."""
ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Rotary:
    """Positions as a config says them.

    Args:
        position: The encoding, as a checkpoint's description names it.
        length: Tokens of first training.
        reach: Tokens that it is said to read, at least that many.
    """

    position: dict[str, Any]
    length: int
    reach: int


def finite(value: Any) -> TypeGuard[float]:
    """Whether something is a number to compute with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class Form:
    """One dictionary of rope parameters, whose keys are taken one by one.

    Args:
        config: Where it stands.
        key: Its name there.
        said: What it says.
    """

    config: Config
    key: str
    said: Mapping[str, Any]
    taken: set[str] = field(default_factory=set)

    def number(self, name: str, default: float | None = None) -> float:
        """A number; the default, which may not be None, where it is not there."""
        self.taken.add(name)
        value = self.said.get(name)
        value = default if value is None else value
        if not finite(value):
            what = "does not say" if value is None else f"says {value!r} for"
            raise ZooError(f"{self.config.path}: {self.key} {what} {name}, which should be a number.")
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of so many numbers."""
        self.taken.add(name)
        value = self.said.get(name)
        if not isinstance(value, list) or len(value) != count or not all(map(finite, value)):
            raise ZooError(f"{self.config.path}: {self.key} should have a list of {count} numbers under {name}.")
        return [float(each) for each in value]

    def done(self, kind: str) -> None:
        """Refuse what nobody took."""
        strange = sorted(set(self.said) - self.taken - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if strange:
            what = f"{self.key} has {listing(strange)}, which zoo does not know in a {kind} rope"
            raise ZooError(f"{self.config.path}: {what}.")

    def maybe(self, **names: str) -> dict[str, float]:
        """Our arguments, for those of their numbers that are there."""
        return {ours: self.number(theirs) for ours, theirs in names.items() if self.said.get(theirs) is not None}


def read(config: Config, head_dim: int, *, length: str = "max_position_embeddings", fraction: float = 1.0) -> Rotary:
    """The encoding of a config.

    Raises ZooError for forms and numbers that are not known, and where both generations' keys disagree.

    Args:
        config: Its keys are taken.
        head_dim: Channels of a head.
        length: The key that says how many tokens it reads.
        fraction: The rotated part of a head, where nothing is said.
    """
    limit, family = config.count(length), config.keys["model_type"]
    form = chosen(config)
    base = agreed(form, "rope_theta", ("rope_theta", "rotary_emb_base"), THETA.get(family, 1e4))
    part = agreed(form, "partial_rotary_factor", ("partial_rotary_factor", "rotary_pct"), fraction)
    kind = str(form.said.get("rope_type") or form.said.get("type") or "default")
    form.taken |= {name for name in SERIES if form.said.get(name) is None}
    if SERIES & form.said.keys() - form.taken:
        return series(form, kind, limit, base, head_dim, part)
    if kind not in KINDS:
        raise ZooError(f"{config.path}: {form.key} is of the type {kind}, and zoo knows {listing(sorted(KINDS))}.")
    if part != 1 and fraction == 1 and kind != "proportional":
        raise ZooError(
            f"{config.path} says partial_rotary_factor {part:g}, and in a {family} transformers turns whole heads: "
            "which is meant is not known."
        )
    original = agreed(form, ORIGINAL, (ORIGINAL,), limit)
    if original < 1 or original % 1:
        raise ZooError(f"{config.path} says {ORIGINAL} {original:g}, which is no length.")
    arguments: dict[str, Any] = {"base": base, "fraction": part, "pairing": "half"}
    name, extension, trained, reach = KINDS[kind](form, limit, int(original), int(head_dim * part) // 2)
    if extension is not None:
        arguments["extension"] = {"class_path": name, "init_args": extension}
    form.done(kind)
    position = {"class_path": "pRoPE" if kind == "proportional" else "RoPE", "init_args": arguments}
    return Rotary(position, trained, max(trained, reach))


def series(form: Form, kind: str, limit: int, base: float, head_dim: int, part: float) -> Rotary:
    """FoPE in the dialect that engines serve (Intern-S1-Pro, arXiv:2603.25040): a matrix for each key head.

    Where the number of waves is not said it follows from the limit, as in all readers, so that a config whose limit
    was raised no longer fits its weights.
    """
    config = form.config
    if kind not in ("default", "fope") or part != 1:
        raise ZooError(f"{config.path}: zoo reads FoPE with all of a head rotated and no {kind} rope besides.")
    form.taken |= SERIES
    form.done("FoPE")
    if form.said.get("fope_sep_head") is not True:
        raise ZooError(f"{config.path}: zoo reads FoPE with a matrix for each key head (fope_sep_head: true) only.")
    widths = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    counted = int((1.0 / base**widths > 2 * math.pi / limit).sum())
    said = {form.number(name) for name in ("num_inv_freq", "fope_num_inv_freq") if form.said.get(name) is not None}
    count = said.pop() if said else counted
    if said or count != int(count) or not 1 <= count <= head_dim // 2:
        raise ZooError(
            f"{config.path}: FoPE keeps 1 to {head_dim // 2} waves of a head, the same under num_inv_freq and "
            f"fope_num_inv_freq, and it says {form.said.get('num_inv_freq')} and {form.said.get('fope_num_inv_freq')}."
        )
    arguments = {"base": base, "dialect": "production", "floor": limit, "num_inv_freq": int(count)}
    if form.said.get("fope_init_factor") is not None:
        arguments["gain"] = form.number("fope_init_factor")
    return Rotary({"class_path": "FoPE", "init_args": arguments}, limit, limit)


def agreed(form: Form, name: str, elsewhere: tuple[str, ...], default: float) -> float:
    """A number that may stand in the dictionary and beside it; a sentence where it is not the same."""
    config = form.config
    found = {key: config.take(key, float) for key in elsewhere if config.keys.get(key) is not None}
    if form.said.get(name) is not None:
        found = {f"{name} of {form.key}": form.number(name), **found}
    if len(set(found.values())) > 1:
        told = listing([f"{key} is {value:g}" for key, value in found.items()])
        raise ZooError(f"{config.path} contradicts itself: {told}. Remove the one that is not meant.")
    return next(iter(found.values()), default)


def chosen(config: Config) -> Form:
    """The dictionary that counts; a sentence where the two generations' disagree."""
    old, new = config.take("rope_scaling", dict, {}), config.take("rope_parameters", dict, {})
    new = single(config, new)
    if not old or not new:
        key = "rope_scaling" if old else "rope_parameters"
        return Form(config, key, old or new)
    loose = {"rope_theta", "partial_rotary_factor"}  # these may stand beside rope_scaling; `agreed` compares them
    one, two = plain(old), plain(new)
    told = (one.keys() | two.keys()) - (loose - (one.keys() & two.keys()))
    apart = sorted(name for name in told if one.get(name) != two.get(name))
    if apart:
        name = apart[0]
        raise ZooError(
            f"{config.path} contradicts itself: of {name}, rope_scaling (transformers 4) says {old.get(name)!r} and "
            f"rope_parameters (transformers 5) {new.get(name)!r}. Remove the one that is not meant."
        )
    return Form(config, "rope_parameters", {**one, **two})


def plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """With the newer name of the type."""
    found = {name: value for name, value in said.items() if name != "type" and value is not None}
    return {**found, "rope_type": said.get("rope_type") or said.get("type") or "default"}


def single(config: Config, said: dict[str, Any]) -> dict[str, Any]:
    """The one dictionary, where there is one for each type of layer and all are alike."""
    if not said or not all(isinstance(value, dict) for value in said.values()):
        return said
    first, *rest = said.values()
    if any(plain(first) != plain(other) for other in rest):
        raise config.strange("rope_parameters", "zoo has the same waves in all layers")
    return dict(first)


Read = tuple[str, dict[str, Any] | None, int, int]
"""An extension and its arguments, tokens of first training, tokens that it reads."""


def default(form: Form, limit: int, original: int, waves: int) -> Read:
    """No extension."""
    return "", None, limit, limit


def linear(form: Form, limit: int, original: int, waves: int) -> Read:
    """The config says the length of training (as in the checkpoints that have it), or both lengths."""
    factor = form.number("factor")
    return "Linear", {"factor": factor}, original, limit if original < limit else int(limit * factor)


def dynamic(form: Form, limit: int, original: int, waves: int) -> Read:
    """transformers takes the limit for the length of training, and reads no other."""
    factor = form.number("factor")
    return "DynamicNTK", {"factor": factor}, limit, int(limit * factor)


def yarn(form: Form, limit: int, original: int, waves: int) -> Read:
    """Without an original length transformers takes the limit, extended or not."""
    factor = form.number("factor")
    form.taken.add("truncate")
    arguments: dict[str, Any] = {"factor": factor, "truncate": bool(form.said.get("truncate", True))}
    arguments |= form.maybe(fast="beta_fast", slow="beta_slow", attention="attention_factor")
    scales = form.maybe(mscale="mscale", mscale_all_dim="mscale_all_dim")
    if len(scales) == 2 and all(scales.values()) and "attention" not in arguments:  # transformers' order
        arguments |= scales
    return "YaRN", arguments, original, limit if original < limit else int(limit * factor)


def llama3(form: Form, limit: int, original: int, waves: int) -> Read:
    """All of its numbers are needed."""
    factor, low, high = (form.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return "Llama3", {"factor": factor, "low": low, "high": high}, original, limit


def longrope(form: Form, limit: int, original: int, waves: int) -> Read:
    """The factor is the ratio of the lengths where it is not there; vLLM's two keys say the attention factor again."""
    form.taken |= {"short_mscale", "long_mscale"}
    arguments = {
        "factor": form.number("factor", limit / original),
        "short": form.numbers("short_factor", waves),
        "long": form.numbers("long_factor", waves),
        **form.maybe(attention="attention_factor"),
    }
    return "LongRoPE", arguments, original, limit


def proportional(form: Form, limit: int, original: int, waves: int) -> Read:
    """p-RoPE, whose waves may be interpolated."""
    factor = form.number("factor", 1.0)
    return "Linear", {"factor": factor} if factor != 1 else None, original, limit


KINDS: dict[str, Callable[[Form, int, int, int], Read]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
    "proportional": proportional,
}
"""Their names of the forms; "su" and "ntk" were never transformers'."""
