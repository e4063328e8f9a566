"""The bias ladder: what an encoding may add to the logits, from the most special form to the most general.

Slopes, Toeplitz, Pointwise, Dense, Logits: each rung can be read as the next, so a kernel that carries one carries all
below it, and an encoding says the least that it needs. A rung holds only tensors that were computed inside the
encoding's `forward`, named as `tensors`: never a parameter, a module or a closure over one, since an autograd function
that recomputes would lose such gradients in silence.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional


class Bias:
    """What is added to the logits: one rung of the ladder Slopes, Toeplitz, Pointwise, Dense, Logits.

    Row i and column j are buffer indices and count prefix tokens; positions are among the tensors and do not.
    """

    tensors: tuple[Tensor, ...]
    count: int
    queries: int
    keys: int
    prefix: int = 0
    anew: bool = False
    """Whether a map makes all logits itself and reads nothing but the shape of those that it is given (Logits only)."""

    def replace(self, *tensors: Tensor) -> Self:
        """The same bias on other tensors (an autograd function recomputes with its own)."""
        other = copy.copy(self)
        other.tensors = tensors
        return other

    def climb(self, to: type[Any]) -> Any:
        """This bias read as a more general rung."""
        return self if isinstance(self, to) else self.wider().climb(to)

    def wider(self) -> Bias:
        """This bias as the next rung."""
        raise TypeError(f"{type(self).__name__} is the most general rung")

    def heads(self, start: int, stop: int) -> Self:
        """The bias of some heads only, for sequence and tensor parallelism."""
        raise NotImplementedError

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Float values [batch or 1, heads, rows, columns]; prefix rows and columns are 0."""
        p, inner = self.prefix, []
        for part in (rows, columns):
            inner.append(slice(max(part.start - p, 0), max(part.stop - p, 0)))
        left, top = (
            part.stop - part.start - (i.stop - i.start) for part, i in zip((columns, rows), inner[::-1], strict=True)
        )
        return functional.pad(self.values(*inner), (left, 0, top, 0)) if left or top else self.values(*inner)

    def values(self, rows: slice, columns: slice) -> Tensor:
        """`block` in indices that do not count the prefix."""
        raise NotImplementedError

    def onto(self, logits: Tensor, q: Tensor, k: Tensor, visible: Tensor | None, scale: float, rows: slice) -> Tensor:
        """`logits` [batch, heads, rows, columns] (columns start at 0) with this bias applied."""
        return logits + self.block(rows, slice(0, logits.shape[-1])).to(logits.dtype)


def at(tensor: Tensor, b: Tensor, i: Tensor) -> Tensor:
    """Look up `tensor`, [tokens] or [batch, tokens], at batch row b and token i."""
    return tensor[i] if tensor.ndim == 1 else tensor[b, i]


class Pointwise(Bias):
    """value(b, h, i, j, *tensors): elementwise arithmetic and look-ups (FIRE, FoX, BiPE).

    The same function is called with broadcasting index tensors here and with scalars inside FlexAttention; there each
    tensor that carries a gradient may be looked up once only.

    Args:
        value: The function; indices are int64 tensors.
        tensors: What it reads.
        heads: Query heads.
        queries: Query tokens, without the prefix.
        keys: Key tokens, without the prefix.
        prefix: Prefix tokens.
    """

    def __init__(
        self,
        value: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
        *,
        heads: int,
        queries: int,
        keys: int,
        batch: int = 1,
        prefix: int = 0,
    ) -> None:
        self.value, self.tensors, self.batch, self.prefix = value, tensors, batch, prefix
        self.count, self.queries, self.keys, self.first = heads, queries, keys, 0

    def heads(self, start: int, stop: int) -> Self:
        other = copy.copy(self)
        other.first, other.count = self.first + start, stop - start
        return other

    def values(self, rows: slice, columns: slice) -> Tensor:
        device = self.tensors[0].device
        b = torch.arange(self.batch, device=device).view(-1, 1, 1, 1)
        h = torch.arange(self.first, self.first + self.count, device=device).view(-1, 1, 1)
        i = torch.arange(rows.start, rows.stop, device=device).view(-1, 1)
        j = torch.arange(columns.start, columns.stop, device=device)
        shape = (self.batch, self.count, len(i), len(j))
        return self.value(b, h, i, j, *self.tensors).expand(shape)

    def wider(self) -> Bias:
        everything = self.values(slice(0, self.queries), slice(0, self.keys))
        return Dense(everything, prefix=self.prefix)


class Slopes(Pointwise):
    """-slope[h] * |position of i - position of j|: one slope per head times the distance (ALiBi).

    Args:
        slopes: [heads].
        queries: Positions [tokens] or [batch, tokens].
        keys: Likewise.
        prefix: Prefix tokens.
    """

    def __init__(self, slopes: Tensor, queries: Tensor, keys: Tensor, *, prefix: int = 0) -> None:
        super().__init__(
            lambda b, h, i, j, slopes, queries, keys: -slopes[h] * (at(queries, b, i) - at(keys, b, j)).abs(),
            (slopes, queries, keys),
            heads=len(slopes),
            queries=queries.shape[-1],
            keys=keys.shape[-1],
            batch=1 if queries.ndim == 1 else len(queries),
            prefix=prefix,
        )

    def values(self, rows: slice, columns: slice) -> Tensor:
        slopes, queries, keys = self.tensors
        distance = (
            (queries[..., rows, None] - keys[..., None, columns])
            .abs()
            .reshape(self.batch, 1, rows.stop - rows.start, columns.stop - columns.start)
        )
        return -slopes[self.first : self.first + self.count, None, None] * distance

    def climb(self, to: type[Any]) -> Any:
        return self.toeplitz() if to is Toeplitz else super().climb(to)

    def toeplitz(self) -> Toeplitz:
        """The table of these slopes (its length is read off the positions)."""
        slopes, queries, keys = self.tensors
        reach = int(torch.maximum(queries.max() - keys.min(), keys.max() - queries.min()))
        distances = torch.arange(-reach, reach + 1, device=slopes.device, dtype=slopes.dtype)
        table = -slopes[self.first : self.first + self.count, None] * distances.abs()
        return Toeplitz(table, queries, keys, lowest=-reach, prefix=self.prefix)


class Toeplitz(Pointwise):
    """table[h, position of i - position of j - lowest], made outside attention by autograd (T5, KERPLE, Sandwich).

    Args:
        table: [heads, distances].
        queries: Whole positions [tokens] or [batch, tokens].
        keys: Likewise.
        lowest: The distance of the table's first column: 0 in a causal model, negative elsewhere.
        prefix: Prefix tokens.
    """

    def __init__(self, table: Tensor, queries: Tensor, keys: Tensor, *, lowest: int = 0, prefix: int = 0) -> None:
        last = table.shape[-1] - 1
        # Distances that a mask hides anyway (the future, another document) may lie outside the table: clamped.
        super().__init__(
            lambda b, h, i, j, table, queries, keys: table[
                h, (at(queries, b, i) - at(keys, b, j) - lowest).clamp(0, last)
            ],
            (table, queries.long(), keys.long()),
            heads=len(table),
            queries=queries.shape[-1],
            keys=keys.shape[-1],
            batch=1 if queries.ndim == 1 else len(queries),
            prefix=prefix,
        )
        self.lowest = lowest

    def values(self, rows: slice, columns: slice) -> Tensor:
        table, queries, keys = self.tensors
        if table.device.type != "cpu":
            return super().values(rows, columns)
        # The same by `gather`: on the CPU its gradient has a fixed order, and half the time of that of indexing.
        table = table[self.first : self.first + self.count]
        away = queries[..., rows, None] - keys[..., None, columns] - self.lowest
        where = away.clamp(0, table.shape[-1] - 1).reshape(1, -1).expand(len(table), -1)
        return table.gather(1, where).view(len(table), self.batch, *away.shape[-2:]).transpose(0, 1)


class Dense(Bias):
    """A tensor [batch or 1, heads, queries, keys]: anything additive."""

    def __init__(self, bias: Tensor, *, prefix: int = 0) -> None:
        self.tensors, self.prefix = (bias,), prefix
        self.count, self.queries, self.keys = bias.shape[-3:]

    def heads(self, start: int, stop: int) -> Self:
        other = self.replace(self.tensors[0][:, start:stop])
        other.count = stop - start
        return other

    def values(self, rows: slice, columns: slice) -> Tensor:
        return self.tensors[0][:, :, rows, columns]

    def wider(self) -> Logits:
        def add(
            logits: Tensor,
            q: Tensor,
            k: Tensor,
            h: Tensor,
            i: Tensor,
            visible: Tensor | None,
            scale: float,
            bias: Tensor,
        ) -> Tensor:
            whole = Dense(bias, prefix=self.prefix).block(slice(int(i[0]), int(i[-1]) + 1), slice(0, logits.shape[-1]))
            return logits + whole[:, h.flatten()].to(logits.dtype)

        return Logits(add, self.tensors, heads=self.count)


class Logits(Bias):
    """A row-wise map of the logits (CoPE, DAPE, ReRoPE, SelfExtend); the encoding's rotation is then None.

    Args:
        value: value(logits, q, k, h, i, visible, scale, *tensors) -> logits, with logits [batch, heads, rows, columns]
            already scaled, q [batch, heads, rows, width] and k [batch, kv_heads, columns, width] un-rotated,
            h [heads, 1, 1] the numbers of the heads, i [rows] buffer indices, visible a bool tensor or None.
        tensors: What it reads.
        heads: Query heads.
    """

    def __init__(self, value: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, heads: int) -> None:
        self.value, self.tensors, self.count, self.first = value, tensors, heads, 0

    def heads(self, start: int, stop: int) -> Self:
        other = copy.copy(self)
        other.first, other.count = self.first + start, stop - start
        return other

    def onto(self, logits: Tensor, q: Tensor, k: Tensor, visible: Tensor | None, scale: float, rows: slice) -> Tensor:
        h = torch.arange(self.first, self.first + self.count, device=logits.device).view(-1, 1, 1)
        i = torch.arange(rows.start, rows.stop, device=logits.device)
        return self.value(logits, q, k, h, i, visible, scale, *self.tensors)


class Banded(Logits, ABC):
    """Dot products of queries and keys that are turned otherwise in each band of pairs (ReRoPE, SelfExtend).

    As a map of the logits it serves whoever has whole rows; whoever does not turns everything once and asks which band
    a pair is in.
    """

    anew = True

    @abstractmethod
    def turned(self, q: Tensor, k: Tensor) -> list[tuple[Tensor, Tensor]]:
        """All queries [batch, heads, tokens, width] and all keys as each of the bands has them."""

    @abstractmethod
    def band(self, rows: slice, columns: slice) -> Tensor:
        """The number of the band of each pair, [1 or batch, rows, columns]."""


LADDER: tuple[type[Bias], ...] = (Slopes, Toeplitz, Pointwise, Dense, Logits)
"""The rungs from the most special to the most general."""


def rung(bias: Bias | None) -> type[Bias] | None:
    """The rung that a bias stands on; a subclass of a rung stands on that rung."""
    return next((step for step in LADDER if isinstance(bias, step)), None)


def carries(fuses: type[Bias] | None, asked: type[Bias] | None) -> bool:
    """Whether a kernel that fuses up to rung `fuses` carries a bias of rung `asked`."""
    return asked is None or (fuses is not None and LADDER.index(asked) <= LADDER.index(fuses))
