"""Sequence parallelism: some processes hold one sequence together, each a run of its tokens, or, in attention, heads.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509): everything but attention works on tokens one by one, so each
process keeps a slice of them; attention works on heads one by one, so an all-to-all turns some tokens of all heads
into all tokens of some heads, and another one turns back. A kernel then sees whole sequences, with
whole masks and biases, which is why any kernel serves.

`deepspeed.sequence` does the same exchange. It is not used since it needs DeepSpeed, whatever the strategy, and has no
answer to key heads that are fewer than the processes, nor to kernels that learn something for each head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from zoo.errors import ZooError, listing
from zoo.kernel import Kernel
from zoo.matrix import places
from zoo.position import PositionEncoding


@dataclass(frozen=True, eq=False)
class Slice:
    """This process's share of what `size` processes hold together: a run of the tokens, or a run of the heads.

    Args:
        rank: Which run.
        size: How many there are.
        group: The processes, in the order of their runs.
    """

    rank: int
    size: int
    group: Any

    def part(self, count: int) -> slice:
        """Where this process's run of `count` heads, or of as many tokens, is."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def tokens(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's run of the tokens of x; raises ZooError where they cannot be shared out evenly."""
        if x.shape[dim] % self.size:
            raise ZooError(uneven(x.shape[dim], self.size))
        part = self.part(x.shape[dim])
        return x.narrow(dim, part.start, part.stop - part.start)

    def heads(self, x: Tensor) -> Tensor:
        """[batch, heads, some tokens, width] to [batch, some heads, tokens, width].

        Key heads that the processes cannot share out evenly are repeated as often as it takes.
        """
        often = self.size // math.gcd(x.shape[1], self.size)
        return Exchange.apply(x.repeat_interleave(often, 1) if often > 1 else x, self, True)

    def back(self, x: Tensor) -> Tensor:
        """[batch, some heads, tokens, width] to [batch, heads, some tokens, width]."""
        return Exchange.apply(x, self, False)

    def gather(self, x: Tensor) -> Tensor:
        """[batch, some tokens, ...] to [batch, tokens, ...], all of them on every process."""
        return Gather.apply(x, self)

    def alike(self, x: Tensor) -> Tensor:
        """The first process's x, on every process."""
        distributed.broadcast(x, group=self.group, group_src=0)
        return x


class Exchange(torch.autograd.Function):
    """The all-to-all between a run of the tokens with all heads and all tokens with a run of the heads.

    Each way is the other's gradient: what was sent comes back.
    """

    @staticmethod
    @torch.compiler.disable  # a collective of torch.distributed's breaks the graph, and only that
    def forward(ctx: Any, x: Tensor, own: Slice, outward: bool) -> Tensor:
        ctx.own, ctx.outward = own, outward
        # What leaves for process n is its heads (outward) or its tokens, at [n].
        sent = x.unflatten(1 if outward else 2, (own.size, -1)).movedim(1 if outward else 2, 0)
        found = traded(sent, own)
        return found.movedim(0, 2 if outward else 1).flatten(*((2, 3) if outward else (1, 2)))

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return Exchange.apply(gradients[0], ctx.own, not ctx.outward), None, None


class Gather(torch.autograd.Function):
    """The all-gather of a run of the tokens; its gradient is the sum of what all processes have for the run."""

    @staticmethod
    @torch.compiler.disable
    def forward(ctx: Any, x: Tensor, own: Slice) -> Tensor:
        ctx.own = own
        found = x.new_empty(own.size, *x.shape)
        distributed.all_gather_single(found.flatten(0, 1), x.contiguous(), group=own.group)
        return found.movedim(0, 1).flatten(1, 2)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        sent = gradients[0].unflatten(1, (ctx.own.size, -1)).movedim(1, 0)
        return traded(sent, ctx.own).sum(0), None  # not reduce-scatter: its order of summation is the library's


def traded(x: Tensor, own: Slice) -> Tensor:
    """x [size, ...] with row n sent to process n, as the rows [size, ...] that all of them sent here."""
    x = x.contiguous()
    found = torch.empty_like(x)
    distributed.all_to_all_single(found, x, group=own.group)
    return found


def join(size: int) -> Slice:
    """The share of this process in groups of `size` neighbours; every process of the run has to call this."""
    enough(size, distributed.get_world_size() if distributed.is_initialized() else 1)
    group, _ = distributed.new_subgroups(size)
    return Slice(distributed.get_rank() % size, size, group)


def enough(size: int, world: int) -> None:
    """Raise ZooError where `world` processes do not make up whole groups of `size`."""
    if world % size:
        what = "one process" if world == 1 else f"{world} processes"
        raise ZooError(
            f"sequence_parallel {size} has {size} processes share each sequence, and this run is of {what}, which is "
            f"no multiple of that.   Try:  --trainer.devices {size}, or --model.sequence_parallel 1"
        )


def fit(size: int, position: PositionEncoding, kernel: Kernel) -> None:
    """Raise ZooError where an encoding or a kernel cannot be shared out between `size` processes."""
    heads, name = position.geometry.heads, type(position).__name__
    if heads % size:
        able = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ZooError(
            f"sequence_parallel {size} gives each process as many of the {heads} heads, which {size} does not divide. "
            f"Numbers that do: {listing(able)}.   Try:  --model.sequence_parallel {able[-1]}"
        )
    if position.content:
        asked = places(position)
        if asked.rotation is not None or asked.embedding is not None or isinstance(asked.scale, Tensor):
            raise ZooError(
                f"sequence_parallel {size} does not go with {name}, which reads hidden states for more than a bias: "
                "what it makes of the whole sequence would be needed token by token.   Try:  --model.position FoX"
            )
    if not kernel.divisible and any(True for _ in (*kernel.parameters(), *kernel.buffers())):
        raise ZooError(
            f"sequence_parallel {size} asks some of the heads of the kernel {type(kernel).__name__}, which has numbers "
            "of its own and does not say that it can tell whose they are (zoo.kernel.Kernel.divisible).   "
            "Try:  --model.kernel Auto"
        )


def uneven(tokens: int, size: int) -> str:
    """Why so many processes cannot share so many tokens, and what would work."""
    near = max(tokens // size, 1) * size
    return (
        f"sequence_parallel {size} gives each process as many tokens, and {size} does not divide {tokens}.   "
        f"Try:  blocks of {near} tokens"
    )
