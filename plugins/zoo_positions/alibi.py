"""ALiBi: a penalty on the logits that grows with distance, at a fixed slope per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, Slopes


def slopes(heads: int) -> list[float]:
    """2^(-8h / heads) for h = 1 .. heads; between powers of two, those of the power below and every other one of the
    power above, as in the authors' code (some ports use the formula for every number of heads: other slopes)."""
    below = 2 ** (heads.bit_length() - 1)
    exponents = [8 * (head + 1) / below for head in range(below)]
    exponents += [8 * (2 * head + 1) / (2 * below) for head in range(heads - below)]
    return [2.0**-exponent for exponent in exponents]


class ALiBi(PositionEncoding):
    """Each head sees farther tokens less, by a slope of its own times the distance.

    Source: Press et al. 2022, arXiv:2108.12409. bias[h, i, j] = -m[h] |p_i - p_j|, a Slopes bias, float32; the m run
    from 2^(-8/heads) to 2^-8. The authors add m j, which is the same attention in a causal model: the two differ by
    a constant of the row. A model that is not causal takes the distance to either side.

    Raises ZooError for a model with two axes.

    Args:
        trainable: Train the logarithms of the slopes, starting from the fixed ones.
    """

    slopes: Tensor

    def __init__(self, geometry: Geometry, *, trainable: bool = False) -> None:
        super().__init__(geometry)
        if geometry.axes != 1:
            raise ZooError(
                f"ALiBi measures distance along one axis, and this model has {geometry.axes}: which distance a slope "
                "multiplies on a grid is another encoding's choice. Try:  --model.position RoPE"
            )
        self.trainable = trainable
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
        return Encoding(bias=Slopes(steep, queries[..., 0], keys[..., 0], prefix=self.geometry.prefix))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not self.trainable:  # a constant of no state dict: whole again after meta construction
            self.slopes = self.fixed(self.slopes.dtype).to(self.slopes.device)
        return self
