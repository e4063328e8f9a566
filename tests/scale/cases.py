"""What is trained on shared sequences: every place that positions are told at, every kernel, every kind of mask."""

from zoo.kernel import Eager

LENGTH, VOCABULARY = 24, 19


class Plain(Eager):
    """A kernel that is not ours, as softmax as Eager."""


def case(position="RoPE", kernel="Eager", **rest):
    return {"position": position, "kernel": kernel, **rest}


POSITIONS = (
    *("NoPE", "RoPE", "FoPE", "pRoPE", "xPos", "PoPE", "Learned", "Sinusoidal"),
    *("ALiBi", "T5", "KERPLE", "Sandwich", "FIRE", "DynamicBias", "FoX", "CoPE"),
)
"""The installed encodings of text."""
KERNELS = (
    *("Auto", "Eager", "SDPA", "Tiled", "OffByOne", "Sink", "RBF", "Cosine", "Sigmoid", "FourierRadial"),
    "LinearAttention",
)
"""The installed kernels that train on a CPU."""

QUICK = (
    *("RoPE", "T5", "FIRE", "FoPE, trained", "Sink with FoX", "one key head, CoPE", "by four, two key heads"),
    *("documents, FoX", "random positions, generators astray", "recomputed, FIRE"),
)
"""Cases enough to see something break."""

CASES = {
    **{name: case(name) for name in POSITIONS},
    "FoPE, trained": case("FoPE", settings={"trainable": True}),
    **{f"{name}, its own": case(kernel=name) for name in KERNELS[:-1] if name != "Eager"},
    "LinearAttention, its own": case("Sinusoidal", "LinearAttention"),
    **{f"{kernel} with {name}": case(name, kernel) for kernel in ("Auto", "Tiled", "SDPA") for name in ("T5", "FIRE")},
    **{f"{kernel} with FoX": case("FoX", kernel) for kernel in ("Tiled", "Sink", "Sigmoid")},
    **{f"{name} with ALiBi": case("ALiBi", name) for name in ("FourierIntegral", "FourierQuartic")},
    "by four, an R for each head": case("T5", "FourierIntegral", share=4, model={"kv_heads": 2}),
    "nothing shared, documents": case("ALiBi", share=1, model={"within_documents": True}),
    "somebody else's kernel": case("ALiBi", "Plain"),
    **{f"one key head, {name}": case(name, model={"kv_heads": 1}) for name in ("RoPE", "FoPE", "PoPE", "T5", "CoPE")},
    "two key heads": case("FIRE", model={"kv_heads": 2}),
    "by four": case("FIRE", share=4),
    "by four, one key head": case("T5", share=4, model={"kv_heads": 1}),
    "by four, two key heads": case("FoPE", share=4, model={"kv_heads": 2}),
    "six heads on three": case(model={"heads": 6, "kv_heads": 3, "head_dim": 8}),
    "by four, a sink for each head": case("FoX", "Sink", share=4, model={"kv_heads": 2}),
    **{f"window, {name}": case("ALiBi", name, model={"window": 5}) for name in ("Eager", "Tiled", "SDPA", "OffByOne")},
    "window and sinks": case("T5", "Auto", model={"window": 5, "sinks": 2}),
    "window, layers without positions": case("FoPE", model={"window": 5, "nope_every": 2}),
    "layers without positions": case("ALiBi", model={"nope_every": 2}),
    **{
        f"documents, {name}": case(name, kernel, model={"within_documents": True})
        for name, kernel in (("RoPE", "Auto"), ("T5", "Tiled"), ("FIRE", "Eager"), ("FoX", "Sink"), ("CoPE", "Eager"))
    },
    "documents, linear attention": case("NoPE", "LinearAttention", model={"within_documents": True}),
    **{f"spread positions, {name}": case(name, positions=96, model={"reach": 96}) for name in ("RoPE", "FIRE", "FoPE")},
    "random positions": case("ALiBi", model={"random_positions": 96}),
    "random positions, generators astray": case("ALiBi", astray=1, model={"random_positions": 96}),
    **{f"recomputed, {name}": case(name, model={"checkpointing": True}) for name in ("RoPE", "FoX", "FIRE")},
    "recomputed, a sink for each head": case("T5", "Sink", model={"checkpointing": True}),
    "norms of the width": case(model={"qk_norm": "width", "norm_at": "after"}),
    "norms after, gates": case("FoX", model={"norm_at": "after"}),
    "norms on the stream, gates": case("FoX", model={"norm_at": "stream", "norm": "LayerNorm", "feed_forward": "ReLU"}),
    "beside the feed-forward": case("T5", model={"parallel": True, "norm": "LayerNorm", "qkv_bias": True}),
    **{
        f"{name} to twice the length": case(settings={"extension": (name, {"factor": 2.0})}, model={"length": 12})
        for name in ("YaRN", "LeakyReRoPE", "SelfExtend")
    },
    **{
        f"{name} to twice the length": case(settings={"extension": (name, {})}, model={"length": 12})
        for name in ("DynamicNTK", "DualChunk")
    },
}
