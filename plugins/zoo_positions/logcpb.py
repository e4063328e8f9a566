"""LogCPB: a bias for each offset of two patches, which a small network computes, so that no grid is too large.

The offsets are compressed by a logarithm and measured in the grid of first training, which makes a larger grid a short
extrapolation. The network runs once per layer on the offsets, of which there are about four times as many as patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, unrounded
from zoo_positions.grid import look_up, offsets, size


class LogCPB(PositionEncoding):
    """A network per layer turns the offset of two patches, logarithmically compressed, into a bias for each head.

    Source: Liu et al. 2021, arXiv:2111.09883: the log-spaced continuous position bias of Swin v2. On a grid of H x W at
    first training, the offset (dy, dx) is compressed to

        sign(dy) log2(1 + 8 |dy| / (H - 1)) / log2(8)    and likewise  dx  with  W - 1

    and bias[h, i, j] = 16 sigmoid(v[h] ReLU(w (dy', dx') + b)), with w [hidden, 2], b [hidden] and v [heads, hidden],
    float32. Weights are drawn from N(0, 0.02), b starts at 0. On every other grid H - 1 and W - 1 stay those of first
    training; with a single row or column they are 1. Class and register tokens get 0. Swin v2 adds this bias to scaled
    cosine attention; here it is added to whatever the kernel computes.

    Raises ZooError for a model of text. The size of the grid is read off the positions, which waits for a GPU.

    Args:
        hidden: Width of the network (Swin v2: 512).
    """

    per_layer = True

    def __init__(self, geometry: Geometry, *, hidden: int = 512) -> None:
        super().__init__(geometry)
        if geometry.axes != 2:
            raise ZooError(
                f"LogCPB compares rows and columns, and this model has {geometry.axes} "
                f"{'axis' if geometry.axes == 1 else 'axes'}. For text, a network of the distance is  "
                "--model.position DynamicBias"
            )
        if hidden < 1:
            raise ZooError(f"LogCPB needs a network at least 1 wide, and got {hidden}: --model.position.hidden 512")
        self.hidden = hidden
        self.network = nn.Sequential(
            nn.Linear(2, hidden, dtype=torch.float32),
            nn.ReLU(),
            nn.Linear(hidden, geometry.heads, bias=False, dtype=torch.float32),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the network anew."""
        for name, parameter in self.network.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        like, trained = next(self.network.parameters()), self.geometry.length
        grid = size(keys, trained)
        apart = offsets(grid, like.device).to(like.dtype)
        unit = torch.tensor([max(length - 1, 1) for length in trained], device=like.device)
        apart = apart.sign() * torch.log2(1 + 8 * apart.abs() / unit) / math.log2(8)
        with unrounded(like):
            table = 16 * self.network(apart).sigmoid()
        return Encoding(bias=look_up(table.T, queries, keys, grid, prefix=self.geometry.prefix))
