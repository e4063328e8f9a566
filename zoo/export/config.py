"""A network of ours as one of transformers' families: the keys of its config.json.

Each family is tried with the keys that it would have; the one that, read back, gives the same network is right, so that
nothing is exported which reading would not understand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import plugins
from zoo.errors import ZooError, listing
from zoo.export import remote, rope
from zoo.hub import families
from zoo.hub.arguments import complete
from zoo.hub.config import Config
from zoo.hub.layout import Layout
from zoo.trunk import local

FREE = {"position", "kernel", "reach", "length", "dropout", "checkpointing", "feed_forward_chunk", "std", "sinks"}
"""Arguments that no config says, or that are compared in another way."""
ROPE = {
    *("rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "rotary_emb_base", "partial_rotary_factor"),
    *("max_position_embeddings", rope.ORIGINAL),
}
"""Keys of positions, which are said anew."""


SERIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families of which an engine (LMDeploy 0.18) reads FoPE."""


@dataclass(frozen=True)
class Exported:
    """A network in their words.

    Args:
        keys: Of config.json.
        layout: Where its tensors are; None where they keep our names, in a folder that is one of zoo's too.
        notes: What a person should know.
        code: Whether transformers needs code of ours to read it.
    """

    keys: dict[str, Any]
    layout: Layout | None
    notes: tuple[str, ...] = ()
    code: bool = False


def export(about: Mapping[str, Any], keys: Mapping[str, Any] | None = None) -> Exported:
    """The config of a network.

    Raises ZooError where no family of theirs is the same network.

    Args:
        about: The description of a checkpoint.
        keys: The config that it once came with, whose other keys are kept.
    """
    arguments = complete(language(about)["init_args"])
    kernel = (arguments["kernel"] or {"class_path": "Auto"})["class_path"]
    if (form := plugins.load("zoo.kernels", kernel).form) != "softmax":
        raise rope.Unheard(f"The kernel {kernel} computes {form}, and transformers' families have softmax attention.")
    if arguments["sinks"]:
        raise ZooError(f"transformers' families have no sinks, which this model's window spares.{remote.WAY_OUT}")
    table = position(arguments) == "Learned"
    said = None if table else rope.say(arguments)
    length = arguments["length"]
    apart: list[str] = []
    series = position(arguments) == "FoPE"
    for kind, own in [(families.kind(keys), keys)] if keys is not None else candidates(arguments):
        found = {name: value for name, value in own.items() if name not in ROPE}
        if table:
            rows = (arguments["position"].get("init_args") or {}).get("rows") or length
            found |= {"n_positions": rows} | ({"n_ctx": rows} if "n_ctx" in found else {})
        elif said is not None:
            found |= spoken(said, kind)
        if table != (kind == "gpt2") or (series and kind not in SERIES):
            continue
        if series:  # of a type that has no defaults: what a family takes for granted is said
            found = {**dict(candidates(arguments))[kind], **found}
        if said is not None and said.partial and kind != "gpt_neox":
            apart = apart or ["the part of a head that turns"]
            continue
        named = {"model_type": kind, "architectures": [families.FAMILIES[kind][0]]}
        if series:  # transformers would take it for plain RoPE
            named |= remote.KEYS
        config = Config(Path("config.json"), {**named, **found, **named})
        read = families.network(config)
        wrong = differing(arguments, complete(read.arguments))
        if not wrong:
            return Exported(config.keys, read.layout, said.notes if said else (), code=series)
        apart = wrong if not apart or len(wrong) < len(apart) else apart
    raise ZooError(
        "No family of transformers' is this network"
        + (f": the nearest differs in {listing(apart)}." if apart else f" with {position(arguments)}.")
        + remote.WAY_OUT
    )


def language(about: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a description, which is to be a language model."""
    network: dict[str, Any] = about["network"]
    if not network["class_path"].endswith(".Decoder"):
        raise ZooError("What transformers' families hold are language models, and this is a vision transformer.")
    return network


def spoken(said: rope.Said, kind: str) -> dict[str, Any]:
    """The keys of positions, with those that GPT-NeoX has besides."""
    keys = said.keys()
    if kind == "gpt_neox":
        keys |= {"rotary_pct": said.fraction, "rotary_emb_base": said.theta}
        keys["rope_parameters"]["partial_rotary_factor"] = said.fraction
        keys.pop("rope_theta")
        keys.pop("partial_rotary_factor", None)
    return keys


def candidates(arguments: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each family, with the keys that this network would have in it."""
    a = arguments
    layers = a["layers"]
    nope, windowed = local(layers, a["nope_every"], a["nope_layers"], a["window_layers"])
    sizes = {
        "vocab_size": a["vocabulary"],
        "hidden_size": a["dim"],
        "intermediate_size": a["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": a["heads"],
        "num_key_value_heads": a["kv_heads"],
        "head_dim": a["head_dim"],
        "tie_word_embeddings": a["tied"],
    }
    gated = {**sizes, "hidden_act": "silu", "rms_norm_eps": a["eps"]}
    types = ["sliding_attention" if layer in windowed else "full_attention" for layer in range(layers)]
    local_ = {"use_sliding_window": a["window"] is not None, "sliding_window": a["window"]}
    some = {**local_, "layer_types": types} if a["window"] is not None else {"use_sliding_window": False}
    biases = {"attention_bias": a["qkv_bias"]}
    yield "llama", {**gated, **biases, "mlp_bias": a["feed_forward_bias"]}
    yield "mistral", {**gated, "sliding_window": a["window"]}
    yield "qwen2", {**gated, **some}
    yield "qwen3", {**gated, **biases, **some}
    rotated = [int(layer not in nope) for layer in range(layers)]
    yield "smollm3", {**gated, **biases, "mlp_bias": a["feed_forward_bias"], **some, "no_rope_layers": rotated}
    yield "olmo2", {**gated, **biases}
    act = {"GELU": "gelu", "GELU-tanh": "gelu_new"}.get(a["feed_forward"], "gelu")
    neox = {**sizes, "hidden_act": act, "layer_norm_eps": a["eps"], **biases, "use_parallel_residual": a["parallel"]}
    neox = {name: value for name, value in neox.items() if name not in ("num_key_value_heads", "head_dim")}
    yield "gpt_neox", neox
    yield (
        "gpt2",
        {
            "vocab_size": a["vocabulary"],
            "n_embd": a["dim"],
            "n_inner": a["hidden"],
            "n_layer": layers,
            "n_head": a["heads"],
            "activation_function": act,
            "layer_norm_epsilon": a["eps"],
            "tie_word_embeddings": a["tied"],
        },
    )


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of arguments in which two networks differ."""
    lists = {"nope_every", "nope_layers", "window_layers"}
    found = sorted(
        name for name in one.keys() | other.keys() if name not in FREE | lists and one.get(name) != other.get(name)
    )
    layers = [
        local(each["layers"], each["nope_every"], each["nope_layers"], each["window_layers"]) for each in (one, other)
    ]
    if layers[0][0] != layers[1][0]:
        found.append("the layers without positions")
    if one["window"] is not None and layers[0][1] != layers[1][1]:
        found.append("the layers with the window")
    return found


def position(arguments: Mapping[str, Any]) -> str:
    """The name of the encoding."""
    return str(arguments["position"]["class_path"])
