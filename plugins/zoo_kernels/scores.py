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
        self.parts: list[tuple[slice, slice, Tensor | None]] = []
        """Channels of a band, columns from its first to its last, and which of those pairs it has (None: all)."""
        for number in range(first, last + 1):
            channels, columns, held = slice(width * number, width * (number + 1)), slice(None), None
            if first < last:
                held = of == number
                some = held.any(0).nonzero()
                if not len(some):
                    continue
                columns = slice(int(some[0]), int(some[-1]) + 1)
                held = held[:, columns]
            self.parts.append((channels, columns, held))

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        for channels, columns, held in self.parts:
            one, other, into = q[..., channels], k[:, columns, channels].mT, logits[..., columns]
            if held is None:
                into.baddbmm_(one, other)
            else:
                rows = (-1, len(held))
                into.unflatten(1, rows).add_((one @ other).unflatten(1, rows).masked_fill_(~held, 0.0))

    def pull(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        for channels, columns, held in self.parts:
            own = tilt[..., columns]
            if held is not None:
                own = own.unflatten(1, (-1, len(held))).masked_fill(~held, 0.0).flatten(1, 2)
            if dq is not None:
                dq[..., channels].baddbmm_(own, k[:, columns, channels])
            if dk is not None:
                dk[:, channels, columns].baddbmm_(q[..., channels].mT, own)
