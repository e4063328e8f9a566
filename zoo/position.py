"""The contract of position encodings: what a model tells them, and what they give back.

Positions can be told to a Transformer at three places, and that sentence is the type `Encoding`: added to the token
embeddings, as a rotation of queries and keys, or as a bias on the logits (one of the five rungs of `zoo.bias`, which
are exported here too). An encoding returns data, which can be looked at without running a model. What makes it read
further than it was trained is an extension, whose contract is `zoo.extension`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.bias import LADDER, Bias, Dense, Logits, Pointwise, Slopes, Toeplitz, carries, rung
from zoo.errors import ZooError

__all__ = [
    "EXACT",
    "LADDER",
    "Bias",
    "Dense",
    "Encoding",
    "Exact",
    "Geometry",
    "Logits",
    "NoPE",
    "Pointwise",
    "PositionEncoding",
    "Rotation",
    "Slopes",
    "Toeplitz",
    "carries",
    "rung",
    "unrounded",
]

EXACT = 131_072
"""Angles are float32 products, in the references' order of operations, up to this extent, and float64 beyond."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a model knows about itself when it asks an encoding or a kernel to be built.

    Args:
        dim: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of one head.
        length: Tokens per axis at *first training*; it never changes afterwards.
        prefix: Class and register tokens, which stand before the others and have no position.
        causal: Whether a token sees only itself and what came before.
        layer: The layer that the module serves; None where one module serves all of them.
        layers: Layers of the model.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    length: tuple[int, ...]
    prefix: int = 0
    causal: bool = True
    layer: int | None = None
    layers: int = 1

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("dim", "heads", "kv_heads", "head_dim", "layers")}
        sizes |= {"length": min(self.length, default=0)}
        for name, size in sizes.items():
            if size < 1:
                raise ZooError(f"A geometry has {name} of 1 or more, and got {size}.")

    @property
    def axes(self) -> int:
        """1 for text, 2 for patches of an image (rows, then columns)."""
        return len(self.length)


@dataclass(eq=False)
class Rotation:
    """A rotation (and, for FoPE, more general map) of the pairs of channels of queries and keys.

    A pair (x, y) becomes (x cos - y sin, y cos + x sin). The arithmetic is float32 whatever the input's type.

    Args:
        cos: [batch or 1, heads or 1, tokens, pairs]; heads are all heads or the key heads.
        sin: Same shape.
        frequencies: Radians per position, [axes, waves]; for reading, not used in the rotation.
        factor: Attention factor, already multiplied into `cos` and `sin`.
        interleaved: Pairs are channels (2t, 2t + 1) instead of (t, t + pairs).
        prefix: Leading tokens that are left as they are.
        isometric: Whether norms stay as they are; kernels that compare norms ask.
    """

    cos: Tensor
    sin: Tensor
    frequencies: Tensor
    factor: float = 1.0
    interleaved: bool = False
    prefix: int = 0
    isometric: bool = True

    def width(self, head_dim: int) -> int:
        """Channels that come out where `head_dim` go in."""
        return head_dim

    def __post_init__(self) -> None:
        # One table per channel, the sine signed, so that a rotation is three operations. They are made here, for all
        # layers: made at first use they would be made within a block, where torch.compile must give up.
        if self.interleaved:
            self._tables = self.cos.repeat_interleave(2, -1), torch.stack((-self.sin, self.sin), -1).flatten(-2)
        else:
            self._tables = torch.cat((self.cos, self.cos), -1), torch.cat((-self.sin, self.sin), -1)

    def apply(self, x: Tensor) -> Tensor:
        """`x` [batch, heads, tokens, width] rotated; channels beyond the pairs pass."""
        cos, sin = self._tables
        if cos.shape[1] not in (1, x.shape[1]):  # one table per key head: every query head of its group uses it
            cos, sin = (table.repeat_interleave(x.shape[1] // table.shape[1], 1) for table in (cos, sin))
        width = cos.shape[-1]
        body = x[:, :, self.prefix :] if self.prefix else x
        if body.dtype != cos.dtype:
            body = body.to(torch.promote_types(x.dtype, cos.dtype))
        turned = body[..., :width] if width < x.shape[-1] else body
        swapped = (
            turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if self.interleaved else turned.roll(width // 2, -1)
        )
        out = torch.addcmul(turned * cos, swapped, sin)
        if width < x.shape[-1]:
            out = torch.cat((out, body[..., width:]), -1)
        out = out.to(x.dtype)
        return torch.cat((x[:, :, : self.prefix], out), 2) if self.prefix else out

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the same tokens, rotated."""
        return self.apply(q), self.apply(k)


@dataclass(eq=False)
class Encoding:
    """What an encoding says about some positions; a place that it does not use is None.

    Args:
        embedding: Added to the token embeddings, [tokens, dim] or [batch, tokens, dim].
        rotation: Applied to queries and keys.
        bias: Added to the logits.
        scale: Multiplies the logits beside 1 / sqrt(head_dim): a number, or [tokens] or [batch, tokens] of queries.
    """

    embedding: Tensor | None = None
    rotation: Rotation | None = None
    bias: Bias | None = None
    scale: float | Tensor = 1.0


def unrounded(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off on the device of a tensor; on the meta device there is none to switch."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


class Exact(nn.Module):
    """A module whose parameters stay float32 when a model is cast to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16) and tensor.dtype in (torch.float32, torch.float64)
            return tensor.to(moved.device) if half else moved

        return super()._apply(keep, recurse)


class PositionEncoding(Exact):
    """Base class of all encodings: build it from a geometry, call it with positions, get an `Encoding`.

    A subclass takes the geometry and its own numbers as keywords, all with defaults. Its parameters stay float32 when a
    model is cast to half precision. A number that defaults to something derived from the geometry is written into
    `pinned`, so that a checkpoint stores it and a longer model does not move it.
    """

    per_layer: bool = False
    """Whether each layer has a module of its own; otherwise one serves all layers and runs once per forward."""
    content: bool = False
    """Whether it needs the hidden states, and so runs in every layer."""
    unextended: str = ""
    """Why it takes no extension, as a clause, where that is by design."""
    dynamic: bool = False
    """Whether an extension has it look at the extent of a request, so that texts that end apart are read apart."""
    relative: bool = True
    """Whether attention is claimed to be unchanged when all positions shift together; the exam checks the claim."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        """Encode the positions of some tokens.

        Args:
            queries: Positions of the tokens at hand, float32 [tokens, axes] or [batch, tokens, axes], prefix left out.
            keys: Positions of all tokens that they may look at, those at hand included.
            extent: Final length of the request, declared once, so that dynamic methods choose once.
            hidden: Input of the attention layer [batch, tokens, dim], where `content` is set.
            state: Where an encoding of content keeps what it needs of earlier tokens; lives in the KV cache.
        """
        raise NotImplementedError

    def pinned(self) -> dict[str, Any]:
        """Arguments that a checkpoint's config must state, because their defaults were derived."""
        return {}


class NoPE(PositionEncoding):
    """No position encoding: a causal model infers order from the number of tokens that it sees.

    Source: Kazemnejad et al. 2023, arXiv:2305.19466. Nothing is added anywhere.

    Raises ZooError for a scale that is not above 0.

    Args:
        scale: Multiplies the logits; above 1 it makes up for requests longer than those of training.
    """

    def __init__(self, geometry: Geometry, *, scale: float = 1.0) -> None:
        super().__init__(geometry)
        if not 0 < scale < math.inf:
            raise ZooError(f"NoPE multiplies logits by its scale, which is above 0; got {scale}.")
        self.scale = scale

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        return Encoding(scale=self.scale)
