"""What Fourier attention learns: R, which says how near a key has to be in a channel, and p, how much that counts.

sinc(R x) to the power p has a spectrum between -pR and pR, so R is a bandwidth. Without a norm on queries and keys R
could be a part of their projections, and is only another way to train these; with one (`--model.qk_norm head`) nothing
else tells near from far.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Exact, Geometry

SMALLEST, LARGEST = 1e-30, 1e30
"""What R and p are between: both are float32."""
Radius = float | Literal["matched", "official"]
Per = Literal["layer", "head", "channel", "both"]


class Bandwidth(Exact):
    """R and p, positive because their logarithms are stored; float32 whatever the model is cast to.

    R starts where the Gaussian that a narrow sinc is equals the softmax of dot products of queries and keys of variance
    one, R^2 = 3 / (p sqrt(head_dim)) ("matched"), or where the release of Nguyen et al. 2022 (arXiv:2206.00206) has it,
    2 in a decoder and 1 in a vision transformer ("official").

    Raises ZooError for a power or a radius that is not above 0.

    Args:
        power: p, any positive number.
        learn_power: One p per head, learned from there.
        radius: R in the beginning, a number or how to choose it.
        per: Which have an R of their own: the layer (the release), heads, channels, or both.
        pairs: Neighbouring channels, two by two, have theirs together.
    """

    def __init__(
        self, geometry: Geometry, *, power: float, learn_power: bool, radius: Radius, per: Per, pairs: bool = False
    ) -> None:
        super().__init__()
        if not SMALLEST < power < LARGEST:
            raise ZooError(f"The power p of sinc is a number above 0; got {power}. The published models have 4.")
        if radius == "matched":
            radius = math.sqrt(3 / (power * math.sqrt(geometry.head_dim)))
        elif radius == "official":
            radius = 2.0 if geometry.causal else 1.0
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not SMALLEST < radius < LARGEST:
            raise ZooError(f"The radius R is a number above 0, matched, or official; got {radius}.")
        if per not in ("layer", "head", "channel", "both"):
            raise ZooError(f"R is one per layer, head, channel, or both; got {per}.")
        self.power, self.radius, self.pairs = power, radius, pairs
        self.heads, self.unit = geometry.heads, geometry.head_dim**0.5
        channels = geometry.head_dim // 2 if pairs else geometry.head_dim
        shape = (geometry.heads if per in ("head", "both") else 1, channels if per in ("channel", "both") else 1)
        self.log_radius = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.log_power = nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32)) if learn_power else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put R and p back to where they start."""
        nn.init.constant_(self.log_radius, math.log(self.radius))
        if self.log_power is not None:
            nn.init.constant_(self.log_power, math.log(self.power))

    def scaled(
        self, q: Tensor, k: Tensor, v: Tensor, share: slice, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R q, R k, v and p of some heads; v as it is, all else in float32 or better.

        Args:
            q: [batch, heads, queries, width].
            k: [batch, kv_heads, keys, width].
            v: Likewise; where heads have an R of their own, keys and values come out for each head.
            share: The heads that these are of all.
            scale: Of the logits; what it is of 1 / sqrt(head_dim) multiplies p, [heads].
        """
        q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
        radii = self.log_radius.to(q.dtype).exp().unsqueeze(1)
        if self.pairs and radii.shape[-1] > 1:
            radii = radii.repeat_interleave(2, -1)
        if len(radii) > 1:
            radii = radii[share]
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if self.log_power is not None:
            powers = self.log_power[share].to(q.dtype).exp() * (scale * self.unit)
        else:
            powers = q.new_full((q.shape[1],), self.power * scale * self.unit)
        return q * radii, k * radii, v, powers
