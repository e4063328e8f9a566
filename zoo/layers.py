"""What decoder and vision transformer share: norm, attention, feed-forward, block, and the trunk that stacks them.

The trunk owns the two slots. It builds one position encoding, asks it whether every layer wants its own, builds the
rest, and has encoding and kernel agree before the first weight is trained. It knows nothing of tokens or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo import plugins
from zoo.auto import Auto
from zoo.cache import Cache
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask
from zoo.matrix import agree, places
from zoo.position import Encoding, Geometry, PositionEncoding

Norm = Literal["RMSNorm", "LayerNorm"]


def normalize(kind: Norm, width: int, eps: float) -> nn.Module:
    """A norm over the last axis, with its scale (and, for LayerNorm, its shift)."""
    return nn.RMSNorm(width, eps=eps) if kind == "RMSNorm" else nn.LayerNorm(width, eps=eps)


class Linear(nn.Linear):
    """nn.Linear, which on a CPU reads its matrix with all threads even where it multiplies a single vector.

    Decoding one token is hardly more than reading matrices, and BLAS reads them with one thread for one vector. The
    products of slices of the rows are spread over the threads, and slices are views: nothing is stored twice.
    """

    slices = 16

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() != self.in_features or x.device.type != "cpu" or self.out_features % self.slices:
            return super().forward(x)
        rows = self.weight.view(self.slices, -1, self.in_features).mT
        y = torch.bmm(x.expand(self.slices, 1, -1), rows).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Project, normalise, rotate, store, attend, project back.

    Queries, keys and values come from one product: rows are query heads, key heads, value heads. QK-norm stands before
    the rotation, as in Qwen3 ("head") and OLMo2 ("width": over all heads at once).
    """

    def __init__(
        self,
        geometry: Geometry,
        kernel: Kernel,
        *,
        norm: Norm,
        eps: float,
        qk_norm: Literal["none", "head", "width"],
        qkv_bias: bool,
        out_bias: bool,
    ) -> None:
        super().__init__()
        self.geometry = g = geometry
        self.kernel = kernel
        self.split = (g.heads, g.kv_heads, g.kv_heads)
        self.qkv = Linear(g.dim, sum(self.split) * g.head_dim, bias=qkv_bias)
        self.out = Linear(g.heads * g.head_dim, g.dim, bias=out_bias)
        self.qk_norm = qk_norm
        if qk_norm != "none":
            widths = [g.head_dim * (count if qk_norm == "width" else 1) for count in (g.heads, g.kv_heads)]
            self.q_norm, self.k_norm = (normalize(norm, width, eps) for width in widths)

    def forward(self, x: Tensor, encoding: Encoding, mask: Mask, cache: Cache | None = None) -> Tensor:
        g = self.geometry
        q, k, v = self.qkv(x).unflatten(-1, (-1, g.head_dim)).transpose(1, 2).split(self.split, 1)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.qk_norm == "width":
            q, k = (
                norm(part.transpose(1, 2).flatten(-2)).unflatten(-1, (-1, g.head_dim)).transpose(1, 2)
                for norm, part in ((self.q_norm, q), (self.k_norm, k))
            )
        if encoding.rotation is not None:
            q, k = encoding.rotation(q, k)
        scale = g.head_dim**-0.5
        if isinstance(encoding.scale, Tensor):  # one factor a query token: it goes onto the queries
            factor = functional.pad(encoding.scale.to(q.dtype), (g.prefix, 0), value=1.0)
            q = q * factor.view(-1, 1, factor.shape[-1], 1)
        else:
            scale *= encoding.scale
        if cache is not None:
            k, v = cache.append(g.layer or 0, k, v)
        y = self.kernel(q, k, v, bias=encoding.bias, mask=mask, scale=scale)
        return self.out(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), gate and value from one product, or GELU, exact or by tanh."""

    def __init__(self, dim: int, hidden: int, kind: Literal["SwiGLU", "GELU", "GELU-tanh"], bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.up = Linear(dim, hidden * (2 if kind == "SwiGLU" else 1), bias=bias)
        self.down = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.kind == "SwiGLU":
            gate, value = x.chunk(2, -1)
            return self.down(functional.silu(gate) * value)
        return self.down(functional.gelu(x, approximate="tanh" if self.kind == "GELU-tanh" else "none"))


class Block(nn.Module):
    """Attention and feed-forward around the residual stream.

    Args:
        attention: The attention layer.
        feed_forward: The feed-forward layer.
        norms: The two norms.
        after: Norms stand on what the sublayers give (OLMo2) instead of on what they take.
        parallel: Both sublayers read the same stream (GPT-NeoX).
        dropout: Probability that a channel of a sublayer's result is dropped.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: tuple[nn.Module, nn.Module],
        *,
        after: bool,
        parallel: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = norms
        self.after, self.parallel = after, parallel
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, encoding: Encoding, mask: Mask, cache: Cache | None = None) -> Tensor:
        first = self.dropout(self.attend(x, encoding, mask, cache))
        if self.parallel:
            return x + first + self.dropout(self.feed(x))
        x = x + first
        return x + self.dropout(self.feed(x))

    def attend(self, x: Tensor, encoding: Encoding, mask: Mask, cache: Cache | None) -> Tensor:
        if self.after:
            return self.norm1(self.attention(x, encoding, mask, cache))
        return self.attention(self.norm1(x), encoding, mask, cache)

    def feed(self, x: Tensor) -> Tensor:
        return self.norm2(self.feed_forward(x)) if self.after else self.feed_forward(self.norm2(x))


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
        kernel: The attention kernel, a plugin (default: Auto, the fastest that serves).
        feed_forward: Kind of feed-forward layer.
        hidden: Its width (default: 8/3 dim in steps of 64 for SwiGLU, 4 dim otherwise).
        norm: Kind of norm.
        eps: Added to the variance in a norm.
        norm_at: Norms before each sublayer, or after it (on its result).
        qk_norm: Norm on queries and keys: none, each head by itself, or the whole width at once.
        qkv_bias: Biases on the query, key and value projections.
        out_bias: Bias on attention's output projection.
        feed_forward_bias: Biases in the feed-forward layer.
        parallel: Attention and feed-forward read the same stream.
        dropout: Probability of dropping a channel of a sublayer's result.
        checkpointing: Recompute each block in backward instead of keeping its activations.
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
        kernel: Callable[[Geometry], Kernel] | None = None,
        feed_forward: Literal["SwiGLU", "GELU", "GELU-tanh"] = "SwiGLU",
        hidden: int | None = None,
        norm: Norm = "RMSNorm",
        eps: float = 1e-6,
        norm_at: Literal["before", "after"] = "before",
        qk_norm: Literal["none", "head", "width"] = "none",
        qkv_bias: bool = False,
        out_bias: bool = False,
        feed_forward_bias: bool = False,
        parallel: bool = False,
        dropout: float = 0.0,
        checkpointing: bool = False,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        geometry = shape(dim, layers, heads, kv_heads, head_dim, length, prefix, causal)
        position = position or plugins.load("zoo.positions", "RoPE")
        kernel = kernel or Auto
        if not 0 <= dropout < 1 or (hidden is not None and hidden < 1):
            raise ZooError(f"dropout is at least 0 and below 1, hidden at least 1; got {dropout} and {hidden}.")
        with exact():
            first = position(replace(geometry, layer=0))
            rest = [position(replace(geometry, layer=i)) for i in range(1, layers)] if first.per_layer else []
        self.geometry, self.checkpointing = geometry, checkpointing
        self.positions = nn.ModuleList([first, *rest])
        if hidden is None:
            hidden = -(-8 * dim // 192) * 64 if feed_forward == "SwiGLU" else 4 * dim
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    own := replace(geometry, layer=layer),
                    kernel(own),
                    norm=norm,
                    eps=eps,
                    qk_norm=qk_norm,
                    qkv_bias=qkv_bias,
                    out_bias=out_bias,
                ),
                FeedForward(dim, hidden, feed_forward, feed_forward_bias),
                (normalize(norm, dim, eps), normalize(norm, dim, eps)),
                after=norm_at == "after",
                parallel=parallel,
                dropout=dropout,
            )
            for layer in range(layers)
        )
        self.norm = normalize(norm, dim, eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.initialize(std)
        agree(first, self.kernel)

    @property
    def position(self) -> PositionEncoding:
        """The position encoding (the first layer's, where each has its own)."""
        return self.positions[0]  # type: ignore[return-value]

    @property
    def kernel(self) -> Kernel:
        """The kernel of the first block; all are built alike."""
        return self.blocks[0].attention.kernel  # type: ignore[union-attr,return-value]

    def initialize(self, std: float) -> None:
        """Normal weights, zero biases; encodings and kernels have set their own."""
        for block in self.blocks:
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith("attention.kernel"):
                    writes = name in ("attention.out", "feed_forward.down")
                    nn.init.normal_(module.weight, std=std / (2 * len(self.blocks)) ** 0.5 if writes else std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

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
    ) -> Tensor:
        """Run the blocks.

        Args:
            x: [batch, prefix + tokens, dim].
            queries: Positions of the tokens, [tokens, axes] or [batch, tokens, axes].
            keys: Positions of all tokens that they may look at.
            extent: Final length of the request.
            mask: Over buffer indices.
            cache: Of earlier tokens; advanced here.
        """
        shared: Encoding | None = None
        for layer, block in enumerate(self.blocks):
            encoding = shared
            if encoding is None:
                position: PositionEncoding = self.positions[layer if len(self.positions) > 1 else 0]  # type: ignore[assignment]
                seen = block.norm1(x) if position.content and not block.after else x  # type: ignore[operator]
                state = cache.state(layer) if cache is not None and position.content else None
                with exact():
                    encoding = position(queries, keys, extent, seen if position.content else None, state)
                if not position.per_layer and not position.content:
                    shared = encoding
                if layer == 0:
                    if encoding.embedding is not None:
                        x = add(x, encoding.embedding, self.geometry.prefix)
                    x = self.dropout(x)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, encoding, mask, cache, use_reentrant=False)
            else:
                x = block(x, encoding, mask, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)


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
        "length": min(length),
    }.items():
        if value < 1:
            raise ZooError(f"The model needs at least 1 for {name}, and got {value}.")
    if head_dim is None and dim % heads:
        fits = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0 and abs(n - heads) <= heads)
        raise ZooError(f"A width of {dim} does not divide into {heads} heads. Heads that fit: {fits}; or set head_dim.")
    if heads % kv_heads:
        raise ZooError(f"{kv_heads} key heads cannot serve {heads} query heads: kv_heads must divide heads.")
    return Geometry(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or dim // heads,
        length=length,
        prefix=prefix,
        causal=causal,
        layers=layers,
    )


__all__ = ["Attention", "Block", "FeedForward", "Linear", "Trunk"]
