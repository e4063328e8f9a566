"""Sinusoidal absolute positions: sines and cosines of the position, added to the token embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry
from zoo_positions.waves import Waves, angles


class Sinusoidal(Waves):
    """Sines and cosines of the position at geometrically spaced frequencies, added to the token embeddings.

    Source: Vaswani et al. 2017, arXiv:1706.03762. With w_t = base^(-2t / dim) radians per position, channels 2t and
    2t + 1 are sin(p w_t) and cos(p w_t) ("interleaved", the paper's formula), or all sines stand before all cosines
    ("concatenated", as in tensor2tensor, GPT-NeoX and Marian). The embedding is float32 [tokens, dim] or
    [batch, tokens, dim].

    Raises ZooError for an odd `dim` and for a model with two axes.

    Args:
        base: The longest wave is nearly 2 pi base positions long.
        layout: Order of the channels.
        scale: Multiplies the embedding (the paper multiplies the token embeddings by sqrt(dim) instead).
    """

    relative = False

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        layout: Literal["interleaved", "concatenated"] = "interleaved",
        scale: float = 1.0,
    ) -> None:
        if geometry.axes != 1:
            raise ZooError(
                f"Sinusoidal tells one axis, and this model has {geometry.axes}: a form on a grid is another encoding. "
                "Try:  --model.position RoPE  or  --model.position Learned"
            )
        if geometry.dim % 2:
            raise ZooError(f"Sinusoidal needs an even dim, a sine and a cosine per wave; here it is {geometry.dim}.")
        super().__init__(geometry, base=base, width=geometry.dim)
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
        waves = angle.sin(), angle.cos()
        table = torch.stack(waves, -1).flatten(-2) if self.layout == "interleaved" else torch.cat(waves, -1)
        return Encoding(embedding=table.to(self.frequencies.dtype) * self.scale)
