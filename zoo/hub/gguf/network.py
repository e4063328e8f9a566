"""The network of a GGUF file: its keys in the words of a config.json, its names of tensors beside Hugging Face's.

llama.cpp's converter joins what it needs joined: GPT-NeoX's three projections have all queries first, as ours, and
GPT-2's matrices have outputs for rows. In files of the architectures of `PAIRED` queries and keys are rotated in pairs
of neighbours, and their rows were put in that order; here they are halves again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.checkpoints.stored import Stored
from zoo.errors import ZooError, listing, near
from zoo.hub import families
from zoo.hub.config import NEEDED, Config
from zoo.hub.families import Found
from zoo.hub.gguf import rope
from zoo.hub.gguf.file import Block, File, library
from zoo.hub.layout import Layout, Part

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "gptneox": "gpt_neox",
    "gpt2": "gpt2",
}
"""Their names of our families. Mistral and SmolLM2 are written as llama."""
PAIRED = ("llama", "smollm3")
RMS = "attention.layer_norm_rms_epsilon"
USUAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "tensor_data_layout": ("Meta AI original pth",),
}
"""Keys whose one value we have."""


def architecture(file: File) -> str:
    """The name of the architecture; a sentence where it is of none that is known, or the file holds no model."""
    said = Config(file.path, file.said)
    name = said.take("general.architecture", str)
    said.only("general.type", "model")
    if (parts := said.take("split.count", int, 1)) > 1:
        raise ZooError(
            f"{file.path} is one of {parts} parts of a model. Join them first:  llama-gguf-split --merge FIRST WHOLE"
        )
    if name not in ARCHITECTURES:
        close = near(name, ARCHITECTURES)
        hint = f" Did you mean {listing(close)}?" if close else ""
        raise ZooError(
            f"{file.path} is of the architecture {name}, and zoo reads {listing(ARCHITECTURES)}.{hint} "
            "(Mistral and SmolLM2 are a llama, pythia a gptneox.)"
        )
    return str(name)


def read(file: File) -> Found:
    """The network of a file, with the places of its tensors by their names there."""
    name = architecture(file)
    found = families.network(Config(file.path, keys(file, name)))
    return Found(found.arguments, renamed(found.layout, name, found.arguments["layers"]))


def weights(file: File, found: Found) -> dict[str, Stored]:
    """Where our tensors lie in a file."""
    heads, tensors = rotated(architecture(file), found.arguments), dict[str, Stored]()
    for name, stored in file.tensors.items():
        count = next((heads[part] for part in name.split(".") if part in heads), 0)
        if isinstance(stored, Block):
            stored = stored.halved(count) if count and not stored.shape[0] % (2 * count) else stored.plain
        if name not in rope.TENSORS:
            tensors[name] = stored
    return found.layout.ours(tensors, file.path)


def rotated(name: str, arguments: Mapping[str, Any]) -> dict[str, int]:
    """The tensors whose rows are in the order of neighbouring pairs, and of how many heads they are."""
    return {"attn_q": arguments["heads"], "attn_k": arguments["kv_heads"]} if name in PAIRED else {}


def keys(file: File, name: str) -> dict[str, Any]:
    """The keys of a config.json.

    Raises ZooError for keys of the architecture that are missing, of another type, or not understood.
    """
    own = {key: value for key, value in file.said.items() if key.startswith(f"{name}.")}
    said = Config(file.path, {key: alike(file, key, value) for key, value in own.items()})

    def take(key: str, kind: Any, default: Any = NEEDED) -> Any:
        return said.take(f"{name}.{key}", kind, default)

    width, heads, limit = (take(key, int) for key in ("embedding_length", "attention.head_count", "context_length"))
    head_dim = max(1, take("attention.key_length", int, width // max(1, heads)))
    if take("attention.value_length", int, head_dim) != head_dim:
        raise ZooError(f"{file.path} says that keys and values of a head have different widths, and zoo has one.")
    if "token_embd.weight" not in file.tensors:
        raise ZooError(f"{file.path} is not complete: there is no token_embd.weight.")
    common = {
        "model_type": ARCHITECTURES[name],
        "vocab_size": take("vocab_size", int, file.tensors["token_embd.weight"].shape[0]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    hidden, layers = take("feed_forward_length", int), take("block_count", int)
    epsilon = take("attention.layer_norm_epsilon" if name in ("gptneox", "gpt2") else RMS, float)
    grouped = take("attention.head_count_kv", int, heads)
    if name == "gpt2":
        found = {"n_embd": width, "n_head": heads, "n_layer": layers, "n_positions": limit, "n_inner": hidden}
        found = {**common, **found, "layer_norm_epsilon": epsilon}
    else:
        found = {
            **common,
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": grouped,
            "head_dim": head_dim,
            "num_hidden_layers": layers,
            "intermediate_size": hidden,
            "layer_norm_eps" if name == "gptneox" else "rms_norm_eps": epsilon,
            "max_position_embeddings": limit,
            "rope_parameters": rope.read(file, take, head_dim, limit),
        }
    if name == "gptneox":
        found["use_parallel_residual"] = take("use_parallel_residual", bool, True)
    window = take("attention.sliding_window", int, None) if name == "llama" else None
    found |= {"model_type": "mistral", "sliding_window": window} if window else biases(file, name)
    for key, usual in USUAL.items():
        said.only(f"{name}.{key}", *usual)
    if left := [key for key in said.keys if key not in said.taken]:
        raise ZooError(
            f"{file.path} has {listing(left)}, which zoo does not know and which may change what the model computes."
        )
    return found


def alike(file: File, key: str, value: Any) -> Any:
    """The one value of a list with one for each layer."""
    if not isinstance(value, list):
        return value
    if len(set(map(str, value))) != 1:
        raise ZooError(f"{file.path} says {key} {str(value)[:60]}, and zoo has the same in all layers.")
    return value[0]


def biases(file: File, name: str) -> dict[str, bool]:
    """Which biases there are, which only the tensors tell."""
    there = {kind: f"blk.0.{kind}.bias" in file.tensors for kind in ("attn_q", "attn_qkv", "ffn_up")}
    if name == "gptneox":
        return {"attention_bias": there["attn_qkv"]}
    attention = {"attention_bias": there["attn_q"]} if name in ("llama", "qwen3", "smollm3", "olmo2") else {}
    return attention | ({"mlp_bias": there["ffn_up"]} if name in ("llama", "smollm3") else {})


def renamed(layout: Layout, name: str, layers: int) -> Layout:
    """The same places under the names of a file."""
    gguf = library()
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(kind, layers)

    def called(theirs: str) -> str:
        ends = (".weight", ".bias")
        return names.get_name(layout.prefix + theirs, ends) or names.get_name(theirs, ends) or theirs

    found = Layout("")
    for ours, parts in layout.parts.items():
        first = parts[0]
        if first.rows is not None or first.transposed:
            shape = first.shape[::-1] if first.transposed else first.shape
            found.parts[ours] = [Part(called(first.name), shape)]
        else:
            found.parts[ours] = [Part(called(part.name), part.shape) for part in parts]
    return found
