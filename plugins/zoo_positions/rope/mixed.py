"""RoPEMixed: rotation on a grid in which each pair of channels turns in a direction of its own, which is learned.

RoPE's axial form tells rows to one half of the pairs and columns to the other, so that no pair knows a diagonal. Here
an angle mixes both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, Rotation
from zoo_positions.scaling import DistanceExtension
from zoo_positions.waves import angles, spectrum


class RoPEMixed(PositionEncoding):
    """Each pair of channels is rotated by its own learned mixture of row and column, in each head and layer.

    Source: Heo et al. 2024, arXiv:2403.13298 (RoPE-ViT). Pair t of head n turns by y f[0, n, t] + x f[1, n, t] radians
    at row y and column x. The frequencies f, float32 [2, kv_heads, head_dim / 2], are parameters, one module per layer;
    query heads turn as their key head does. They start with the magnitudes m_t = base^(-4t / head_dim),
    t < head_dim / 4, twice: along a direction that is drawn for each head, and at right angles to it:

        x:  m_t cos(a),   m_t cos(a + pi / 2)        y:  m_t sin(a),   m_t sin(a + pi / 2)        a ~ U(0, 2 pi)

    cos and sin are float32 [1 or batch, kv_heads, tokens, head_dim / 2]; the rotation's `frequencies`, for reading, are
    [2, kv_heads head_dim / 2].

    As the directions are learned, they have no base that could be changed; DistanceScaling divides y and x, which is
    position interpolation.

    Raises ZooError for a model of text and for a head_dim that is no multiple of 4.

    Args:
        base: The slowest pairs start with a turn in nearly 2 pi base patches.
        pairing: Pairs are channels (2t, 2t + 1) for "interleaved" (the authors'), (t, t + head_dim / 2) for "half".
        extension: How it reads further than it was trained, a plugin such as DistanceScaling (default: not at all).
    """

    per_layer = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10.0,
        pairing: Literal["half", "interleaved"] = "interleaved",
        extension: Callable[[Geometry], DistanceExtension] | None = None,
    ) -> None:
        super().__init__(geometry)
        if geometry.axes != 2:
            raise ZooError(
                f"RoPEMixed mixes rows and columns, and this model has {geometry.axes} "
                f"{'axis' if geometry.axes == 1 else 'axes'}. Try:  --model.position RoPE"
            )
        if geometry.head_dim % 4:
            raise ZooError(
                f"RoPEMixed starts each frequency in two directions, on a pair of channels each, so it needs a "
                f"head_dim that is a multiple of 4; here it is {geometry.head_dim}. Change --model.head_dim"
            )
        self.base, self.pairing = base, pairing
        self.extension = extension(geometry) if extension is not None else None
        shape = (2, geometry.kv_heads, geometry.head_dim // 2)
        self.frequencies = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the directions anew."""
        size = spectrum(self.base, self.geometry.head_dim // 2, torch.float64)
        first = torch.rand(self.geometry.kv_heads, 1, dtype=torch.float64, device="cpu") * 2 * math.pi
        angle = torch.cat((first.expand(-1, len(size)), first.expand(-1, len(size)) + math.pi / 2), 1)
        self.frequencies.copy_(torch.stack((angle.sin(), angle.cos())) * size.repeat(2))

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        frequencies, heads = self.frequencies.flatten(1), self.geometry.kv_heads
        if self.extension is not None:
            queries = queries / self.extension.divisor(extent)
        angle = angles(queries, frequencies, extent).unflatten(-1, (2, heads, -1)).sum(-3).transpose(-2, -3)
        angle = angle if angle.ndim == 4 else angle[None]
        kind = frequencies.dtype
        rotation = Rotation(
            angle.cos().to(kind),
            angle.sin().to(kind),
            frequencies,
            interleaved=self.pairing == "interleaved",
            prefix=self.geometry.prefix,
        )
        return Encoding(rotation=rotation)
