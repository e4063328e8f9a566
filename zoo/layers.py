"""What a block is made of: norm, linear map, attention, feed-forward, and the block around the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.cache import Cache
from zoo.kernel import Kernel, Mask
from zoo.position import Encoding, Geometry

if TYPE_CHECKING:
    from zoo.scale.sequence import Slice

Norm = Literal["RMSNorm", "LayerNorm"]
NormAt = Literal["before", "after", "stream"]
Kind = Literal["SwiGLU", "GELU", "GELU-tanh", "ReLU"]
"""Of feed-forward layers."""


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

    def forward(
        self,
        x: Tensor,
        encoding: Encoding,
        mask: Mask,
        cache: Cache | None = None,
        parallel: Slice | None = None,
    ) -> Tensor:
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
        if parallel is None:
            self.kernel.share = slice(None)
            y = self.kernel(q, k, v, bias=encoding.bias, mask=mask, scale=scale)
        else:  # all tokens of some heads, and back
            self.kernel.share = parallel.part(g.heads)
            q, k, v = parallel.heads(q), parallel.heads(k), parallel.heads(v)
            y = parallel.back(self.kernel(q, k, v, bias=encoding.bias, mask=mask, scale=scale))
        return self.out(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), gate and value from one product, or GELU, exact or by tanh, or ReLU.

    It looks at one token at a time, so a long sequence may pass in pieces: what is between the two products is several
    times as wide as the stream, and then exists for one piece only, in backward too, where the pieces are recomputed
    (Liu and Abbeel 2023, arXiv:2305.19370).

    Args:
        dim: Width of the stream.
        hidden: Width between the two products.
        kind: What is between them.
        bias: Biases on both.
        chunk: Tokens that pass at once (default: all).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        kind: Kind,
        bias: bool,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.chunk = kind, chunk
        self.up = Linear(dim, hidden * (2 if kind == "SwiGLU" else 1), bias=bias)
        self.down = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        rows = x.flatten(0, -2)
        if self.chunk is None or len(rows) <= self.chunk:
            return self.pass_on(x)
        if torch.is_grad_enabled():  # nothing here is random: no state of a generator need be kept
            parts = [
                checkpoint(self.pass_on, part, use_reentrant=False, preserve_rng_state=False)
                for part in rows.split(self.chunk)
            ]
        else:
            parts = [self.pass_on(part) for part in rows.split(self.chunk)]
        return torch.cat(parts).view_as(x)

    def pass_on(self, x: Tensor) -> Tensor:
        """All of x at once."""
        x = self.up(x)
        if self.kind == "SwiGLU":
            gate, value = x.chunk(2, -1)
            return self.down(functional.silu(gate) * value)
        if self.kind == "ReLU":
            return self.down(functional.relu(x))
        return self.down(functional.gelu(x, approximate="tanh" if self.kind == "GELU-tanh" else "none"))


class Block(nn.Module):
    """Attention and feed-forward around the residual stream.

    Args:
        attention: The attention layer.
        feed_forward: The feed-forward layer.
        norms: The two norms.
        norm_at: Norms stand on what the sublayers take, on what they give (OLMo2), or on the stream to which that has
            been added (post-norm: Vaswani et al. 2017, arXiv:1706.03762).
        parallel: Both sublayers read the same stream (GPT-NeoX).
        dropout: Probability that a channel of a sublayer's result is dropped.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: tuple[nn.Module, nn.Module],
        *,
        norm_at: NormAt,
        parallel: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = norms
        self.norm_at, self.parallel = norm_at, parallel
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        x: Tensor,
        encoding: Encoding,
        mask: Mask,
        cache: Cache | None = None,
        parallel: Slice | None = None,
    ) -> Tensor:
        first = self.dropout(self.attend(x, encoding, mask, cache, parallel))
        if self.parallel:
            return x + first + self.dropout(self.feed(x))
        x = self.settle(x + first, self.norm1)
        return self.settle(x + self.dropout(self.feed(x)), self.norm2)

    def attend(self, x: Tensor, encoding: Encoding, mask: Mask, cache: Cache | None, parallel: Slice | None) -> Tensor:
        found = self.attention(self.read(x), encoding, mask, cache, parallel)
        return self.norm1(found) if self.norm_at == "after" else found

    def feed(self, x: Tensor) -> Tensor:
        found = self.feed_forward(self.norm2(x) if self.norm_at == "before" else x)
        return self.norm2(found) if self.norm_at == "after" else found

    def read(self, x: Tensor) -> Tensor:
        """What attention reads of the stream."""
        return self.norm1(x) if self.norm_at == "before" else x

    def settle(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The stream, once a sublayer has added to it."""
        return norm(x) if self.norm_at == "stream" else x
