"""KERPLE: penalties on the logits that come from kernels of the distance, with two learned numbers per head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.position import Geometry
from zoo_positions.distances import Distances
from zoo_positions.scaling import DistanceExtension

LEAST, POWER = 0.01, 2.0
"""Both numbers are at least the first; a power beyond the second gives no conditionally positive definite kernel."""


class Clamp(torch.autograd.Function):
    """x.clamp(low, high) whose gradient also passes outside the bounds, where a step along it leads back inside.

    The references clamp the parameters themselves, before each use, so that one which has stepped over a bound stands
    on it, and may come back. Under a plain clamp it would get no gradient, and stay outside for ever.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


class KERPLE(Distances):
    """Each head sees farther tokens less, by a logarithm or a power of the distance that it learns the shape of.

    Source: Chi et al. 2022, arXiv:2205.09921 (the form without weights on the logits, which its experiments use).
    With d = |p_i - p_j|

        log      bias[h, i, j] = -p[h] log(1 + a[h] d)        power    bias[h, i, j] = -a[h] d^p[h]

    a Toeplitz bias, and the same to either side in a model that is not causal. p and a are [heads], float32, drawn from
    U(0, 2) and U(0, 1); both stay at least 0.01, and the power at most 2. A power of 1 is ALiBi with learned slopes,
    though the clamp is steeper than ALiBi's flattest ones.

    The references clamp p and a in place at every forward. Here the value is clamped where it is used, and a parameter
    outside of a bound gets only gradients that lead it back: the same descent by plain gradients, but for what one step
    overshoots, and no forward that writes.

    Raises ZooError for a model with two axes.

    Args:
        kind: Function of the distance.
        per_layer: Numbers of each layer's own; otherwise all layers share them, as the authors' do.
        parametrization: "clamp", as the authors'; "softplus": positive without bounds (a power is 2 sigmoid of its
            parameter), started from the same draws.
        extension: How it reads further than it was trained, a plugin such as DistanceScaling (default: not at all).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        kind: Literal["log", "power"] = "log",
        per_layer: bool = False,
        parametrization: Literal["clamp", "softplus"] = "clamp",
        extension: Callable[[Geometry], DistanceExtension] | None = None,
    ) -> None:
        super().__init__(geometry, extension=extension)
        self.kind, self.per_layer, self.parametrization = kind, per_layer, parametrization
        self.p, self.a = (nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32)) for _ in range(2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw p, then a."""
        for parameter, high, power in ((self.p, 2.0, self.kind == "power"), (self.a, 1.0, False)):
            parameter.uniform_(0.0, high)
            if self.parametrization == "softplus":
                drawn = parameter.clamp(min=LEAST)
                parameter.copy_(torch.logit(drawn / POWER) if power else drawn.expm1().log())

    def numbers(self) -> tuple[Tensor, Tensor]:
        """p and a as they are used, each [heads, 1]."""
        power = self.kind == "power"
        if self.parametrization == "softplus":
            p = POWER * self.p.sigmoid() if power else functional.softplus(self.p)
            a = functional.softplus(self.a)
        else:
            p, a = Clamp.apply(self.p, LEAST, POWER if power else math.inf), Clamp.apply(self.a, LEAST, math.inf)
        return p.unsqueeze(-1), a.unsqueeze(-1)

    def table(self, distances: Tensor, divisor: float = 1.0) -> Tensor:
        p, a = self.numbers()
        away = distances.abs().to(p.dtype) / divisor
        if self.kind == "log":
            return -p * (a * away).log1p()
        return -a * away.pow(p)  # torch's gradient of 0^p is 0, where 0^p log 0 would not be a number
