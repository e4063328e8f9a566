"""Distances: what encodings share whose bias knows of two tokens nothing but how far apart they are.

Such a bias is a number per head and distance. It is computed on a line of distances, outside of attention, and autograd
differentiates it there: a table of heads x length numbers is all that a kernel meets, and there is no N x N tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, Toeplitz


class Distances(PositionEncoding):
    """An encoding whose bias is a function of the head and the distance; a subclass gives the function, `table`."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if geometry.axes != 1:
            name = type(self).__name__
            raise ZooError(
                f"{name} measures distance along one axis, and this model has {geometry.axes}: a form on a grid is "
                "another encoding. Try:  --model.position RoPE"
            )

    def table(self, distances: Tensor) -> Tensor:
        """The bias [heads, distances] at whole distances, which are negative where the key stands after the query."""
        raise NotImplementedError

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        lowest = 0 if self.geometry.causal else 1 - extent
        with torch.autocast(queries.device.type, enabled=False):
            table = self.table(torch.arange(lowest, extent, device=queries.device))
        prefix = self.geometry.prefix
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=lowest, prefix=prefix))
