"""Relocation: what makes a rotary encoding read further by rotating far pairs of tokens as if they stood nearer.

A rotation tells the distance of a query from a key, and a model knows the distances of its training. Here the waves
stay as they are, and positions are mapped, pairs that are near by one map and pairs that are far by another. A rotation
of its own for each band of pairs is no rotation of queries and keys, so this is a map of the logits, which are made
anew from what is not rotated yet; a cache therefore holds plain keys. Where whole rows are at hand the logits of a band
are made only for the columns from the first to the last that the band holds, so that most logits are made once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zoo.bias import Banded
from zoo.errors import ZooError
from zoo.extension import Extension, Series
from zoo.kernel import grouped
from zoo.position import EXACT, Geometry, Rotation


@dataclass(frozen=True)
class Band:
    """Pairs of a query and a key, and the positions at which they are rotated. Functions are elementwise.

    Args:
        queries: The position at which a query is rotated, given the one at which it stands.
        keys: The same of a key.
        holds: Whether the band has a pair, given where query and key stand; None: all that bands before it left.
    """

    queries: Callable[[Tensor], Tensor]
    keys: Callable[[Tensor], Tensor]
    holds: Callable[[Tensor, Tensor], Tensor] | None = None


Holds = tuple[Callable[[Tensor, Tensor], Tensor] | None, ...]
"""What each band holds."""


def same(positions: Tensor) -> Tensor:
    """The positions as they are."""
    return positions


class Relocation(Extension, ABC):
    """Base class of extensions that map the positions of pairs and leave the waves alone. No weight is trained.

    Raises ZooError on grids, and for a trained length of 1.

    Args:
        series: The waves as they were trained.
        log_n: Multiply the logits of a query at p by max(1, ln(p + 1) / ln(L)), for trained length L.
    """

    relative: bool = False
    """Whether attention stays the same when all positions shift together."""

    def __init__(self, series: Series, *, log_n: bool = False) -> None:
        name, self.series, self.length, self.log_n = type(self).__name__, series, series.length, log_n
        if series.axes > 1:
            raise ZooError(
                f"{name} maps the positions of a text, and this model has {series.axes} axes.   "
                "Try:  --model.position.extension Linear"
            )
        if series.length < 2:
            raise ZooError(f"{name} maps distances to those of training, and a trained length of 1 has none.")

    def serves(self, geometry: Geometry) -> None:
        """Raise ZooError where a model is not causal or has prefix tokens."""
        if geometry.causal and not geometry.prefix:
            return
        what = f"has {geometry.prefix} prefix tokens without a position" if geometry.causal else "looks both ways"
        raise ZooError(
            f"{type(self).__name__} maps the distances from a query back to its keys, in a causal model, and this one "
            f"{what}.   Try:  --model.position.extension Linear"
        )

    @abstractmethod
    def bands(self, extent: int) -> tuple[Band, ...]:
        """The bands of a request; the first that holds a pair has it, and the last holds all that are left.

        Args:
            extent: Final length of the request.
        """

    def gain(self, extent: int) -> float:
        """What multiplies cos and sin of queries and keys in a request."""
        return 1.0

    def scale(self, queries: Tensor) -> Tensor | float:
        """What multiplies the logits of each query, [tokens] or [batch, tokens], given positions [..., tokens, 1]."""
        if not self.log_n:
            return 1.0
        wide = torch.float32 if queries.device.type == "mps" else torch.float64  # 1 exactly, up to the last trained one
        grown = (queries[..., 0].to(wide) + 1).log() / math.log(self.length)
        return grown.clamp(min=1.0).to(queries.dtype)

    def distances(self, queries: Tensor, keys: Tensor, extent: int) -> Tensor:
        """The distances [queries, keys] at which pairs are rotated, given where queries and keys stand [tokens]."""
        i, j = queries.unsqueeze(-1), keys
        found, free = torch.zeros_like(i - j), torch.ones_like(i - j, dtype=torch.bool)
        for band in self.bands(extent):
            held = free if band.holds is None else free & band.holds(i, j)
            found, free = torch.where(held, band.queries(i) - band.keys(j), found), free & ~held
        return found


class Relocated(Banded):
    """Logits of queries and keys that are rotated at the positions of the bands that they meet in.

    Tables are those of the encoding at the mapped positions, [1 or batch, 1, tokens, pairs] for each band.

    Args:
        relocation: The bands.
        turn: The rotation at given positions.
        queries: Positions of the queries, [tokens, 1] or [batch, tokens, 1].
        keys: Likewise.
        extent: Final length of the request.
        heads: Query heads.
    """

    rotation: Rotation
    """Of the queries in the first band, for reading."""
    rotations: list[tuple[Rotation, Rotation]]
    """Of queries and of keys in each band, whose tables all layers share."""

    def __init__(
        self,
        relocation: Relocation,
        turn: Callable[[Tensor], Rotation],
        queries: Tensor,
        keys: Tensor,
        extent: int,
        *,
        heads: int,
    ) -> None:
        bands, wide = relocation.bands(extent), torch.float64 if extent > EXACT else queries.dtype
        i, j = queries.to(wide), keys.to(wide)  # where angles are float64, so are the positions that maps divide
        self.rotations = [(turn(band.queries(i)), turn(band.keys(j))) for band in bands]
        self.rotation = self.rotations[0][0]
        tables = [table for pair in self.rotations for each in pair for table in (each.cos, each.sin)]
        at = [part[..., 0].view(-1, 1, part.shape[-2]) for part in (queries, keys)]
        self.holds = tuple(band.holds for band in bands)
        value = partial(scored, holds=self.holds, interleaved=self.rotation.interleaved)
        super().__init__(value, (*at, *tables), heads=heads)

    def turned(self, q: Tensor, k: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(of_q.apply(q), of_k.apply(k)) for of_q, of_k in self.rotations]

    def band(self, rows: slice, columns: slice) -> Tensor:
        queries, keys = self.tensors[:2]
        return numbers(queries[:, 0, rows, None], keys[..., columns], self.holds)


def numbers(i: Tensor, j: Tensor, holds: Holds) -> Tensor:
    """The number of the band of each pair, given where queries and keys stand and what the bands hold."""
    found = torch.full_like(i - j, len(holds) - 1, dtype=torch.int8)
    for number, hold in reversed(list(enumerate(holds))):
        found = found.fill_(number) if hold is None else found.masked_fill_(hold(i, j), number)
    return found


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Queries or keys [batch, heads, tokens, width], turned by tables [1 or batch, 1, tokens, pairs]."""
    return Rotation(cos, sin, cos.new_empty(0), interleaved=interleaved).apply(x)


def scored(
    logits: Tensor,
    q: Tensor,
    k: Tensor,
    h: Tensor,
    i: Tensor,
    visible: Tensor | None,
    scale: float,
    queries: Tensor,
    keys: Tensor,
    *tables: Tensor,
    holds: Holds,
    interleaved: bool,
) -> Tensor:
    """The logits of some rows, in place of those of un-rotated queries and keys.

    Args:
        logits: [batch, heads, rows, columns], for their shape.
        q: [batch, heads, rows, width].
        k: [batch, kv_heads, columns, width].
        h: Numbers of the heads, which are all treated alike.
        i: [rows], which queries these are.
        visible: [batch or 1, 1, rows, columns]; what is hidden anyway may get any logit.
        scale: Of the logits.
        queries: Where they stand, [1 or batch, 1, tokens].
        keys: Likewise.
        tables: cos and sin of queries, cos and sin of keys, for each band.
        holds: Of each band.
        interleaved: Pairs of channels are neighbours.
    """
    of = numbers(queries[..., i].unsqueeze(-1), keys[..., None, : logits.shape[-1]], holds)
    found = logits.new_zeros(logits.shape)
    for number in range(len(holds)):
        cos_q, sin_q, cos_k, sin_k = tables[4 * number : 4 * number + 4]
        held = of == number
        some = (held if visible is None else held & visible).flatten(0, -2).any(0).nonzero()
        if not len(some):
            continue
        part = slice(int(some[0]), int(some[-1]) + 1)
        one = rotated(q, cos_q[:, :, i], sin_q[:, :, i], interleaved)
        other = rotated(k[:, :, part], cos_k[:, :, part], sin_k[:, :, part], interleaved)
        score = grouped(one, other.mT) * scale
        found[..., part] = torch.where(held[..., part], score, found[..., part])
    return found


def within(method: str, name: str, value: int | None, usual: int, most: int, least: int = 1) -> int:
    """A number of positions, `usual` where none is given; ZooError outside `least` to `most`."""
    if value is None:
        return usual
    if not least <= value <= most:
        raise ZooError(
            f"{method}'s {name} is {least} to {most} positions of this model, and got {value}. Leave it out for "
            f"{usual}:  --model.position.extension.{name} {usual}"
        )
    return value
