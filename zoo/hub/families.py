"""The networks that Hugging Face's folders hold, as ours: arguments of Decoder, and where its tensors are.

A family is a function of the config. Llama's is that of Mistral, Qwen2, Qwen3, SmolLM2 and SmolLM3 too, which differ in
a norm, some biases, windows, and layers without positions. Dropout is left at 0: a run sets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import ZooError, listing, near
from zoo.hub import rotary
from zoo.hub.config import NEEDED, Config
from zoo.hub.layout import Layout, Part

GELUS = {"gelu": "GELU", "gelu_new": "GELU-tanh", "gelu_fast": "GELU-tanh", "gelu_pytorch_tanh": "GELU-tanh"}
"""transformers' names of the two ways to compute it."""
GROUPED = ("mistral", "qwen2", "qwen3", "smollm3")
"""Types that have fewer key heads than query heads where nothing is said."""
WINDOWED = ("mistral", "qwen2", "qwen3")
"""Types that have a width of windows where nothing is said; whether they have windows is another matter."""


@dataclass(frozen=True)
class Found:
    """A network.

    Args:
        arguments: Of Decoder.
        layout: Where its tensors are.
    """

    arguments: dict[str, Any]
    layout: Layout


@dataclass(frozen=True)
class Sizes:
    """Numbers that all families have, and where a block's projections start."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def llama(config: Config) -> Found:
    """Llama, Mistral, Qwen2, Qwen3, SmolLM3: RMSNorm before each sublayer, SwiGLU, rotary positions."""
    kind = config.keys["model_type"]
    sizes = common(config)
    config.only("hidden_act", "silu")
    bias = bool(config.take("attention_bias", bool, kind == "qwen2"))
    if kind == "mistral":
        config.only("attention_bias", False)
    if kind in WINDOWED:
        config.only("mlp_bias", False)
    feed_forward_bias = bool(config.take("mlp_bias", bool, False))
    arguments = {
        **shared(config, sizes, rotary.read(config, sizes.head_dim)),
        "eps": config.take("rms_norm_eps", float, 1e-6),
        "qk_norm": "head" if kind == "qwen3" else "none",
        "qkv_bias": bias,
        "out_bias": bias and kind != "qwen2",
        "feed_forward_bias": feed_forward_bias,
        **windows(config, kind, sizes.layers),
    }
    if kind == "smollm3":
        arguments["nope_layers"] = bare(config, sizes.layers)
    layout = gated(sizes, arguments, before="input_layernorm", between="post_attention_layernorm")
    return Found(arguments, layout)


def olmo2(config: Config) -> Found:
    """OLMo2: norms on what the sublayers give, and on queries and keys over the whole width."""
    sizes = common(config)
    config.only("hidden_act", "silu")
    config.only("clip_qkv")
    bias = bool(config.take("attention_bias", bool, False))
    arguments = {
        **shared(config, sizes, rotary.read(config, sizes.head_dim)),
        "eps": config.take("rms_norm_eps", float, 1e-5),
        "norm_at": "after",
        "qk_norm": "width",
        "qkv_bias": bias,
        "out_bias": bias,
    }
    layout = gated(sizes, arguments, before="post_attention_layernorm", between="post_feedforward_layernorm")
    return Found(arguments, layout)


def neox(config: Config) -> Found:
    """GPT-NeoX and Pythia: LayerNorm, biases, both sublayers on one stream, a part of each head rotated."""
    sizes = common(config)
    bias = bool(config.take("attention_bias", bool, True))
    arguments = {
        **shared(config, sizes, rotary.read(config, sizes.head_dim, fraction=0.25)),
        "feed_forward": gelu(config, "hidden_act"),
        "norm": "LayerNorm",
        "eps": config.take("layer_norm_eps", float, 1e-5),
        "qkv_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": True,
        "parallel": config.take("use_parallel_residual", bool, True),
    }
    # transformers 5 calls the head lm_head in memory and embed_out in the files that it writes itself.
    buffers = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    layout = Layout("gpt_neox.", buffers, {"lm_head.weight": "embed_out.weight"})
    d, heads, width = sizes.dim, sizes.heads, sizes.head_dim
    ends(layout, arguments, sizes, "embed_in.weight", "final_layer_norm", "embed_out.weight")
    for ours, theirs in blocks(sizes, "layers"):
        for name, shape in (("weight", (3 * d, d)), ("bias", (3 * d,)))[: 1 + bias]:
            # Theirs has the three of each head together.
            layout.parts[f"{ours}attention.qkv.{name}"] = [
                Part(f"{theirs}attention.query_key_value.{name}", shape, range(start, start + width))
                for which in range(3)
                for start in ((3 * head + which) * width for head in range(heads))
            ]
        layout.linear(f"{ours}attention.out", f"{theirs}attention.dense", d, d, bias)
        layout.linear(f"{ours}feed_forward.up", f"{theirs}mlp.dense_h_to_4h", sizes.hidden, d, True)
        layout.linear(f"{ours}feed_forward.down", f"{theirs}mlp.dense_4h_to_h", d, sizes.hidden, True)
        layout.norm(f"{ours}norm1", f"{theirs}input_layernorm", d, True)
        layout.norm(f"{ours}norm2", f"{theirs}post_attention_layernorm", d, True)
    return Found(arguments, layout)


def gpt2(config: Config) -> Found:
    """GPT-2: LayerNorm, biases, a table of positions, matrices with inputs for rows."""
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("reorder_and_upcast_attn", False, True)  # the same numbers in exact arithmetic
    d, length = config.count("n_embd"), config.count("n_positions")
    heads, layers = config.count("n_head"), config.count("n_layer")
    hidden, vocabulary = config.count("n_inner", 4 * d), config.count("vocab_size")
    sizes = Sizes(d, hidden, layers, heads, heads, d // heads, vocabulary)
    position = rotary.Rotary({"class_path": "Learned", "init_args": {}}, length, length)
    arguments = {
        **shared(config, sizes, position, tied=True),
        "feed_forward": gelu(config, "activation_function", "gelu_new"),
        "norm": "LayerNorm",
        "eps": config.take("layer_norm_epsilon", float, 1e-5),
        "qkv_bias": True,
        "out_bias": True,
        "feed_forward_bias": True,
    }
    layout = Layout("transformer.", (".attn.bias", ".attn.masked_bias"))
    ends(layout, arguments, sizes, "wte.weight", "ln_f", "lm_head.weight")
    layout.whole("trunk.positions.0.table", "wpe.weight", length, d)
    for ours, theirs in blocks(sizes, "h"):
        layout.linear(f"{ours}attention.qkv", f"{theirs}attn.c_attn", 3 * d, d, True, transposed=True)
        layout.linear(f"{ours}attention.out", f"{theirs}attn.c_proj", d, d, True, transposed=True)
        layout.linear(f"{ours}feed_forward.up", f"{theirs}mlp.c_fc", hidden, d, True, transposed=True)
        layout.linear(f"{ours}feed_forward.down", f"{theirs}mlp.c_proj", d, hidden, True, transposed=True)
        layout.norm(f"{ours}norm1", f"{theirs}ln_1", d, True)
        layout.norm(f"{ours}norm2", f"{theirs}ln_2", d, True)
    return Found(arguments, layout)


def gated(sizes: Sizes, arguments: dict[str, Any], *, before: str, between: str) -> Layout:
    """Where Llama's relatives have their tensors."""
    layout = Layout("model.", (".rotary_emb.inv_freq",))
    d, hidden, bias = sizes.dim, sizes.hidden, arguments["qkv_bias"]
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    ends(layout, arguments, sizes, "embed_tokens.weight", "norm", "lm_head.weight")
    for ours, theirs in blocks(sizes, "layers"):
        attention, feed_forward = f"{theirs}self_attn.", f"{theirs}mlp."
        for name, width in (("weight", (d,)), ("bias", ()))[: 1 + bias]:
            three = [
                (f"{attention}{which}_proj.{name}", count) for which, count in zip("qkv", (q, kv, kv), strict=True)
            ]
            layout.stacked(f"{ours}attention.qkv.{name}", three, *width)
        layout.linear(f"{ours}attention.out", f"{attention}o_proj", d, q, arguments["out_bias"])
        for name, width in (("weight", (d,)), ("bias", ()))[: 1 + arguments.get("feed_forward_bias", False)]:
            two = [(f"{feed_forward}{which}_proj.{name}", hidden) for which in ("gate", "up")]
            layout.stacked(f"{ours}feed_forward.up.{name}", two, *width)
        more = arguments.get("feed_forward_bias", False)
        layout.linear(f"{ours}feed_forward.down", f"{feed_forward}down_proj", d, hidden, more)
        layout.norm(f"{ours}norm1", f"{theirs}{before}", d)
        layout.norm(f"{ours}norm2", f"{theirs}{between}", d)
        if arguments["qk_norm"] != "none":
            widths = (q, kv) if arguments["qk_norm"] == "width" else (sizes.head_dim, sizes.head_dim)
            for which, scale in zip("qk", widths, strict=True):
                layout.norm(f"{ours}attention.{which}_norm", f"{attention}{which}_norm", scale)
    if arguments["position"]["class_path"] == "FoPE":
        waves = arguments["position"]["init_args"]["num_inv_freq"]
        for name in ("sin_coef", "cos_coef"):
            layout.whole(f"trunk.positions.0.{name}", f"rotary_emb.{name}", sizes.kv_heads, waves, waves)
    return layout


def ends(layout: Layout, arguments: dict[str, Any], sizes: Sizes, embedding: str, norm: str, head: str) -> None:
    """What stands before and after the blocks."""
    shape = sizes.vocabulary, sizes.dim
    layout.whole("embedding.weight", embedding, *shape)
    layout.whole("head.weight", embedding if arguments["tied"] else head, *shape)
    layout.outside.add(head)
    if arguments["tied"]:
        layout.tied[head] = embedding
    layout.norm("trunk.norm", norm, sizes.dim, arguments.get("norm") == "LayerNorm")


def blocks(sizes: Sizes, name: str) -> list[tuple[str, str]]:
    """How names begin in each block, ours and theirs."""
    return [(f"trunk.blocks.{layer}.", f"{name}.{layer}.") for layer in range(sizes.layers)]


def common(config: Config) -> Sizes:
    """The sizes under the names that all but GPT-2 have."""
    kind, d, heads = config.keys["model_type"], config.count("hidden_size"), config.count("num_attention_heads")
    width = config.count("head_dim", 128 if kind == "qwen3" else max(1, d // heads))
    grouped = kind in GROUPED and "num_key_value_heads" not in config.keys  # transformers has a number of its own then
    return Sizes(
        dim=d,
        hidden=config.count("intermediate_size"),
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=config.count("num_key_value_heads", NEEDED if grouped else heads),
        head_dim=width,
        vocabulary=config.count("vocab_size"),
    )


def shared(config: Config, sizes: Sizes, position: rotary.Rotary, *, tied: bool = False) -> dict[str, Any]:
    """Arguments that all families have."""
    return {
        "vocabulary": sizes.vocabulary,
        "length": position.length,
        "reach": position.reach,
        "tied": config.take("tie_word_embeddings", bool, tied or config.keys["model_type"] == "smollm3"),
        "dim": sizes.dim,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden": sizes.hidden,
        "position": position.position,
        "kernel": {"class_path": "Auto", "init_args": {}},
    }


def windows(config: Config, kind: str, layers: int) -> dict[str, Any]:
    """The window, and the layers that have it; a sentence where transformers would have others than are said."""
    unsaid = 4096 if kind in WINDOWED and "sliding_window" not in config.keys else None
    window, types = config.count("sliding_window", unsaid), config.take("layer_types", list, None)
    used = config.take("use_sliding_window", bool, kind == "mistral")
    first = config.take("max_window_layers", int, 28)
    known = {"full_attention", "sliding_attention"}
    if types is not None and (len(types) != layers or not known.issuperset(map(str, types))):
        raise config.strange("layer_types", f"zoo knows {listing(sorted(known))}, one for each of {layers} layers")
    if window is None or not used:
        if types is not None and "sliding_attention" in types:
            raise config.strange("layer_types", "and by sliding_window and use_sliding_window there is no window")
        if window is not None and kind == "mistral":
            raise config.strange("use_sliding_window", "transformers has the window of a mistral all the same")
        return {}
    if kind == "llama":
        raise config.strange("use_sliding_window", "transformers passes over the window of a llama, and others do not")
    chosen = list(range(layers))
    if types is not None:
        chosen = [layer for layer, name in enumerate(types) if name == "sliding_attention"]
    elif kind == "smollm3":
        chosen = bare(config, layers)
    elif kind != "mistral":
        chosen = chosen[first:]
    return {"window": window, "window_layers": chosen} if chosen else {}


def bare(config: Config, layers: int) -> list[int]:
    """Layers without positions: a list with a 0 for each, or every so many."""
    rotated, every = config.take("no_rope_layers", list, None), config.count("no_rope_layer_interval", 4)
    if rotated is None:
        return list(range(every - 1, layers, every))
    if len(rotated) != layers:
        raise config.strange("no_rope_layers", f"there should be a number for each of {layers} layers")
    return [layer for layer, turned in enumerate(rotated) if not turned]


def gelu(config: Config, name: str, default: str = "gelu") -> str:
    """Which GELU."""
    return GELUS[config.only(name, *GELUS) or default]


FAMILIES: dict[str, tuple[str, Callable[[Config], Found]]] = {
    "llama": ("LlamaForCausalLM", llama),
    "mistral": ("MistralForCausalLM", llama),
    "qwen2": ("Qwen2ForCausalLM", llama),
    "qwen3": ("Qwen3ForCausalLM", llama),
    "smollm3": ("SmolLM3ForCausalLM", llama),
    "olmo2": ("Olmo2ForCausalLM", olmo2),
    "gpt_neox": ("GPTNeoXForCausalLM", neox),
    "gpt2": ("GPT2LMHeadModel", gpt2),
}
"""By model_type: the class that transformers has for it, and ours. SmolLM2 is a llama, pythia a gpt_neox."""


OWN = "zoo"
"""The model_type of folders that transformers reads by code of ours; the family is told by the architecture."""
CODE: Mapping[str, str] = {
    "AutoConfig": "configuration_zoo.ZooConfig",
    "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM",
}
"""Their auto_map; with another one they are not ours, whatever their type."""


def kind(keys: Mapping[str, Any]) -> str:
    """The family of a config, by model_type; whatever else it says where it is of none."""
    if keys.get("model_type") == OWN:
        named = keys.get("architectures")
        named = named if isinstance(named, list) else []
        return next((family for family, (architecture, _) in FAMILIES.items() if architecture in named), OWN)
    return str(keys.get("model_type"))


def network(config: Config) -> Found:
    """The network of a config; a sentence where it is of no known family, or says what is not known."""
    family = kind({**config.keys, "model_type": config.take("model_type", str, "")})
    if family != config.keys.get("model_type"):
        keys = {**config.keys, "model_type": family}
        if keys.get("auto_map") == CODE:  # which is not run here
            del keys["auto_map"]
        config = Config(config.path, keys)
    elif family == OWN:
        raise ZooError(
            f"{config.path} says that zoo made this folder, and not which family it is of: that stands in its "
            "config.yaml, which is missing."
        )
    if family not in FAMILIES:
        close = near(family, list(FAMILIES))
        hint = f" Did you mean {listing(close)}?" if close else ""
        raise ZooError(
            f"{config.path} is of the type {family or 'none'}, and zoo reads {listing(list(FAMILIES))}.{hint} "
            "(SmolLM2 is a llama, pythia a gpt_neox.)"
        )
    architecture, build = FAMILIES[family]
    named = config.take("architectures", list, None) or [architecture]
    if architecture not in named:
        raise config.strange("architectures", f"zoo reads {architecture} of the type {family}")
    found = build(config)
    config.done()
    return found
