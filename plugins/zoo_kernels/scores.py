"""Scores: what a query and a key make of each other, before bias and softmax, as tiles want it (`zoo_kernels.tiles`).

All are to the base of two, which exponentials are fastest in, and write their gradients out.
"""

from __future__ import annotations

import math

from torch import Tensor

from zoo.bias import Banded

LOG2E = math.log2(math.e)


class Score:
    """What a query and a key make of each other, before bias and softmax, and its gradient."""

    def queries(self, x: Tensor) -> Tensor:
        """Some rows of queries, [batch, heads, rows, width], as `onto` wants them; linear in x."""
        return x

    def keys(self, x: Tensor) -> Tensor:
        """All keys, [batch, groups, keys, width], in the type of the arithmetic, as `onto` wants them."""
        return x.contiguous()

    def at(self, rows: slice, columns: slice) -> Score:
        """The score of a tile, where that depends on which one it is."""
        return self

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        """Add the score, to the base of two, to [parts, rows, columns], of q [parts, rows, width] and k likewise."""
        raise NotImplementedError

    def pull(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        """Add the gradients of q and of k, transposed, given that of the score in natural units, to those wanted."""
        raise NotImplementedError

    def done(self, dq: Tensor | None, dk: Tensor | None) -> None:
        """Turn the gradients of what `queries` and `keys` gave into those of what they took, in place."""


class Dot(Score):
    """The dot product times the scale of the logits."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def queries(self, x: Tensor) -> Tensor:
        return x * (self.scale * LOG2E)

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        logits.baddbmm_(q, k.mT)

    def pull(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        if dq is not None:
            dq.baddbmm_(tilt, k)
        if dk is not None:
            dk.baddbmm_(q.mT, tilt)

    def done(self, dq: Tensor | None, dk: Tensor | None) -> None:
        if dq is not None:
            dq *= self.scale
        if dk is not None:
            dk /= LOG2E  # the queries had it


class Bands(Dot):
    """The dot product of that part of queries and keys which belongs to the band of a pair.

    Args:
        scale: Of the logits.
        bias: Which band that is; positions are those of all examples.
        width: Of each of the parts, which lie beside each other in queries and keys.
    """

    def __init__(self, scale: float, bias: Banded, width: int) -> None:
        super().__init__(scale)
        self.bias, self.width = bias, width

    def at(self, rows: slice, columns: slice) -> Score:
        return Band(self.bias.band(rows, columns)[0], self.width)


class Band(Score):
    """Of one tile, most of which lie in one band as a whole; `of` are the numbers of bands, [rows, columns]."""

    def __init__(self, of: Tensor, width: int) -> None:
        first, last = (int(end) for end in of.aminmax())
        there = [(number, of == number) for number in range(first, last + 1)] if first < last else [(first, None)]
        self.parts = [(slice(width * number, width * (number + 1)), held) for number, held in there]

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        for part, held in self.parts:
            if held is None:
                logits.baddbmm_(q[..., part], k[..., part].mT)
            else:
                score = (q[..., part] @ k[..., part].mT).unflatten(1, (-1, len(held)))
                logits.unflatten(1, (-1, len(held))).add_(score.masked_fill_(~held, 0.0))

    def pull(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        for part, held in self.parts:
            own = tilt
            if held is not None:
                own = tilt.unflatten(1, (-1, len(held))).masked_fill(~held, 0.0).view_as(tilt)
            if dq is not None:
                dq[..., part].baddbmm_(own, k[..., part])
            if dk is not None:
                dk[:, part].baddbmm_(q[..., part].mT, own)
