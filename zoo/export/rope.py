"""RoPE and its extensions in transformers' words, and the length that a config has to say beside them.

What `max_position_embeddings` means depends on the form: the length of training for linear and dynamic, of which the
readers multiply one and take the other into the formula, and what the model reads for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zoo.checkpoints import callable_of
from zoo.errors import ZooError
from zoo.export import remote
from zoo.position import Geometry

FEW = 32
"""Rotated channels up to which our YaRN does not round the bounds of its ramp where nothing is said."""
ORIGINAL = "original_max_position_embeddings"


class Unheard(ZooError):  # noqa: N818
    """What no program but zoo computes, so that a folder has to bring the code with it."""


@dataclass(frozen=True)
class Said:
    """An encoding as a config says it.

    Args:
        theta: The base.
        form: rope_type and its numbers, without the base.
        fraction: The rotated part of a head.
        limit: max_position_embeddings.
        notes: What a person should know.
    """

    theta: float
    form: dict[str, Any]
    fraction: float
    limit: int
    notes: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether a part of each head is as it was, which transformers has in GPT-NeoX only; p-RoPE has still waves."""
        return self.fraction != 1 and self.form["rope_type"] != "proportional"

    def keys(self) -> dict[str, Any]:
        """The keys of both generations: version 4 knows rope_scaling, version 5 writes rope_parameters."""
        found: dict[str, Any] = {"max_position_embeddings": self.limit, "rope_theta": self.theta}
        part = {"partial_rotary_factor": self.fraction} if self.fraction != 1 else {}
        found["rope_parameters"] = {"rope_theta": self.theta, **part, **self.form}
        if (
            self.form.keys() != {"rope_type"} or self.form["rope_type"] != "default"
        ):  # proportional too: version 4 then says that it has no such form
            found["rope_scaling"] = dict(self.form)
        if self.form["rope_type"] == "longrope":  # version 4 looks for it beside the dictionary
            found[ORIGINAL] = self.form[ORIGINAL]
        return {**found, **part}


def say(arguments: Mapping[str, Any]) -> Said:
    """The encoding of a network.

    Raises ZooError for what no form of theirs expresses.

    Args:
        arguments: Of Decoder, as a checkpoint describes them, complete.
    """
    node = arguments["position"]
    name, own = node["class_path"], dict(node.get("init_args") or {})
    if name == "FoPE":
        return series(arguments, own)
    if name not in ("RoPE", "pRoPE"):
        raise Unheard(f"The encoding {name} is none that transformers' models have.")
    if own.get("pairing", "half") != "half":
        raise ZooError(
            f"RoPE with interleaved pairs is none that transformers' models have: theirs are halves.{remote.WAY_OUT}"
        )
    length, reach = arguments["length"], arguments["reach"] or arguments["length"]
    theta, part = float(own.get("base", 10000.0)), float(own.get("fraction", 1.0 if name == "RoPE" else 0.75))
    extension = own.get("extension")
    if extension is None:
        form = {"rope_type": "default" if name == "RoPE" else "proportional"}
        return Said(theta, form, part, reach)
    method, numbers = extension["class_path"], dict(extension.get("init_args") or {})
    if name == "pRoPE":
        if method != "Linear":
            raise ZooError(
                f"p-RoPE with {method} is none that transformers' models have; with Linear it is.{remote.WAY_OUT}"
            )
        return Said(theta, {"rope_type": "proportional", "factor": float(numbers["factor"])}, part, reach)
    if method in NATIVE:
        width = int(part * (arguments["head_dim"] or arguments["dim"] // arguments["heads"]))
        return NATIVE[method](numbers, theta, part, length, reach, width)
    return divided(arguments, method, theta, part, length, reach)


def series(arguments: Mapping[str, Any], own: Mapping[str, Any]) -> Said:
    """FoPE as engines read it (Intern-S1-Pro, arXiv:2603.25040).

    The number of waves is always said: where it is not, each reader derives it from max_position_embeddings, and one
    that was raised would no longer fit the matrices.
    """
    usual = {"dialect": "production", "fraction": 1.0, "pairing": "half", "padding": "diagonal"}
    said = {**usual, "normalize": False, "ignore_zero": True, "extension": None, **own}
    reasons = {
        "has a matrix for each query head of each layer, and fewer series than waves": said["dialect"] == "paper",
        "rotates a part of a head only": said["fraction"] != 1,
        "has interleaved pairs": said["pairing"] != "half",
        "lets pairs without a series pass": said["padding"] != "diagonal",
        "divides by the sum of its coefficients": said["normalize"],
        "keeps waves that never turn": not said["ignore_zero"],
        "has an extension": said["extension"] is not None,
    }
    if wrong := [reason for reason, true in reasons.items() if true]:
        raise ZooError(
            f"This FoPE {wrong[0]}, and that of engines is one square matrix for each key head of the whole model, all "
            f"of a head rotated in halves.{remote.WAY_OUT}"
        )
    built = encoding(arguments)
    form = {
        "rope_type": "default",
        "fope_init_factor": float(built.gain),
        "fope_sep_head": True,
        "num_inv_freq": int(built.pinned()["num_inv_freq"]),
    }
    return Said(float(own.get("base", 10000.0)), form, 1.0, arguments["reach"] or arguments["length"])


def linear(numbers: dict[str, Any], theta: float, part: float, length: int, reach: int, width: int) -> Said:
    """Positions divided."""
    note = (
        f"max_position_embeddings is {length}, the length of training: engines multiply it by the factor; a program "
        f"that cuts texts there must be told {reach}"
    )
    return Said(theta, {"rope_type": "linear", "factor": float(numbers["factor"])}, part, length, (note,))


def dynamic(numbers: dict[str, Any], theta: float, part: float, length: int, reach: int, width: int) -> Said:
    """transformers reads the length of training off max_position_embeddings, and chooses by the longest row so far."""
    note = "vLLM's dynamic scaling is another one, fixed when it starts: serve this with transformers only"
    form = {"rope_type": "dynamic", "factor": float(numbers.get("factor", 1.0))}
    return Said(theta, form, part, length, (note,))


def yarn(numbers: dict[str, Any], theta: float, part: float, length: int, reach: int, width: int) -> Said:
    """All numbers under their names; those that are not given are transformers' defaults too, but for `truncate`."""
    form: dict[str, Any] = {"rope_type": "yarn", "factor": float(numbers["factor"]), ORIGINAL: length}
    form |= {"beta_fast": float(numbers.get("fast", 32.0)), "beta_slow": float(numbers.get("slow", 1.0))}
    if numbers.get("attention") is not None:
        form["attention_factor"] = float(numbers["attention"])
    scales = float(numbers.get("mscale", 1.0)), float(numbers.get("mscale_all_dim", 0.0))
    if scales != (1.0, 0.0):
        form |= {"mscale": scales[0], "mscale_all_dim": scales[1]}
    truncate = numbers.get("truncate", "auto")
    if not (width > FEW if truncate == "auto" else truncate):
        form["truncate"] = False
    return Said(theta, form, part, reach)


def llama3(numbers: dict[str, Any], theta: float, part: float, length: int, reach: int, width: int) -> Said:
    """The same numbers under other names."""
    form = {
        "rope_type": "llama3",
        "factor": float(numbers["factor"]),
        "low_freq_factor": float(numbers.get("low", 1.0)),
        "high_freq_factor": float(numbers.get("high", 4.0)),
        ORIGINAL: length,
    }
    return Said(theta, form, part, reach)


NATIVE = {"Linear": linear, "DynamicNTK": dynamic, "YaRN": yarn, "Llama3": llama3}
"""Extensions that have a form of their own there."""


def divided(arguments: Mapping[str, Any], method: str, theta: float, part: float, length: int, reach: int) -> Said:
    """Any other extension of the waves: another base where that is all it is, else a divisor for each wave."""
    plain, _ = waves({**arguments, "position": without(arguments["position"])}, length)
    (near, gain), (far, factor) = waves(arguments, length), waves(arguments, max(reach, length + 1))
    if gain != factor:
        raise ZooError(
            f"{method} has an attention factor that depends on the request, which no form of theirs has."
            f"{remote.WAY_OUT}"
        )
    count = len(plain)
    if torch.equal(near, far) and factor == 1 and count > 1:
        base = float(theta * (plain[-1] / far[-1]) ** (count / (count - 1)))
        again = base ** (-torch.arange(count, dtype=torch.float64) / count)
        if torch.allclose(again, far, rtol=1e-9, atol=0):
            return Said(base, {"rope_type": "default"}, part, reach)
    form = {
        "rope_type": "longrope",
        "short_factor": (plain / near).tolist(),
        "long_factor": (plain / far).tolist(),
        "factor": reach / length,
        "attention_factor": factor,
        ORIGINAL: length,
    }
    note = "vLLM takes the attention factor from short_mscale and long_mscale, and one of the lists when it starts"
    form |= {"short_mscale": factor, "long_mscale": factor}
    return Said(theta, form, part, reach, (note,))


def waves(arguments: Mapping[str, Any], extent: int) -> tuple[torch.Tensor, float]:
    """Frequencies, float64 [waves], and the attention factor of a request."""
    at = torch.zeros(1, 1)
    rotation = encoding(arguments).double()(at, at, extent).rotation
    if rotation is None:
        name = arguments["position"]["init_args"]["extension"]["class_path"]
        raise ZooError(
            f"{name} moves positions in every layer's attention, which no form of theirs has.{remote.WAY_OUT}"
        )
    return rotation.frequencies[0].double(), float(rotation.factor)


def encoding(arguments: Mapping[str, Any]) -> Any:
    """The encoding of a network, by itself."""
    heads, dim = arguments["heads"], arguments["dim"]
    geometry = Geometry(
        dim=dim,
        heads=heads,
        kv_heads=arguments["kv_heads"] or heads,
        head_dim=arguments["head_dim"] or dim // heads,
        length=(arguments["length"],),
        layers=arguments["layers"],
    )
    return callable_of(arguments["position"], "zoo.positions")(geometry)


def without(node: Mapping[str, Any]) -> dict[str, Any]:
    """An encoding without its extension."""
    own = {name: value for name, value in (node.get("init_args") or {}).items() if name != "extension"}
    return {"class_path": node["class_path"], "init_args": own}
