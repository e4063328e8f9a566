"""Writing a GGUF file, tensor by tensor.

What a file says is read back before its first byte is written, by the same code that reads those of others: a network
or an encoding that would not come back the same is refused, and the message says in what.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.stored import Listing, Stored
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError, listing
from zoo.hub.arguments import complete
from zoo.hub.families import Found
from zoo.hub.gguf import network, rope, vocabulary
from zoo.hub.gguf.file import File, library
from zoo.position import Geometry
from zoo.trunk import local

KINDS = {torch.float32: (0, "F32"), torch.float16: (1, "F16"), torch.bfloat16: (32, "BF16")}
"""Types of matrices: what a file calls itself by them, and their names."""
VALUES = {
    bool: lambda kinds: kinds.BOOL,
    int: lambda kinds: kinds.UINT32,
    float: lambda kinds: kinds.FLOAT32,
    str: lambda kinds: kinds.STRING,
}
SOFTMAX = ("Auto", "Eager", "SDPA", "Tiled", "Flex", "Flash")
"""Kernels that compute what llama.cpp does."""
SPARED = {
    "position",
    "kernel",
    "length",
    "reach",
    "std",
    "dropout",
    "checkpointing",
    "feed_forward_chunk",
    "nope_every",
}
"""Arguments that are compared otherwise, or change no number."""


def write(
    path: Path,
    source: Listing,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
    name: str | None = None,
) -> list[str]:
    """Write the network of a checkpoint, whole or not at all; what llama.cpp does otherwise, in sentences.

    Raises ZooError for a network, an encoding or a tokenizer that such a file cannot describe, OSError where the disk
    does not take it.

    Args:
        path: The file.
        source: The checkpoint, as `zoo.checkpoints.listed` gives it.
        tokenizer: Its tokenizer (default: none, and then only token numbers can be given to it).
        dtype: Of matrices: float32, float16 or bfloat16 (default: as they are). Norms and biases are float32.
        name: What people call the model (default: the name of the checkpoint).
    """
    asked = named(source)
    keys, extra = said(asked, source.path)
    kind, told = keys["general.architecture"], checked(source, asked, keys, extra)
    held = {**source.weights, **{same: source.weights[own] for same, own in source.tied.items()}}
    if left := sorted(held.keys() - told.layout.parts.keys()):
        raise ZooError(f"{source.path} cannot be written as a GGUF file, where {listing(left[:3])} has no place.")
    half = asked["position"].get("init_args", {}).get("pairing", "half") == "half"
    more = {"model": "none"} if tokenizer is None else vocabulary.described(tokenizer, asked["vocabulary"])
    keys |= {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    keys |= {"general.type": "model", "general.name": name or source.path.stem}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        tensors = {**told.layout.theirs(held), **extra}
        pour(beside, keys, tensors, dtype, network.rotated(kind, asked) if half else {})
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink()
    return [] if tokenizer is None else vocabulary.describe_differences(tokenizer)


def named(source: Listing) -> dict[str, Any]:
    """All arguments of the network, with the layers that have a window or no positions in lists."""
    node = source.about["network"]
    if node["class_path"] != "zoo.decoder.Decoder":
        raise ZooError(f"{source.path} holds no language model, and a GGUF file is one.")
    found = complete(node["init_args"])
    nope, windowed = local(found["layers"], found["nope_every"], found["nope_layers"], found["window_layers"])
    return found | {"nope_layers": sorted(nope), "window_layers": sorted(windowed) if found["window"] else None}


def family(asked: Mapping[str, Any]) -> str:
    """The architecture that may hold a network; whether it does is found out by reading it back."""
    if asked["position"]["class_path"] == "Learned":
        return "gpt2"
    if asked["norm"] == "LayerNorm":
        return "gptneox"
    if asked["norm_at"] == "after":
        return "olmo2"
    if asked["qk_norm"] == "head":
        return "qwen3"
    if asked["nope_layers"]:
        return "smollm3"
    return "qwen2" if asked["qkv_bias"] and not asked["out_bias"] else "llama"


def said(asked: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The keys of a file, and the tensors that belong to its positions."""
    kind, position, extra = family(asked), asked["position"], dict[str, Tensor]()
    if (kernel := (asked["kernel"] or {"class_path": "Auto"})["class_path"]) not in SOFTMAX:
        raise ZooError(f"{path} computes attention by the kernel {kernel}, and a GGUF file has softmax attention only.")
    if position.get("init_args", {}).get("pairing", "half") != "half" and kind not in network.PAIRED:
        raise ZooError(f"{path} rotates neighbouring channels, and files of {kind} have the halves of a head.")
    keys = {
        "context_length": asked["reach"],
        "embedding_length": asked["dim"],
        "feed_forward_length": asked["hidden"],
        "block_count": asked["layers"],
        "attention.head_count": asked["heads"],
        "attention.head_count_kv": asked["kv_heads"],
        "vocab_size": asked["vocabulary"],
        "attention.layer_norm_epsilon" if asked["norm"] == "LayerNorm" else network.RMS: float(asked["eps"]),
    }
    if kind != "gpt2":
        keys |= {"attention.key_length": asked["head_dim"], "attention.value_length": asked["head_dim"]}
        more, extra = rope.described(position, geometry(asked), asked["reach"])
        keys |= more
    if extra and kind != "llama":
        raise ZooError(
            f"{path} cannot be written as a GGUF file: its waves have divisors of their own, which llama.cpp reads in "
            f"files of llama only, and this is a {kind}."
        )
    if kind == "gptneox":
        keys["use_parallel_residual"] = asked["parallel"]
    if kind == "llama" and asked["window"]:
        keys["attention.sliding_window"] = asked["window"]
    found = {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in keys.items()}}
    return found, {name: Stored.of(tensor.float()) for name, tensor in extra.items()}


def geometry(asked: Mapping[str, Any]) -> Geometry:
    """What an encoding is built from."""
    return Geometry(
        **{name: asked[name] for name in ("dim", "heads", "kv_heads", "head_dim", "layers")}, length=(asked["length"],)
    )


def checked(source: Listing, asked: dict[str, Any], keys: dict[str, Any], extra: dict[str, Stored]) -> Found:
    """What a file with these keys and tensors is read as; a sentence where that is another model."""
    any_ = source.weights["embedding.weight"]
    biased = {"attn_q": "qkv_bias", "attn_qkv": "qkv_bias", "ffn_up": "feed_forward_bias"}
    there = ["token_embd.weight", *(["output.weight"] if not asked["tied"] else [])]
    there += [f"blk.0.{name}.bias" for name, argument in biased.items() if asked[argument]]
    found = network.read(File(source.path, keys, {**dict.fromkeys(there, any_), **extra}))
    read = complete(found.arguments)
    apart = [name for name in sorted(asked.keys() - SPARED) if (read.get(name) or None) != (asked[name] or None)]
    if keys["general.architecture"] != "gpt2":
        for extent in (asked["length"], asked["reach"]):
            one, other = (rope.built(each["position"], geometry(each)).request(extent) for each in (asked, read))
            if not torch.allclose(one[0], other[0], rtol=1e-5, atol=0) or abs(one[1] / other[1] - 1) > 1e-5:
                apart = [*apart, "position"]
    if apart:
        told = listing([f"{name} {asked[name]}" for name in dict.fromkeys(apart)][:3])
        raise ZooError(f"{source.path} cannot be written as a GGUF file: of what llama.cpp knows, nothing has {told}.")
    return found


def pour(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    dtype: torch.dtype | None,
    paired: Mapping[str, int],
) -> None:
    """Write keys and tensors; the rows of some are put beside each other in pairs, those of the halves of a head."""
    gguf = library()
    types = {name: kind_of(stored, dtype) for name, stored in tensors.items()}
    kinds = sorted({types[name] for name, stored in tensors.items() if len(stored.shape) > 1}, key=str)
    file = gguf.GGUFWriter(path, keys["general.architecture"])
    for key, value in {**keys, "general.file_type": KINDS[kinds[0]][0]}.items():
        if key == "general.architecture":  # the writer's own
            continue
        if isinstance(value, list):
            file.add_array(key, value)
        else:
            file.add_key_value(key, value, VALUES[type(value)](gguf.GGUFValueType))
    for name, stored in tensors.items():
        kind = types[name]
        size = stored.size // stored.dtype.itemsize * kind.itemsize
        number = gguf.GGMLQuantizationType[KINDS[kind][1]]
        file.add_tensor_info(name, stored.shape, np.dtype(np.float32), size, number)
    file.write_header_to_file(path)
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    for name, stored in tensors.items():
        tensor = stored.tensor().to(types[name])
        heads = next((paired[part] for part in name.split(".") if part in paired), 0)
        if heads:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(stored.shape)
        file.write_tensor_data(tensor.contiguous().flatten().view(torch.uint8).numpy())
    file.close()


def kind_of(stored: Stored, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a tensor is written in: llama.cpp wants vectors in float32."""
    wanted = torch.float32 if len(stored.shape) == 1 else dtype or stored.dtype
    if wanted not in KINDS:
        known = listing([str(each).removeprefix("torch.") for each in KINDS])
        raise ZooError(f"A GGUF file is written in {known}, not in {str(wanted).removeprefix('torch.')}.")
    return wanted
