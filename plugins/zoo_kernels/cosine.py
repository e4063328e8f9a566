"""Cosine: attention by direction; norms of queries and keys do not count, and each head learns its temperature.

Normalised queries and keys are plain softmax attention, on whatever Auto picks. Norms are taken in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.bias import Bias
from zoo.errors import ZooError
from zoo.kernel import Mask, Request
from zoo.position import Geometry
from zoo_kernels.features import Featured, attention, precise


class Cosine(Featured):
    """Softmax over cosines of queries and keys, times a learned temperature per head.

    Source: Liu et al. 2022 (Swin v2), arXiv:2111.09883. weights = softmax(min(exp(t_h), limit) cos(q, k) + bias). The
    scale of a call, relative to 1 / sqrt(head_dim), multiplies the cosine too: 1 unless the encoding says otherwise.
    Shapes, types and masks as in Eager. Carries biases up to Dense; refuses maps of the logits, rotations that change
    norms, and factors per query.

    Raises ZooError unless 0 < temperature <= limit.

    Args:
        temperature: What multiplies the cosine in the beginning; its logarithm is learned.
        limit: The most that may multiply the cosine.
    """

    form = "cosine"
    divisible = True

    def __init__(self, geometry: Geometry, *, temperature: float = 10.0, limit: float = 100.0) -> None:
        super().__init__(geometry)
        if not 0 < temperature <= limit:
            raise ZooError(
                f"Cosine starts from a temperature above 0 and up to its limit, {limit:g}, and got {temperature:g}."
            )
        self.temperature, self.limit = temperature, limit
        self.log_temperature = nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put every temperature back to where it starts."""
        nn.init.constant_(self.log_temperature, math.log(self.temperature))

    def refuses(self, request: Request) -> list[str]:
        reasons = super().refuses(request)
        if not request.isometric:
            reasons.append(
                "Cosine takes the norms of queries and keys away, and with them what this rotation says by norms. "
                "Rotations that keep norms (RoPE) and biases (ALiBi) go with it."
            )
        if request.scaled:
            reasons.append("Cosine takes the norms of queries away, and with them the factor of each query.")
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        a, b = (functional.normalize(x, dim=-1) for x in precise(q, k))
        return self.inner((a * self.factors(scale)).to(q.dtype), b.to(k.dtype), v, bias=bias, mask=mask)

    def factors(self, scale: float) -> Tensor:
        """What multiplies the cosine, [heads, 1, 1]."""
        (logarithm,) = precise(self.log_temperature[self.share])
        return logarithm.exp().clamp(max=self.limit).view(-1, 1, 1) * (scale * self.geometry.head_dim**0.5)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            a, b, c = precise(q, k, v)
            norms = a.norm(dim=-1).unsqueeze(-1) * b.norm(dim=-1).unsqueeze(-2)
            return attention(a @ b.mT / norms * self.factors(scale), c, bias, mask).to(q.dtype)
