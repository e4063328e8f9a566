"""The engines that serve what is exported: which forms each computes as we do, by which command, and asking them.

Where vLLM or SGLang is installed their own rotary class turns queries and keys, and what it gives must be ours. They
build it without the engine around it, so no GPU and no weights are needed where the engine can be imported at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.export.config import Exported
from zoo.hub import families
from zoo.hub.config import CONFIG, Config

CLOSE = 2e-3
"""What rounding may make of a turned channel, whose angle at position 30 000 is exact to about a thousandth."""
SCALED = ("linear", "dynamic", "ntk", "proportional")
"""Forms by whose factor vLLM multiplies the length that a config says."""
NAMES = {"vllm": "vLLM", "sglang": "SGLang", "lmdeploy": "LMDeploy"}
SERVERS = ("vllm", "sglang")
"""Those that serve what is no FoPE."""
Turn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def unserved(engine: str, said: Exported) -> str | None:
    """Why an engine does not compute what a config says; None where it does."""
    form = said.keys.get("rope_parameters") or {"rope_type": "default"}
    kind = form["rope_type"]
    if said.layout is None:
        return "it knows no such model, and transformers reads the folder by zoo's own code"
    if said.code and engine != "lmdeploy":
        return "it has FoPE in InternS1Pro only, another network"
    if engine == "lmdeploy" and not said.code:
        return "it is asked for FoPE only"
    if (reason := narrower(engine, said.keys)) is not None:
        return reason
    if kind == "dynamic":
        return "its dynamic scaling is another one, fixed when it starts"
    if kind == "proportional":
        return "it has p-RoPE in Gemma only"
    if engine == "sglang" and kind == "yarn" and form.get("attention_factor") is not None:
        return "it takes no attention_factor in YaRN"
    return None


def narrower(engine: str, keys: Mapping[str, Any]) -> str | None:
    """What an engine has not in its model of a family, and passes over without a word; None where there is nothing.

    As read in vLLM 0.33, SGLang 0.5.23 and LMDeploy 0.18.
    """
    kind = families.kind(keys)
    layers = keys.get("num_hidden_layers", 0)
    held = families.windows(Config(Path(CONFIG), keys), kind, layers) if kind in families.WINDOWED else {}
    if held and engine == "sglang":
        return f"it has no windows in a {kind}"
    if held and held["window_layers"] != list(range(layers)):
        return f"it has windows in all layers of a {kind} or in none"
    if engine == "sglang" and kind == "llama" and keys.get("mlp_bias"):
        return "it has no biases in the feed-forward of a llama"
    if engine == "vllm" and kind == "qwen3" and keys.get("attention_bias"):
        return "it has no bias in the last projection of a qwen3's attention"
    return None


def derived(keys: Mapping[str, Any], limit: int | None = None) -> int:
    """Tokens that vLLM 0.33 says a config serves at most.

    Args:
        keys: Of config.json.
        limit: model_max_length of the tokenizer.
    """
    form = keys.get("rope_parameters") or {}
    length = int(keys.get("max_position_embeddings") or keys["n_positions"])
    length = length if limit is None else min(length, limit)
    return int(length * (form.get("factor") or 1.0)) if form.get("rope_type") in SCALED else length


def command(engine: str, said: Exported, folder: str, reach: int) -> str:
    """What starts a server; it says the length, since engines derive different ones from one config.

    vLLM does not start with a longer one than it derives, and what it derives of a factor is rounded.
    """
    return {
        "vllm": f"vllm serve {folder} --max-model-len {min(reach, derived(said.keys, reach))}",
        "sglang": f"python -m sglang.launch_server --model-path {folder} --context-length {reach}",
        "lmdeploy": f"lmdeploy serve api_server {folder} --backend pytorch --trust-remote-code --session-len {reach}",
    }[engine]


def uses(said: Exported, name: str, reach: int, only: str | None = None) -> list[str]:
    """How a folder is used, in Markdown: a command for each engine that computes it, and why others do not.

    Args:
        said: What was written.
        name: Of the folder.
        reach: Tokens that it reads.
        only: The one engine that was asked for.
    """
    lines = []
    for engine in (*SERVERS, "lmdeploy"):
        reason = unserved(engine, said)
        if only in (None, engine) and reason is None:
            lines.append(f"```bash\n{command(engine, said, shlex.quote(name), reach)}\n```")
        elif only is None and engine != "lmdeploy":
            lines.append(f"Not by {NAMES[engine]}: {reason}.")
    if said.code:
        call = f"AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True)"
        lines.append(f"```python\nfrom transformers import AutoModelForCausalLM\n\nmodel = {call}\n```")
        lines.append("That runs the two files of python here, which call zoo: `pip install positionzoo`.")
    return lines


def asked(said: Exported, network: Decoder) -> list[str]:
    """What the engines that are installed make of a config, in clauses; raises ZooError where it is something else."""
    found = []
    for engine, build in BUILT.items():
        if find_spec(engine) is None or "rope_parameters" not in said.keys or said.layout is None:
            continue
        reason = unserved(engine, said)
        if reason is not None and not said.code:  # of FoPE the classes are the same whatever model they stand in
            continue
        told = NAMES[engine]
        with suppress(PackageNotFoundError):
            told = f"{told} {version(engine)}"
        try:
            turn = build(said.keys, network)
            pairs = turned(turn, network)
        except Exception as error:  # of a package that wants a GPU, and may raise anything
            line = str(error).partition("\n")[0][:120]
            found.append(f"{told} is installed, and could not be asked here: {type(error).__name__} {line}".rstrip())
            continue
        for which, (ours, theirs) in zip(("queries", "keys"), pairs, strict=True):
            apart = float((ours - theirs).abs().max())
            if not apart <= CLOSE * float(ours.abs().max()):
                raise ZooError(
                    f"Not published: {told}'s rotary class turns {which} otherwise, up to {apart:.2g} apart."
                )
        found.append(f"{told}: queries and keys as its rotary class turns them")
    return found


@torch.no_grad()
def turned(turn: Turn, network: Decoder) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys [tokens, heads * width], as we turn them and as they do, at positions up to the last."""
    geometry, reach = network.trunk.geometry, network.reach
    at = torch.tensor(sorted({0, 1, 2, reach // 3, network.length - 1, network.length // 2, reach - 1}))
    generator = torch.Generator().manual_seed(0)
    heads = geometry.heads, geometry.kv_heads
    states = [torch.randn(len(at), count * geometry.head_dim, generator=generator) for count in heads]
    rotation = network.trunk.position(at.float()[:, None], at.float()[:, None], reach).rotation
    assert rotation is not None
    own = [
        rotation.apply(each.view(1, len(at), count, -1).transpose(1, 2)).transpose(1, 2).reshape(len(at), -1)
        for each, count in zip(states, heads, strict=True)
    ]
    theirs = [each.reshape(len(at), -1).float().cpu() for each in turn(at, *(each.clone() for each in states))]
    return list(zip(own, theirs, strict=True))


def vllm(keys: Mapping[str, Any], network: Decoder) -> Turn:
    """vLLM's module for a config."""
    from vllm.model_executor.layers.rotary_embedding import get_rope

    form, geometry = dict(keys["rope_parameters"]), network.trunk.geometry
    if coefs := coefficients(network):
        form |= {"use_fope": True, "num_key_value_heads": geometry.kv_heads}
    module = get_rope(geometry.head_dim, int(keys["max_position_embeddings"]), True, form, torch.float32)
    load(module, coefs)
    return getattr(module, "forward_native", module.forward)


def sglang(keys: Mapping[str, Any], network: Decoder) -> Turn:
    """SGLang's module for a config."""
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    form, geometry = dict(keys["rope_parameters"]), network.trunk.geometry
    base, part = form.pop("rope_theta"), form.pop("partial_rotary_factor", 1.0)
    if coefs := coefficients(network):
        form |= {"use_fope": True, "num_kv_heads": geometry.kv_heads}
    width, length = geometry.head_dim, int(keys["max_position_embeddings"])
    module = get_rope(width, width, length, base, True, form, torch.float32, part)
    load(module, coefs)
    return getattr(module, "forward_native", module.forward)


def coefficients(network: Decoder) -> dict[str, Tensor]:
    """The matrices of FoPE; nothing where there are none."""
    own = dict(network.trunk.position.named_parameters())
    return {name: own[name].detach() for name in ("sin_coef", "cos_coef") if name in own}


@torch.no_grad()
def load(module: Any, coefs: Mapping[str, Tensor]) -> None:
    """Give FoPE's matrices to a module of theirs."""
    for name, value in coefs.items():
        getattr(module, name).copy_(value)


BUILT: dict[str, Callable[[Mapping[str, Any], Decoder], Turn]] = {"vllm": vllm, "sglang": sglang}
