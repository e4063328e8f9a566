"""A position encoding of one's own: attention that fades with a power of the distance."""

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, Toeplitz


class PowerLaw(PositionEncoding):
    """Multiplies attention by (1 + distance)^-p; each head learns its own p, and so how far it looks.

    Source: KERPLE's logarithmic kernel with r2 = 1, Chi et al. 2022, arXiv:2205.09921. In the logits that is
    -p[h] log(1 + |i - j|): a Toeplitz bias, one number per head and distance.

    Args:
        power: The p that every head starts from.
    """

    def __init__(self, geometry: Geometry, *, power: float = 1.0) -> None:
        super().__init__(geometry)
        if geometry.axes != 1:
            raise ZooError(f"PowerLaw knows one distance, and this model has {geometry.axes}. Try a model of text.")
        self.power = nn.Parameter(torch.full((geometry.heads,), power))

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        distance = torch.arange(1 - extent, extent, device=queries.device)
        table = -self.power[:, None] * distance.abs().log1p()
        return Encoding(
            bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=1 - extent, prefix=self.geometry.prefix)
        )
