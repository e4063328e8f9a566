"""Sandwich: the product of sinusoidal embeddings, which knows the distance only, as a bias; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Geometry
from zoo_positions.distances import Distances
from zoo_positions.scaling import DistanceExtension
from zoo_positions.waves import spectrum


@lru_cache(maxsize=8)
def overlap(extent: int, width: int, divisor: float = 1.0) -> Tensor:
    """The sum of the cosines at (0 .. extent - 1) / divisor, float64 on the CPU; kept, since decoding asks again."""
    distances = torch.arange(extent, dtype=torch.float64, device="cpu") / divisor
    return torch.outer(distances, spectrum(10000.0, width, torch.float64)).cos().sum(-1)


class Sandwich(Distances):
    """Tokens attract each other as much as their sinusoidal embeddings overlap, each head by a strength of its own.

    Source: Chi et al. 2023, arXiv:2212.10356. For h = 1 .. heads

        bias[h, i, j] = heads / (8 h) sum_t cos((p_i - p_j) 10000^(-2t / width)),  t = 0 .. width / 2 - 1

    a Toeplitz bias, float32, the same to either side in a model that is not causal. The cosines are summed in float64.

    Raises ZooError for a model with two axes and for a width that is odd or below 2.

    Args:
        width: Width of the sinusoidal embeddings, whatever the model's (the paper's d-bar).
        extension: How it reads further than it was trained, a plugin such as DistanceScaling (default: not at all).
    """

    gains: Tensor
    """heads / (8 h), [heads, 1]."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        width: int = 128,
        extension: Callable[[Geometry], DistanceExtension] | None = None,
    ) -> None:
        super().__init__(geometry, extension=extension)
        if width < 2 or width % 2:
            raise ZooError(
                f"Sandwich cannot overlap sinusoidal embeddings of width {width}: each wave takes two channels. "
                "Give an even number, at least 2:  --model.position.width 128"
            )
        self.width = width
        home = torch.get_default_device()
        home = torch.device("cpu") if home.type == "meta" else home
        self.register_buffer("gains", self.fixed(torch.float32).to(home), persistent=False)

    def fixed(self, kind: torch.dtype) -> Tensor:
        """The gains computed anew, on the CPU."""
        heads = self.geometry.heads
        return heads / (8 * torch.arange(1, heads + 1, dtype=kind, device="cpu")).unsqueeze(-1)

    def table(self, distances: Tensor, divisor: float = 1.0) -> Tensor:
        extent = len(distances) if self.geometry.causal else len(distances) // 2 + 1
        return self.gains * overlap(extent, self.width, divisor).to(self.gains)[distances.abs()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # a constant of no state dict: whole again after meta construction
        self.gains = self.fixed(self.gains.dtype).to(self.gains.device)
        return self
