"""Tiled: exact attention in memory linear in the length, on any device, with the gradients of any bias.

A block of queries meets whole rows of keys, so a softmax needs no running maximum and a map of the logits sees what it
would see in Eager. Nothing of size N x N outlives its block: backward computes the block again. Three decisions:

- The softmax's gradient is written out (two fused passes, five matrix products); autograd recomputes only what makes
  the bias. A map of the logits (CoPE, DAPE) is recomputed by autograd as a whole (`zoo_kernels.rows`).
- Where positions count up by one, as they nearly always do, slopes and tables depend on j - i only, and so do causality
  and the window. All of it becomes one vector per head, the profile. Rows of a block are taken in reverse: then the
  block of the profile is a view of it (`unfold`) and its gradient a sum along diagonals, without an index or an atomic.
- All arithmetic is float32 or better, matrix products included, whatever the inputs and the autocast: CPUs multiply
  bfloat16 slowly, and logits in bfloat16 have 8 bits. On CUDA `torch.set_float32_matmul_precision` applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.kernel import Kernel, Mask
from zoo.position import Bias, Geometry, Logits, Slopes, Toeplitz
from zoo_kernels.rows import blocks, exact, ordered, rowwise


class Tiled(Kernel):
    """Softmax attention by blocks of queries: O(length x block) memory, deterministic, trains on any device.

    Source: Rabe and Staats 2021, arXiv:2112.05682 (without their split of the keys). Equal to Eager up to rounding, in
    values and in the gradients of q, k, v and of every tensor of the bias. Under torch.compile it breaks the graph.

    Args:
        block: Queries in a block; memory grows with it. On two cores 64 to 256 are equally fast.
    """

    fuses = Logits

    def __init__(self, geometry: Geometry, *, block: int = 128) -> None:
        super().__init__(geometry)
        if block < 1:
            raise ValueError(f"block must be at least 1, not {block}")
        self.block = block

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        return tiled(q, k, v, bias, mask or Mask(), scale, self.block)


@torch.compiler.disable
def tiled(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, mask: Mask, scale: float, block: int) -> Tensor:
    """Attention by blocks; see `Tiled`."""
    with torch.autocast(q.device.type, enabled=False):
        if isinstance(bias, Logits):
            return rowwise(q, k, v, bias=bias, mask=mask, scale=scale, block=block)
        line = profile(bias, mask, q.shape[2], k.shape[2], q.device) if weavable(mask, q.shape[2], k.shape[2]) else None
        if line is not None:
            return Additive.apply(q, k, v, Job(None, mask, scale, block, woven=True), line)
        tensors = () if bias is None else bias.tensors
        return Additive.apply(q, k, v, Job(bias and bias.replace(), mask, scale, block), *tensors)


@dataclass(frozen=True, eq=False)
class Job:
    """What a call does, but for its tensors.

    Args:
        bias: The bias without its tensors, which travel through autograd.
        mask: The mask.
        scale: Of the logits.
        block: Queries in a block.
        woven: Bias and mask are one profile [heads or 1, queries + keys - 1] over j - i, the first tensor; rows of a
            block are then taken in reverse.
    """

    bias: Bias | None
    mask: Mask
    scale: float
    block: int
    woven: bool = False

    def blocks(self, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each block that has anything to see."""
        return blocks(self.mask, queries, keys, self.block)

    def take(self, x: Tensor, rows: slice, groups: int, kind: torch.dtype) -> Tensor:
        """Rows of [batch, heads, queries, width] as [batch x groups, heads of a group x rows, width]."""
        part = x[:, :, rows].to(kind)
        return (part.flip(2) if self.woven else part).reshape(len(x) * groups, -1, x.shape[-1])

    def give(self, x: Tensor, into: Tensor, rows: slice) -> None:
        """The inverse of `take`."""
        part = x.view(*into.shape[:2], rows.stop - rows.start, -1)
        into[:, :, rows] = part.flip(2) if self.woven else part

    def added(self, tensors: Sequence[Tensor], rows: slice, columns: slice, queries: int) -> Tensor | None:
        """What is added to the logits of a block, broadcastable to [batch, heads, rows, columns]."""
        if self.woven:
            line = tensors[0][:, diagonal(rows, columns, queries)]
            return line.unfold(-1, columns.stop - columns.start, 1)
        return self.bias.replace(*tensors).block(rows, columns) if self.bias is not None else None

    def weights(
        self, q: Tensor, k: Tensor, tensors: Sequence[Tensor], rows: slice, columns: slice, queries: int, out: Tensor
    ) -> Tensor | None:
        """Softmax of a block into `out` [batch, heads, rows, columns]; the rows that see nothing, as `out[..., :1]`.

        A row that sees nothing gets finite weights, which the caller makes harmless by zeroing its output and gradient.
        """
        logits = out.view(len(q), -1, out.shape[-1])
        added = self.added(tensors, rows, columns, queries)
        if added is None:
            torch.bmm(q, k.transpose(1, 2), out=logits)
        else:
            out.copy_(added)
            logits.baddbmm_(q, k.transpose(1, 2))
        visible = None if self.woven else self.mask.block(rows, columns, q.device)
        if visible is None:
            torch.softmax(out, -1, out=out)
            return None
        blind = ~visible.any(-1, keepdim=True)
        torch.softmax(out.masked_fill_(~(visible | blind), -torch.inf), -1, out=out)
        return blind.expand(*out.shape[:-1], 1)

    def pull(
        self,
        grad: Tensor,
        tensors: Sequence[Tensor],
        into: Sequence[Tensor | None],
        rows: slice,
        columns: slice,
        queries: int,
    ) -> None:
        """Add to `into` the gradients of the tensors, given that of the block's logits."""
        if all(part is None for part in into):
            return
        if self.woven:
            if into[0] is not None:
                into[0][:, diagonal(rows, columns, queries)] += diagonals(grad).sum(0)
            return
        assert self.bias is not None
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(part is not None) for t, part in zip(tensors, into, strict=True)]
            block = self.bias.replace(*leaves).block(rows, columns)
        if not block.requires_grad:
            return
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        down = grad.sum_to_size(block.shape).to(block.dtype)
        with ordered():
            found = iter(torch.autograd.grad(block, wanted, down, allow_unused=True))
        for part in into:
            if part is not None and (more := next(found)) is not None:
                part += more


class Additive(torch.autograd.Function):
    """Attention with an additive bias; the gradient is written out."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, job: Job, *tensors: Tensor) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(q, k, v, *tensors)
        kind, groups, queries = exact(q), k.shape[1], q.shape[2]
        keys, values = (x.to(kind).reshape(-1, *x.shape[2:]) for x in (k, v))
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        space = scratch(q, job, k.shape[2])
        for rows, columns in job.blocks(queries, k.shape[2]):
            weights = space.cut(rows, columns)
            part = job.take(q, rows, groups, kind) * job.scale
            blind = job.weights(part, keys[:, columns], tensors, rows, columns, queries, weights)
            seen = weights.view(len(keys), -1, weights.shape[-1]) @ values[:, columns]
            if blind is not None:
                seen = seen.view(*weights.shape[:3], -1).masked_fill_(blind, 0.0)
            job.give(seen, out, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, ...]:
        job, (q, k, v, *tensors) = ctx.job, ctx.saved_tensors
        want_q, want_k, want_v, _, *want = ctx.needs_input_grad
        logits_too = want_q or want_k or any(want)
        kind, groups, queries = exact(q), k.shape[1], q.shape[2]
        keys, values = (x.to(kind).reshape(-1, *x.shape[2:]) for x in (k, v))
        into = [torch.zeros_like(t) if need else None for t, need in zip(tensors, want, strict=True)]
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format) if want_q else None
        # Kept transposed: products that are wide run faster than products that are tall.
        dk = keys.new_zeros(len(keys), *keys.shape[:0:-1]) if want_k else None
        dv = values.new_zeros(len(values), *values.shape[:0:-1]) if want_v else None
        first, second = (scratch(q, job, k.shape[2]) for _ in range(2))
        with torch.autocast(q.device.type, enabled=False):
            for rows, columns in job.blocks(queries, k.shape[2]):
                weights, grad = first.cut(rows, columns), second.cut(rows, columns)
                flat, slope = (x.view(len(keys), -1, x.shape[-1]) for x in (weights, grad))
                part, push = job.take(q, rows, groups, kind) * job.scale, job.take(down, rows, groups, kind)
                blind = job.weights(part, keys[:, columns], tensors, rows, columns, queries, weights)
                if blind is not None:
                    push = push.view(*weights.shape[:3], -1).masked_fill(blind, 0.0).view(push.shape)
                if dv is not None:
                    dv[:, :, columns] += push.transpose(1, 2) @ flat
                if not logits_too:
                    continue
                torch.bmm(push, values[:, columns].transpose(1, 2), out=slope)
                # weights * (grad - sum(weights * grad)), in one pass
                torch.ops.aten._softmax_backward_data.out(grad, weights, -1, kind, grad_input=grad)
                if dq is not None:
                    job.give((slope @ keys[:, columns]).mul_(job.scale), dq, rows)
                if dk is not None:
                    dk[:, :, columns] += part.transpose(1, 2) @ slope
                job.pull(grad, tensors, into, rows, columns, queries)
        dk, dv = (
            grad.transpose(1, 2).reshape(like.shape).to(like.dtype) if grad is not None else None
            for grad, like in ((dk, k), (dv, v))
        )
        return dq, dk, dv, None, *into


class Scratch:
    """One allocation from which every block's logits are cut: fresh pages would cost more than the arithmetic."""

    def __init__(self, space: Tensor, batch: int, heads: int) -> None:
        self.space, self.batch, self.heads = space, batch, heads

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """An uninitialised [batch, heads, rows, columns]."""
        shape = (self.batch, self.heads, rows.stop - rows.start, columns.stop - columns.start)
        return self.space[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)


def scratch(q: Tensor, job: Job, keys: int) -> Scratch:
    """Room for the largest block."""
    batch, heads, queries, _ = q.shape
    most = max(((r.stop - r.start) * (c.stop - c.start) for r, c in job.blocks(queries, keys)), default=0)
    return Scratch(torch.empty(batch * heads * most, dtype=exact(q), device=q.device), batch, heads)


def diagonal(rows: slice, columns: slice, queries: int) -> slice:
    """The part of a profile over j - i, from 1 - queries on, that a block of reversed rows reads."""
    start = columns.start - rows.stop + queries
    return slice(start, start + (rows.stop - rows.start) + (columns.stop - columns.start) - 1)


def diagonals(x: Tensor) -> Tensor:
    """Sums of a contiguous [..., rows, columns] over equal r + c: [..., rows + columns - 1].

    With a stride of one column less, rows shift by one each and diagonals become columns. That holds without copies but
    for the two corners, where the shifted rows would run into their neighbours.
    """
    rows, columns = x.shape[-2:]
    if columns <= 2 * rows:
        shifted = functional.pad(x, (0, rows)).flatten(-2)[..., : rows * (rows + columns - 1)]
        return shifted.unflatten(-1, (rows, -1)).sum(-2)
    shape, strides = (*x.shape[:-1], columns - rows + 1), (*x.stride()[:-2], columns - 1, 1)
    middle = x.as_strided(shape, strides, x.storage_offset() + rows - 1).sum(-2)
    left, right = diagonals(x[..., :rows]), diagonals(x[..., -rows:])
    return torch.cat((left[..., : rows - 1], middle, right[..., rows:]), -1)


def weavable(mask: Mask, queries: int, keys: int) -> bool:
    """Whether the mask depends on j - i only and leaves no row without a key."""
    if not mask.kinds <= {"causal", "window"} or mask.null or (mask.sinks and mask.window is not None):
        return False
    return mask.window is None or (mask.window > 0 and queries + mask.offset - mask.window < keys)


def profile(bias: Bias | None, mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Bias and mask as one vector per head over j - i = 1 - queries ... keys - 1; None where that is not all they are.

    Made by autograd outside the blocks, so a slope or a table gets its gradient through a tensor of heads x length.
    """
    if bias is not None and (bias.prefix or not isinstance(bias, Slopes | Toeplitz)):
        return None
    ahead = torch.arange(1 - queries, keys, device=device)
    if bias is None:
        line = ahead.new_zeros(1, len(ahead), dtype=torch.float32)
    else:
        away = start(bias)
        if away is None:
            return None
        table = bias.tensors[0][bias.first : bias.first + bias.count]
        if isinstance(bias, Slopes):
            line = -table[:, None] * (ahead - away).abs().to(table.dtype)
        else:
            # Entry n looks up high - n; beyond its ends the table goes on with its last values.
            count, last = len(ahead), table.shape[1]
            high = int(away) + queries - 1 - bias.lowest
            low = high - count + 1
            over, under = (min(max(beyond, 0), count) for beyond in (high - last + 1, -low))
            inside = table[:, max(low, 0) : max(min(high + 1, last), 0)].flip(1)
            line = torch.cat((table[:, -1:].expand(-1, over), inside, table[:, :1].expand(-1, under)), 1)
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if mask.causal:
        hidden = ahead > mask.offset
    if mask.window is not None:
        hidden = hidden | ((ahead - mask.offset).abs() >= mask.window)
    return line.masked_fill(hidden, -torch.inf)


def start(bias: Slopes | Toeplitz) -> float | None:
    """Position of the first query less that of the first key, where both count up by one in every row of the batch."""
    _, queries, keys = bias.tensors
    known = vars(bias).get("start")  # layers share a bias, and on a GPU the answer is worth a synchronisation
    if known is None or known[0] is not queries or known[1] is not keys:
        offsets = [x - torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) for x in (queries, keys)]
        q0, k0 = (x[..., :1] for x in offsets)
        regular = torch.stack(
            [(x == x[..., :1]).all() for x in offsets] + [((q0 - k0) == (q0 - k0).flatten()[0]).all()]
        )
        answer = torch.cat(
            (regular.all().view(1).to(torch.float64), (q0 - k0).flatten()[:1].to(torch.float64))
        ).tolist()
        known = vars(bias)["start"] = (queries, keys, answer[1] if answer[0] else None)
    return known[2]
