"""DynamicBias: a small network that is asked for the bias of every distance once, never of every pair of tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ZooError
from zoo.position import Geometry
from zoo_positions.distances import Distances
from zoo_positions.scaling import DistanceExtension


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in the precision of its input."""
    return functional.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


class DynamicBias(Distances):
    """A network of the signed distance gives each head's bias.

    Source: x-transformers' DynamicPositionBias, after CrossFormer (Wang et al. 2021, arXiv:2108.00154) and Swin v2 (Liu
    et al. 2021, arXiv:2111.09883). With x = p_i - p_j, or sign(x) log(1 + |x|), `depth` hidden layers of SiLU and a
    linear one after them,

        bias[h, i, j] = row h of W_n ... silu(W_2 silu(W_1 x + b_1) + b_2) ...

    a Toeplitz bias. Weights are float32, drawn as torch draws those of linear layers. The last layer has no b_n, as in
    Swin v2 and unlike x-transformers: softmax does not see a constant of the head. Products are taken in float64, since
    the fast ones of a GPU (TF32, which Lightning advises) could not tell the distances 4096 and 4097 apart.

    Raises ZooError for a model with two axes and for a depth or width below 1.

    Args:
        distance: What the network is given, the distance itself (x-transformers' default) or its logarithm (Swin v2).
        depth: Hidden layers.
        width: Units of a hidden layer; default: dim / 4, as in x-transformers.
        extension: How it reads further than it was trained, a plugin such as DistanceScaling (default: not at all).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        distance: Literal["log", "linear"] = "log",
        depth: int = 2,
        width: int | None = None,
        extension: Callable[[Geometry], DistanceExtension] | None = None,
    ) -> None:
        super().__init__(geometry, extension=extension)
        width = max(geometry.dim // 4, 1) if width is None else width
        if min(depth, width) < 1:
            raise ZooError(
                f"DynamicBias cannot build a network of {depth} hidden layers of {width} units. Give at least 1 of "
                "each:  --model.position.depth 2 --model.position.width 32"
            )
        self.distance, self.width = distance, width
        sizes = pairwise((1, *[width] * depth))
        layers = [nn.Linear(few, many, dtype=torch.float32) for few, many in sizes]
        self.layers = nn.ModuleList([*layers, nn.Linear(width, geometry.heads, bias=False, dtype=torch.float32)])

    def pinned(self) -> dict[str, Any]:
        return {"width": self.width}

    def reset_parameters(self) -> None:
        """Draw the network anew."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def table(self, distances: Tensor, divisor: float = 1.0) -> Tensor:
        x = distances.to(torch.float32 if distances.device.type == "mps" else torch.float64).unsqueeze(-1) / divisor
        if self.distance == "log":
            x = x.sign() * x.abs().log1p()
        for number, layer in enumerate(self.layers):
            x = multiply(layer, functional.silu(x) if number else x)  # type: ignore[arg-type]
        return x.T.to(next(self.parameters()).dtype).contiguous()
