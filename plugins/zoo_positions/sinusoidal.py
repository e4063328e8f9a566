"""Sinusoidal absolute positions: sines and cosines of the position, added to the token embeddings.

On a grid the channels are shared out between the axes, each with a full spectrum of its own. How they are ordered is
the one thing on which the published models differ, so that an argument says it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry
from zoo_positions.waves import Waves, angles


class Sinusoidal(Waves):
    """Sines and cosines of the position at geometrically spaced frequencies, added to the token embeddings.

    Source: Vaswani et al. 2017, arXiv:1706.03762; on a grid as in MoCo v3 (Chen et al. 2021, arXiv:2104.02057) and MAE
    (He et al. 2021, arXiv:2111.06377). Each of A axes has width = dim / A channels and the frequencies
    w_t = base^(-2t / width) radians per position, t < width / 2. The embedding is float32 [tokens, dim] or
    [batch, tokens, dim]. The order of its channels, with y for the rows and x for the columns of a grid:

                         text                                     grid
        interleaved      sin(p w_0), cos(p w_0), sin(p w_1) ...   sin(y w_0), cos(y w_0) ... sin(x w_0), cos(x w_0) ...
        concatenated     all sines, then all cosines              sines of y, of x, cosines of y, of x
        axiswise         all sines, then all cosines              sines of x, cosines of x, sines of y, cosines of y

    "interleaved" is the paper's formula; "concatenated" that of tensor2tensor, GPT-NeoX and Marian, and on a grid
    timm's; "axiswise" that of MoCo v3 and MAE, who put the columns first.

    Raises ZooError for a `dim` that is no multiple of two channels per axis.

    Args:
        base: The longest wave is nearly 2 pi base positions long.
        layout: Order of the channels: the paper's, all sines first, or an axis after the other (on a grid, as in MAE).
        scale: Multiplies the embedding (the paper multiplies the token embeddings by sqrt(dim) instead).
    """

    relative = False

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        layout: Literal["interleaved", "concatenated", "axiswise"] = "interleaved",
        scale: float = 1.0,
    ) -> None:
        axes = geometry.axes
        if geometry.dim % (2 * axes):
            raise ZooError(
                f"Sinusoidal needs a sine and a cosine per wave and the same number of waves for each of {axes} axes, "
                f"so a dim that is a multiple of {2 * axes}; here it is {geometry.dim}. Change --model.dim"
            )
        super().__init__(geometry, base=base, width=geometry.dim // axes)
        self.layout, self.scale = layout, scale

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        angle = angles(queries, self.frequencies, extent)
        if self.layout == "interleaved":
            table = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
        elif self.layout == "concatenated":
            table = torch.cat((angle.sin(), angle.cos()), -1)
        else:
            axes = angle.chunk(self.geometry.axes, -1)
            table = torch.cat([wave for axis in axes[::-1] for wave in (axis.sin(), axis.cos())], -1)
        return Encoding(embedding=table.to(self.frequencies.dtype) * self.scale)
