"""Tensors that are computed when they are read, some rows at a time, with the interface of those that lie in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.checkpoints.stored import BUFFER, Stored, cut


@dataclass(frozen=True)
class Made(Stored):
    """A tensor whose bytes lie nowhere as they are; `rows` makes some of its rows, and is all that differs."""

    def rows(self, wanted: range) -> Tensor:
        """Rows that follow each other, in memory."""
        raise NotImplementedError

    def steps(self) -> Iterator[range]:
        """All rows, in runs that are little in memory."""
        step = max(1, BUFFER * self.shape[0] // self.size)
        for start in range(0, self.shape[0], step):
            yield range(start, min(start + step, self.shape[0]))

    def into(self, target: Tensor) -> None:
        for step in self.steps():
            target[step.start : step.stop] = self.rows(step)

    def mapped(self) -> None:
        return None

    def chunks(self) -> Iterator[memoryview]:
        for step in self.steps():
            yield from Stored.of(self.rows(step)).chunks()

    def page(self, start: int, size: int) -> bytes:
        width = self.size // self.shape[0]
        end = min(start + size, self.size)
        first = start // width
        return Stored.of(self.rows(range(first, -(-end // width)))).page(start - first * width, end - start)


class Turned(Made):
    """A matrix whose bytes lie column by column; it is turned when it is read, which takes the whole of it."""

    def rows(self, wanted: range) -> Tensor:
        whole = Stored(self.dtype, self.shape[::-1], self.runs).tensor()
        return whole.mT[wanted.start : wanted.stop].contiguous()

    def steps(self) -> Iterator[range]:
        yield range(self.shape[0])


@dataclass(frozen=True)
class Piled(Made):
    """Rows of several tensors, one on the other.

    Args:
        parts: The tensors, and which of their rows.
    """

    parts: tuple[tuple[Stored, range], ...]

    def rows(self, wanted: range) -> Tensor:
        found, start = list[Tensor](), 0
        for stored, own in self.parts:
            inner = own[max(0, wanted.start - start) : max(0, wanted.stop - start)]
            if inner:
                found.append(rows(stored, inner).tensor().to(self.dtype))
            start += len(own)
        return torch.cat(found) if len(found) > 1 else found[0]


def rows(stored: Stored, wanted: range) -> Stored:
    """Some rows of a tensor."""
    if wanted == range(stored.shape[0]):
        return stored
    shape, width = (len(wanted), *stored.shape[1:]), stored.size // stored.shape[0]
    if not isinstance(stored, Made):
        return Stored(stored.dtype, shape, cut(stored.runs, wanted.start * width, len(wanted) * width))
    return Slice(stored.dtype, shape, (), stored, wanted)


@dataclass(frozen=True)
class Slice(Made):
    """Some rows of a tensor that is made.

    Args:
        whole: The tensor.
        own: Which of its rows.
    """

    whole: Made
    own: range

    def rows(self, wanted: range) -> Tensor:
        return self.whole.rows(self.own[wanted.start : wanted.stop])
