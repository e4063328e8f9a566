"""T5's relative bias: a learned number per head and bucket of distances.

Buckets are found by comparing whole numbers, not by rounding a logarithm, which a device or a precision could round to
another bucket; the bounds are exact, and the same as the references get from float32 on a CPU.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry
from zoo_positions.distances import Distances
from zoo_positions.scaling import BucketScaling, DistanceExtension


@cache
def starts(buckets: int, distance: int) -> list[int]:
    """The first distance of each bucket: one distance each in the first half of the buckets, then growing runs.

    With e = buckets // 2 and n = buckets - e, bucket e + k starts at the first whole number that is at least
    e (distance / e)^(k / n); both sides are raised to the power n, so that only whole numbers are compared.
    """
    exact = buckets // 2
    rest = buckets - exact
    bounds = (exact ** (rest - k) * distance**k for k in range(rest))
    return [*range(exact), *(bisect_left(range(distance), bound, key=lambda d: d**rest) for bound in bounds)]


class T5(Distances):
    """Each head learns a number for every bucket of distances: fine buckets near by, coarse ones farther out.

    Source: Raffel et al. 2020, arXiv:1910.10683. bias[h, i, j] = multiplier table[bucket(p_i - p_j), h], a Toeplitz
    bias; the table is [buckets, heads], float32, one for all layers. The first half of the buckets holds one distance
    each; the other half divides the distances up to `distance` evenly in their logarithm, and all beyond share the last
    (of 32 buckets up to 128 that is reached at 113). A model that is not causal gives half of the buckets to keys that
    stand after the query.

    The references differ in what else they do; each can be written down:

                       multiplier   logits     std
        here           1            scaled     0.02
        T5 (authors')  1            unscaled   dim       q k' + bias
        GPT-NeoX       root         scaled     xavier    q k' / sqrt(head_dim) + sqrt(head_dim) bias
        x-transformers root         scaled     1.0       the same, and so the first biases are large

    Raises ZooError for a model with two axes, for fewer than 2 buckets (4, and an even number, if the model is not
    causal), for a `distance` within the fine buckets, and for a negative `std`.

    Args:
        buckets: Rows of the table.
        distance: Where the logarithm ends: distances from here on are in the last bucket.
        multiplier: Of the table; "root" is sqrt(head_dim).
        logits: "scaled": divided by sqrt(head_dim), as attention is defined; "unscaled": not, as in T5.
        std: Standard deviation of the first table; "dim" is 1 / sqrt(dim), "xavier" is sqrt(2 / (buckets + heads)).
        extension: How it reads further than it was trained, a plugin such as BucketScaling (default: not at all).
    """

    starts: Tensor
    """The first distance of each bucket but the first; of one side, where there are two."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        buckets: int = 32,
        distance: int = 128,
        multiplier: float | Literal["root"] = 1.0,
        logits: Literal["scaled", "unscaled"] = "scaled",
        std: float | Literal["dim", "xavier"] = 0.02,
        extension: Callable[[Geometry], DistanceExtension | BucketScaling] | None = None,
    ) -> None:
        found = extension(geometry) if extension is not None else None
        divided = found if isinstance(found, DistanceExtension) else None
        super().__init__(geometry, extension=(lambda _: divided) if divided is not None else None)
        sides = 1 if geometry.causal else 2
        if buckets < 2 * sides or buckets % sides:
            least = "at least 2" if geometry.causal else "an even number, at least 4, since half are for later keys"
            raise ZooError(
                f"T5 cannot sort distances into {buckets} buckets. Give {least}:  --model.position.buckets 32"
            )
        self.buckets, self.side = buckets, buckets // sides
        if distance <= self.side // 2:
            raise ZooError(
                f"T5 cannot end its buckets at the distance {distance}: the fine ones alone reach {self.side // 2}. "
                f"Give more, such as --model.position.distance {4 * self.side}"
            )
        draws = {"dim": geometry.dim**-0.5, "xavier": math.sqrt(2 / (buckets + geometry.heads))}
        self.std = draws[std] if isinstance(std, str) else std
        if self.std < 0:
            raise ZooError(f"T5 cannot draw its table with std {std}. Give 0 or more:  --model.position.std 0.02")
        root = math.sqrt(geometry.head_dim)
        self.distance = found.end(distance) if isinstance(found, BucketScaling) else distance
        self.multiplier = root if multiplier == "root" else multiplier
        self.scale = root if logits == "unscaled" else 1.0
        home = torch.get_default_device()
        home = torch.device("cpu") if home.type == "meta" else home
        self.register_buffer("starts", self.fixed().to(home), persistent=False)
        self.weight = nn.Parameter(torch.empty(buckets, geometry.heads, dtype=torch.float32))
        self.reset_parameters()

    def fixed(self) -> Tensor:
        """The starts computed anew."""
        return torch.tensor(starts(self.side, self.distance)[1:], device="cpu")

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.weight, std=self.std)

    def bucket(self, distances: Tensor) -> Tensor:
        """The bucket of each distance; those of keys that stand after the query come last."""
        if self.geometry.causal:
            return torch.bucketize(distances, self.starts, right=True)
        return torch.bucketize(distances.abs(), self.starts, right=True) + self.side * (distances < 0)

    def table(self, distances: Tensor, divisor: float = 1.0) -> Tensor:
        if divisor != 1:  # the whole part, towards 0: no model was trained on a later key at distance 0
            wide = torch.float32 if distances.device.type == "mps" else torch.float64
            distances = (distances.to(wide) / divisor).trunc()
        # A look-up as of words: its gradient sums the many distances of the last bucket fast, and in a fixed order.
        return functional.embedding(self.bucket(distances), self.weight).T.contiguous() * self.multiplier

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        return replace(super().forward(queries, keys, extent, hidden, state), scale=self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # a constant of no state dict: whole again after meta construction
        self.starts = self.fixed().to(self.starts.device)
        return self
