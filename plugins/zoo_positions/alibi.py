"""ALiBi: a penalty on the logits that grows with distance, at a fixed slope per head.

On a grid the distance is the straight line between two patches, and the slopes stay those of text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Self

import torch
from torch import Tensor, nn

from zoo.bias import at
from zoo.position import Bias, Encoding, Geometry, Pointwise, PositionEncoding, Slopes
from zoo_positions.scaling import DistanceExtension


def slopes(heads: int) -> list[float]:
    """2^(-8h / heads) for h = 1 .. heads; between powers of two, those of the power below and every other one of the
    power above, as in the authors' code (some ports use the formula for every number of heads: other slopes)."""
    below = 2 ** (heads.bit_length() - 1)
    exponents = [8 * (head + 1) / below for head in range(below)]
    exponents += [8 * (2 * head + 1) / (2 * below) for head in range(heads - below)]
    return [2.0**-exponent for exponent in exponents]


def euclidean(b: Tensor, h: Tensor, i: Tensor, j: Tensor, steep: Tensor, *places: Tensor) -> Tensor:
    """-slope times the straight distance of two tokens; `places` are the queries' positions by axis, then the keys'."""
    half = len(places) // 2
    apart = [at(q, b, i) - at(k, b, j) for q, k in zip(places[:half], places[half:], strict=True)]
    return -steep[h] * reduce(torch.hypot, apart)


class ALiBi(PositionEncoding):
    """Each head sees farther tokens less, by a slope of its own times the distance.

    Source: Press et al. 2022, arXiv:2108.12409. bias[h, i, j] = -m[h] |p_i - p_j|, a Slopes bias, float32; the m run
    from 2^(-8/heads) to 2^-8. The authors add m j, which is the same attention in a causal model: the two differ by
    a constant of the row. A model that is not causal takes the distance to either side.

    On a grid, as in CROMA (Fuller et al. 2023, arXiv:2311.00566), |p_i - p_j| is the Euclidean distance of rows and
    columns, and the bias a Pointwise one.

    Args:
        trainable: Train the logarithms of the slopes, starting from the fixed ones.
        extension: How it reads further than it was trained, a plugin such as DistanceScaling (default: not at all).
            Slopes are divided instead of distances.
    """

    slopes: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        trainable: bool = False,
        extension: Callable[[Geometry], DistanceExtension] | None = None,
    ) -> None:
        super().__init__(geometry)
        self.trainable = trainable
        self.extension = extension(geometry) if extension is not None else None
        self.dynamic = self.extension is not None and self.extension.dynamic
        home = torch.get_default_device()
        if trainable:
            self.log_slopes = nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32))
            self.reset_parameters()
        else:
            home = torch.device("cpu") if home.type == "meta" else home
            self.register_buffer("slopes", self.fixed(torch.float32).to(home), persistent=False)

    def fixed(self, kind: torch.dtype) -> Tensor:
        """The slopes of the paper, computed anew on the CPU."""
        return torch.tensor(slopes(self.geometry.heads), dtype=kind, device="cpu")

    def reset_parameters(self) -> None:
        """Put trained slopes back to the fixed ones."""
        if self.trainable:
            with torch.no_grad():
                self.log_slopes.copy_(self.fixed(torch.float64).log())

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        steep = self.log_slopes.exp() if self.trainable else self.slopes
        if self.extension is not None:
            steep = steep / self.extension.divisor(extent)
        if self.geometry.axes == 1:
            bias: Bias = Slopes(steep, queries[..., 0], keys[..., 0], prefix=self.geometry.prefix)
        else:
            # Copies, since torch 2.13 cannot compile FlexAttention for the CPU on views of one tensor.
            places = [axis.contiguous() for axis in (*queries.unbind(-1), *keys.unbind(-1))]
            bias = Pointwise(
                euclidean,
                (steep, *places),
                heads=self.geometry.heads,
                queries=queries.shape[-2],
                keys=keys.shape[-2],
                batch=len(queries) if queries.ndim == 3 else 1,
                prefix=self.geometry.prefix,
            )
        return Encoding(bias=bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not self.trainable:  # a constant of no state dict: whole again after meta construction
            self.slopes = self.fixed(self.slopes.dtype).to(self.slopes.device)
        return self
