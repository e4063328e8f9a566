"""The trunk that decoder and vision transformer share: blocks with a position encoding and an attention kernel.

It owns the two slots. It builds one position encoding, asks it whether every layer wants its own, builds the rest, and
has encoding and kernel agree before the first weight is trained. It knows nothing of tokens or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo import plugins
from zoo.auto import Auto
from zoo.bias import Bias
from zoo.cache import Cache
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask
from zoo.layers import Attention, Block, FeedForward, Kind, Norm, NormAt, normalize
from zoo.matrix import agree, places
from zoo.position import Encoding, Geometry, NoPE, PositionEncoding
from zoo.seeding import use_own_generators

if TYPE_CHECKING:
    from zoo.scale.sequence import Slice

Plugin = TypeVar("Plugin", PositionEncoding, Kernel)

LAYERS, WIDEST = 10_000, 2**40
"""Layers, and numbers in a row, of which there are never more."""


class Trunk(nn.Module):
    """The stack of blocks with its position encoding and its attention kernel.

    Args:
        length: Tokens per axis at first training.
        prefix: Tokens before them that have no position.
        causal: Whether a token sees only itself and what came before.
        dim: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads (default: as many as query heads).
        head_dim: Width of one head (default: dim / heads).
        position: The position encoding, a plugin (default: RoPE).
        nope_every: Every so many layers one has no positions and no window (RNoPE-SWA, iRoPE; default: none).
        nope_layers: Layers without positions and window, counted from 0, where they follow no rule.
        window_layers: Layers that a window is for, counted from 0 (default: all that have positions).
        kernel: The attention kernel, a plugin (default: Auto, the fastest that serves).
        feed_forward: Kind of feed-forward layer.
        hidden: Its width (default: 8/3 dim in steps of 64 for SwiGLU, 4 dim otherwise).
        norm: Kind of norm.
        eps: Added to the variance in a norm.
        norm_at: Norms before each sublayer, after it (on its result), or on the stream once that is added (post-norm).
            The last norm of all, before the read-out, is there in any case.
        qk_norm: Norm on queries and keys: none, each head by itself, or the whole width at once.
        qkv_bias: Biases on the query, key and value projections.
        out_bias: Bias on attention's output projection.
        feed_forward_bias: Biases in the feed-forward layer.
        parallel: Attention and feed-forward read the same stream.
        dropout: Probability of dropping a channel of a sublayer's result.
        checkpointing: Recompute each block in backward instead of keeping its activations, of which its input is left
            ("offload": in the memory of the host).
        feed_forward_chunk: Tokens that pass a feed-forward layer at once, recomputed in backward (default: all).
        std: Standard deviation of the initial weights; those that write to the stream are divided by sqrt(2 layers).
    """

    def __init__(
        self,
        *,
        length: tuple[int, ...],
        prefix: int = 0,
        causal: bool = True,
        dim: int = 512,
        layers: int = 8,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Callable[[Geometry], PositionEncoding] | None = None,
        nope_every: int | None = None,
        nope_layers: list[int] | None = None,
        window_layers: list[int] | None = None,
        kernel: Callable[[Geometry], Kernel] | None = None,
        feed_forward: Kind = "SwiGLU",
        hidden: int | None = None,
        norm: Norm = "RMSNorm",
        eps: float = 1e-6,
        norm_at: NormAt = "before",
        qk_norm: Literal["none", "head", "width"] = "none",
        qkv_bias: bool = False,
        out_bias: bool = False,
        feed_forward_bias: bool = False,
        parallel: bool = False,
        dropout: float = 0.0,
        checkpointing: bool | Literal["offload"] = False,
        feed_forward_chunk: int | None = None,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        geometry = shape(dim, layers, heads, kv_heads, head_dim, length, prefix, causal)
        position = position or plugins.load("zoo.positions", "RoPE")
        kernel = kernel or Auto
        if not 0 <= dropout < 1 or (hidden is not None and hidden < 1):
            raise ZooError(f"dropout is at least 0 and below 1, hidden at least 1; got {dropout} and {hidden}.")
        if parallel and norm_at == "stream":
            raise ZooError(
                "norm_at stream normalises between the sublayers of a block, and parallel leaves nothing between them. "
                "  Try:  --model.norm_at before, or --model.parallel false"
            )
        if feed_forward_chunk is not None and feed_forward_chunk < 1:
            raise ZooError(
                f"feed_forward_chunk is a number of tokens, at least 1, and got {feed_forward_chunk}.   "
                "Try:  --model.feed_forward_chunk 2048, or leave it out"
            )
        self.geometry, self.checkpointing = geometry, checkpointing
        self.nope, self.windowed = local(layers, nope_every, nope_layers, window_layers)
        with exact():
            first = build_plugin(position, "zoo.positions", geometry, 0)
            rest = [
                build_plugin(NoPE if self.bare(layer) else position, "zoo.positions", geometry, layer)
                for layer in range(1, layers if first.per_layer else 1)
            ]
        self.positions = nn.ModuleList([first, *rest])
        if hidden is None:
            hidden = widened(dim, feed_forward)
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    replace(geometry, layer=layer),
                    build_plugin(kernel, "zoo.kernels", geometry, layer),
                    norm=norm,
                    eps=eps,
                    qk_norm=qk_norm,
                    qkv_bias=qkv_bias,
                    out_bias=out_bias,
                ),
                FeedForward(dim, hidden, feed_forward, feed_forward_bias, feed_forward_chunk),
                (normalize(norm, dim, eps), normalize(norm, dim, eps)),
                norm_at=norm_at,
                parallel=parallel,
                dropout=dropout,
            )
            for layer in range(layers)
        )
        self.norm = normalize(norm, dim, eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.initialize(std)
        agree(first, self.kernel)
        if self.nope and places(first).embedding is not None:
            raise ZooError(
                f"nope_every {nope_every} cannot spare layers the encoding {type(first).__name__}: an embedding "
                "is added before the first layer and reaches all of them.   Try:  --model.position RoPE"
            )

    @property
    def position(self) -> PositionEncoding:
        """The position encoding (the first layer's, where each has its own)."""
        return self.positions[0]  # type: ignore[return-value]

    @property
    def kernel(self) -> Kernel:
        """The kernel of the first block; all are built alike."""
        return self.blocks[0].attention.kernel  # type: ignore[union-attr,return-value]

    def bare(self, layer: int) -> bool:
        """Whether a layer has no positions."""
        return layer in self.nope

    def initialize(self, std: float) -> None:
        """Normal weights, zero biases; encodings and kernels have set their own."""
        for block in self.blocks:
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith("attention.kernel"):
                    writes = name in ("attention.out", "feed_forward.down")
                    nn.init.normal_(module.weight, std=std / (2 * len(self.blocks)) ** 0.5 if writes else std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As every module's, but for what it would leave uncompiled without a word."""
        if self.checkpointing == "offload":
            raise ZooError(
                "torch.compile gives up where the inputs of blocks leave for the host's memory: --model.compile and "
                "--model.checkpointing offload exclude each other.   Try:  --model.checkpointing true"
            )
        for module in self.modules():
            if isinstance(module, Auto):
                module.ready()
        super().compile(*args, **kwargs)

    def check(self, *, device: str, dtype: torch.dtype, training: bool, mask: frozenset[str], extent: int) -> None:
        """Ask the kernel again, now that device and dtype are known; raises ZooError before the first batch."""
        place = places(self.position)
        learned = place.bias is not None and any(tensor.requires_grad for tensor in place.bias.tensors)
        agree(
            self.position,
            self.kernel,
            device=device,
            dtype=dtype,
            training=training,
            mask=mask,
            learned=learned and training,
            size=self.geometry.heads * extent * extent,
        )

    def forward(
        self,
        x: Tensor,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        mask: Mask,
        cache: Cache | None = None,
        parallel: Slice | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            x: [batch, prefix + tokens, dim].
            queries: Positions of the tokens, [tokens, axes] or [batch, tokens, axes].
            keys: Positions of all tokens that they may look at.
            extent: Final length of the request.
            mask: Over buffer indices; its window is for some layers only.
            cache: Of earlier tokens; advanced here.
            parallel: Which run of the sequence x and `queries` are, where processes share it; `keys` and `mask` are of
                the whole.
        """
        whole = mask
        if len(self.windowed) < len(self.blocks) and mask.window is not None:
            whole = replace(mask, window=None, sinks=0, memo={})
        shared: Encoding | None = None
        for layer, block in enumerate(self.blocks):
            encoding = Encoding() if self.bare(layer) else shared
            if layer == 0 and self.position.content:
                x = self.dropout(x)  # such an encoding reads what attention reads
            if encoding is None:
                encoding = self.encode(layer, x, queries, keys, extent, cache, parallel)
                if not self.position.per_layer and not self.position.content:
                    shared = encoding
            if layer == 0:
                if encoding.embedding is not None:
                    x = add(x, encoding.embedding, self.geometry.prefix)
                if not self.position.content:
                    x = self.dropout(x)
            seen = mask if layer in self.windowed else whole
            if self.checkpointing and self.training and torch.is_grad_enabled():
                with offloaded(x) if self.checkpointing == "offload" else nullcontext():
                    x = checkpoint(block, x, encoding, seen, cache, parallel, use_reentrant=False)
            else:
                x = block(x, encoding, seen, cache, parallel)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    def encode(
        self,
        layer: int,
        x: Tensor,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        cache: Cache | None,
        parallel: Slice | None = None,
    ) -> Encoding:
        """What the encoding tells one layer, whose stream is x; of the bias the heads that are this process's."""
        block: Block = self.blocks[layer]  # type: ignore[assignment]
        position: PositionEncoding = self.positions[layer if len(self.positions) > 1 else 0]  # type: ignore[assignment]
        hidden, state = None, None
        if position.content:
            state = cache.state(layer) if cache is not None else None
            hidden = block.read(x)
        if parallel is not None and hidden is not None:  # only for a bias: `scale.sequence.fit` has asked
            hidden, queries = parallel.gather(hidden), keys
        with exact():
            told = position(queries, keys, extent, hidden, state)
            if parallel is None or told.bias is None:
                return told
            # Rotation, embedding and scale are of the tokens at hand; the bias meets those of all processes.
            whole = told if hidden is not None else position(keys, keys, extent)
        own = parallel.part(self.geometry.heads)
        return replace(told, bias=cast(Bias, whole.bias).heads(own.start, own.stop))

    def read(self, x: Tensor, positions: Tensor, extent: int, mask: Mask, rows: int) -> Tensor:
        """`forward` without gradients, in place, layer after layer, some rows at a time.

        Beside x there are the keys and values of one layer, and whatever a block makes of some rows.

        Args:
            x: [batch, tokens, dim]; overwritten.
            positions: [tokens, axes] or [batch, tokens, axes].
            extent: Final length of the request.
            mask: Causal, without documents; its offset is that of x.
            rows: Tokens at a time.
        """
        parts = [slice(start, min(start + rows, x.shape[1])) for start in range(0, x.shape[1], rows)]
        for layer, block in enumerate(self.blocks):
            cache = Cache(x.shape[1])
            bare = self.bare(layer)
            for part in parts:
                here, keys = x[:, part], positions[..., : part.stop, :]
                encoding = Encoding() if bare else self.encode(layer, here, keys[..., part, :], keys, extent, cache)
                if layer == 0 and encoding.embedding is not None:
                    here = add(here, encoding.embedding, 0)
                window, sinks = (mask.window, mask.sinks) if layer in self.windowed else (None, 0)
                seen = replace(mask, offset=part.start, window=window, sinks=sinks, memo={})
                x[:, part] = block(here, encoding, seen, cache)
                cache.advance(here.shape[1])
        for part in parts:
            x[:, part] = self.norm(x[:, part])
        return x


def build_plugin(build: Callable[[Geometry], Plugin], group: str, geometry: Geometry, layer: int) -> Plugin:
    """The encoding or kernel of one layer, whose initial weights are drawn from generators of its own."""
    with use_own_generators(build, group, layer):
        return build(replace(geometry, layer=layer))


def offloaded(x: Tensor) -> AbstractContextManager[None]:
    """Keep what is saved for backward in the memory of the host, and fetch it from there; on a CPU it stays."""
    return save_on_cpu(pin_memory=x.is_cuda)


@contextmanager
def exact() -> Iterator[None]:
    """Let an encoding make float32 tensors where Lightning has made a half precision the default."""
    default = torch.get_default_dtype()
    if default not in (torch.float16, torch.bfloat16):
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def add(x: Tensor, embedding: Tensor, prefix: int) -> Tensor:
    """`x` plus the position embedding of all tokens but the prefix."""
    return x + functional.pad(embedding.to(x.dtype), (0, 0, prefix, 0))


def local(
    layers: int, every: int | None, bare: list[int] | None, windowed: list[int] | None
) -> tuple[frozenset[int], frozenset[int]]:
    """The layers without positions, and those with the window; a sentence about a number that fits none."""
    if every is not None and bare is not None:
        raise ZooError("nope_every and nope_layers both say which layers have no positions. Give one of them.")
    if every is not None and not 2 <= every <= layers:
        raise ZooError(
            f"nope_every {every} makes no layer of {layers} one without positions, or all: it counts "
            "from 2 to the number of layers.   Try:  --model.nope_every 4, or leave it out"
        )
    if wrong := [layer for layer in [*(bare or []), *(windowed or [])] if not 0 <= layer < layers]:
        raise ZooError(f"There is no layer {wrong[0]} of {layers}: nope_layers and window_layers count from 0.")
    nope = frozenset(range(every - 1, layers, every) if every else bare or [])
    return nope, frozenset(windowed) if windowed is not None else frozenset(range(layers)) - nope


def widened(dim: int, feed_forward: str) -> int:
    """The width of a feed-forward layer where none is given: three matrices of 8/3 have the weights of two of 4."""
    return -(-8 * dim // 192) * 64 if feed_forward == "SwiGLU" else 4 * dim


def shape(
    dim: int,
    layers: int,
    heads: int,
    kv_heads: int | None,
    head_dim: int | None,
    length: tuple[int, ...],
    prefix: int,
    causal: bool,
) -> Geometry:
    """The geometry of a trunk, or a sentence about the number that does not fit."""
    kv_heads = heads if kv_heads is None else kv_heads
    for name, value in {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": 1 if head_dim is None else head_dim,
        "length": min(length),
    }.items():
        if value < 1:
            raise ZooError(f"The model needs at least 1 for {name}, and got {value}.")
        if value > (LAYERS if name == "layers" else WIDEST):
            raise ZooError(f"The model has {name} {value:.3g}, and no machine holds so many.   Try:  a smaller {name}")
    if head_dim is None and dim % heads:
        fits = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0 and abs(n - heads) <= heads)
        raise ZooError(f"A width of {dim} does not divide into {heads} heads. Heads that fit: {fits}; or set head_dim.")
    if heads % kv_heads:
        raise ZooError(f"{kv_heads} key heads cannot serve {heads} query heads: kv_heads must divide heads.")
    return Geometry(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads if head_dim is None else head_dim,
        length=length,
        prefix=prefix,
        causal=causal,
        layers=layers,
    )
