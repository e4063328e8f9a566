"""Distances: what encodings share whose bias knows of two tokens nothing but how far apart they are.

Such a bias is a number per head and distance. It is computed on a line of distances, outside of attention, and autograd
differentiates it there: a table of heads x length numbers is all that a kernel meets, and there is no N x N tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding, Toeplitz, unrounded
from zoo_positions.scaling import DistanceExtension


class Distances(PositionEncoding):
    """An encoding whose bias is a function of the head and the distance; a subclass gives the function, `table`.

    Args:
        geometry: Of the model.
        extension: What divides the distances of a request; a subclass that takes one passes it on.
    """

    def __init__(self, geometry: Geometry, *, extension: Callable[[Geometry], DistanceExtension] | None = None) -> None:
        super().__init__(geometry)
        if geometry.axes != 1:
            name = type(self).__name__
            raise ZooError(
                f"{name} measures distance along one axis, and this model has {geometry.axes}: a form on a grid is "
                "another encoding. Try:  --model.position RoPE"
            )
        self.extension = extension(geometry) if extension is not None else None
        self.dynamic = self.extension is not None and self.extension.dynamic

    def divisor(self, extent: int) -> float:
        """What an extension divides the distances of a request by; 1 without one."""
        return self.extension.divisor(extent) if self.extension is not None else 1.0

    def table(self, distances: Tensor, divisor: float = 1.0) -> Tensor:
        """The bias [heads, distances] at distances / divisor.

        Args:
            distances: Whole ones, negative where the key stands after the query.
            divisor: Of an extension, above 1; only those who take one are given it.
        """
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
        with unrounded(queries):
            whole, divisor = torch.arange(lowest, extent, device=queries.device), self.divisor(extent)
            table = self.table(whole) if divisor == 1 else self.table(whole, divisor)
        prefix = self.geometry.prefix
        return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0], lowest=lowest, prefix=prefix))
