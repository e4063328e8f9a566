"""xPos: RoPE whose products shrink with distance, by a factor of its own for each pair.

A factor of the distance n - m splits into one of n, on the queries, and its inverse of m, on the keys. Both are taken
about a centre, half the extent of the request: it cancels in the product and keeps the two within reach of float32. As
the extent is declared once, cached keys stay true. The decision here: what float32, or the half precision that the
queries come in, cannot hold is refused; shifted centres or clamped exponents would make near products wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, Rotation
from zoo_positions.rope.rope import RoPE

LONGEST = 64
"""Extent over `span` at most: from end to end the fastest pair grows by 3.5^64 = 2^116 in what a mask hides, which
leaves 2^12 of float32 for the products of queries and keys themselves."""
HALF = 8
"""The same where queries are float16: half of it, 3.5^4 = 150, leaves 436 above and 0.01 below of normal numbers."""


@dataclass(eq=False, kw_only=True)
class Decay(Rotation):
    """A rotation that also multiplies the pairs of queries by `growth`, and those of keys by its inverse.

    Args:
        growth: Of the shape of `cos`.
        spans: The extent of the request over the length of a span.
    """

    growth: Tensor
    spans: float

    def __post_init__(self) -> None:
        self.queries, self.keys = self.side(self.growth), self.side(1 / self.growth)

    def side(self, growth: Tensor) -> Rotation:
        """What queries, or keys, are multiplied by."""
        cos, sin = self.cos * growth, self.sin * growth
        return Rotation(cos, sin, self.frequencies, self.factor, self.interleaved, self.prefix, self.isometric)

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if q.dtype == torch.float16 and self.spans > HALF:
            raise ZooError(
                f"xPos multiplies queries and keys by up to 3.5^{self.spans / 2:.3g} in a request of {self.spans:.3g} "
                f"spans, and float16 has room for {HALF} spans. Try:  --trainer.precision bf16-mixed"
            )
        return self.queries.apply(q), self.keys.apply(k)


class xPos(RoPE):  # noqa: N801 - the paper's capitals
    """RoPE in which the product of a query and a key also shrinks with their distance, fast pairs faster.

    Source: Sun et al. 2022, arXiv:2212.10554; as in torchscale, flash-attn and x-transformers. With d = head_dim, pair
    t of a query at n is rotated as in RoPE and multiplied by zeta_t^((n - c) / span), that of a key at m by
    zeta_t^(-(m - c) / span), where

        zeta_t = (2t + 0.4 d) / (1.4 d)        c = extent // 2

    so that their product has the factor zeta_t^((n - m) / span), from (2/7)^((n - m) / span) up to nearly 1. The
    factors are float32, [1 or batch, 1, tokens, d / 2]; the tables of the rotation stay free of them. An infinite span
    is RoPE.

    Raises ZooError for a model that is not causal (the future would grow), one with two axes, an odd head_dim, prefix
    tokens, and requests of more than 64 spans, or 8 in float16, which the numbers cannot hold.

    Args:
        base: As in RoPE.
        span: Distance at which pair t has shrunk to zeta_t ("scale_base" in the references).
        pairing: Pairs are channels (2t, 2t + 1) for "interleaved", as in torchscale, (t, t + d/2) for "half".
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        span: float = 512.0,
        pairing: Literal["half", "interleaved"] = "interleaved",
    ) -> None:
        if geometry.axes != 1:
            raise ZooError(
                f"xPos shrinks products along one axis, and this model has {geometry.axes}. Try:  --model.position RoPE"
            )
        if not geometry.causal:
            raise ZooError(
                "xPos serves causal models only: as products with the past shrink with distance, those with the future "
                "would grow. Try:  --model.position RoPE"
            )
        if geometry.prefix:
            raise ZooError(
                f"xPos needs a position for every token, and the {geometry.prefix} prefix tokens of this model have "
                "none to measure a distance from. Try:  --model.position RoPE"
            )
        if geometry.head_dim % 2:
            raise ZooError(f"xPos turns pairs of channels and needs an even head_dim; here it is {geometry.head_dim}.")
        if not span > 0:
            raise ZooError(f"xPos cannot shrink products over a span of {span}. Give more than 0; the paper has 512.")
        super().__init__(geometry, base=base, pairing=pairing)
        self.span = span
        self.fits(geometry.length[0])

    def fits(self, extent: int) -> None:
        """Raise ZooError where the factors of a request leave float32."""
        if extent > LONGEST * self.span:
            raise ZooError(
                f"xPos with a span of {self.span:g} reaches {LONGEST * self.span:g} tokens, and {extent} were asked "
                f"for: beyond {LONGEST} spans its factors leave float32. A model that is not trained yet can have a "
                f"longer span:  --model.position.span {math.ceil(extent / LONGEST)}"
            )

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        self.fits(extent)
        plain = super().forward(queries, keys, extent).rotation
        assert plain is not None
        kind, width = plain.cos.dtype, self.geometry.head_dim
        away = (queries.to(kind) - extent // 2) / self.span  # [batch or none, tokens, 1]
        zeta = (torch.arange(0, width, 2, dtype=kind, device=away.device) + 0.4 * width) / (1.4 * width)
        rotation = Decay(
            plain.cos,
            plain.sin,
            plain.frequencies,
            interleaved=plain.interleaved,
            isometric=False,
            growth=(zeta**away).view(plain.cos.shape),
            spans=extent / self.span,
        )
        return Encoding(rotation=rotation)
