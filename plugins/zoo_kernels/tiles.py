"""Tiles: softmax attention of any score in memory linear in the length, on any device, with the gradients of any bias.

Queries come in blocks, keys in tiles, heads in turns, so that the logits at hand stay in a CPU's caches and nothing of
size N x N ever exists: a running softmax keeps its maximum and its sum, and backward computes each tile again from
them. What a query and a key have to say to each other is a `Score` (`zoo_kernels.scores`). Five decisions:

- The softmax's gradient is written out; autograd recomputes only what makes the bias. A map of the logits (CoPE, DAPE)
  wants whole rows and is not for tiles (`zoo_kernels.rows`).
- A bias that depends on j - i only is one vector per head (`zoo_kernels.profile`), which a tile reads as a view and
  whose gradient is a sum along diagonals. Any other bias is made for all heads of a tile at once.
- Tiles of which nothing is seen are left out, so packed documents cost what they would cost one by one.
- Exponentials are powers of two, which torch computes three times faster; scores and biases are scaled for it.
- All arithmetic is float32 or better, matrix products included, whatever the inputs and the autocast: CPUs multiply
  bfloat16 slowly, and logits in bfloat16 have 8 bits. On CUDA `torch.set_float32_matmul_precision` applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from zoo.bias import Bias, Dense
from zoo.kernel import Mask
from zoo_kernels.profile import diagonal, diagonals, profile, skewed, weavable
from zoo_kernels.rows import blocks, exact, once, ordered
from zoo_kernels.scores import LOG2E, Score


@torch.compiler.disable
def tiled(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, mask: Mask, score: Score, block: int, null: float | None = None
) -> Tensor:
    """Attention by blocks of queries and tiles of keys.

    Args:
        q: [batch, heads, queries, width].
        k: [batch, kv_heads, keys, width of keys]; v [batch, kv_heads, keys, width of values].
        bias: Up to Dense.
        mask: The mask.
        score: What queries and keys make of each other.
        block: Queries in a block, at most; under a causal mask short sequences are cut finer.
        null: One more logit of every row, which no mask hides and whose weight is dropped.
    """
    queries, keys = q.shape[2], k.shape[2]
    if mask.causal:  # half of the square on the diagonal is in vain
        block = min(block, max(queries // 8, 64))
    with torch.autocast(q.device.type, enabled=False):
        line = profile(bias, mask, queries, keys, q.device)
        if line is not None:
            hides = not weavable(mask, queries, keys)
            job = Job(None, mask, score, block, null, woven=True, hides=hides)
            return Additive.apply(q, k, v, job, line)
        job = Job(bias and bias.replace(), mask, score, block, null)
        return Additive.apply(q, k, v, job, *(() if bias is None else bias.tensors))


def room(device: torch.device) -> tuple[int, int]:
    """Keys in a tile, and logits of a part, of which backward holds two: on a CPU a share of its last cache."""
    return (512, 2**19) if device.type == "cpu" else (2**14, 2**26)


class Part(NamedTuple):
    """What is worked on at a time in a tile: all heads of some examples, or some heads of one example."""

    batch: slice
    heads: slice
    groups: slice
    """The key heads of these heads."""

    @overload
    def of(self, x: Tensor) -> Tensor: ...
    @overload
    def of(self, x: Tensor | None) -> Tensor | None: ...
    def of(self, x: Tensor | None) -> Tensor | None:
        """Its share of [batch or 1, heads or 1, ...]."""
        if x is None:
            return None
        batch, heads = x.shape[:2]
        return x[self.batch if batch > 1 else slice(None), self.heads if heads > 1 else slice(None)]

    def keys(self, x: Tensor) -> Tensor:
        """Its share of [batch, groups, ...] as [batch x groups, ...], without a copy."""
        x = x[self.batch, self.groups]
        return x.view(-1, *x.shape[2:])

    def flat(self, x: Tensor) -> Tensor:
        """Its share of [batch, heads, rows, width] as [batch x groups, heads of a group x rows, width], likewise."""
        x = x[self.batch, self.heads]
        return x.view(len(x) * (self.groups.stop - self.groups.start), -1, x.shape[-1])


@dataclass(frozen=True, eq=False)
class Job:
    """What a call does, but for its tensors.

    Args:
        bias: The bias without its tensors, which travel through autograd.
        mask: The mask.
        score: What queries and keys make of each other.
        block: Queries in a block.
        null: One more logit of every row.
        woven: The bias is a profile, the first tensor; rows of a block are then taken in reverse.
        hides: The mask is not in the profile.
    """

    bias: Bias | None
    mask: Mask
    score: Score
    block: int
    null: float | None
    woven: bool = False
    hides: bool = True

    def parts(self, rows: slice, columns: slice, q: Tensor, groups: int) -> list[Part]:
        """Cut the tiles of a block into parts that are not too large, and whose examples the mask treats alike."""
        width, most = room(q.device)
        batch, heads = q.shape[:2]
        fit = max(most // ((rows.stop - rows.start) * min(columns.stop - columns.start, width)), 1)
        each, alike = heads // groups, self.mask.documents is None and self.mask.padding is None
        examples = max(fit // heads, 1) if alike else 1
        some = min(fit // each * each, heads) or max(n for n in range(1, fit + 1) if each % n == 0)
        found = []
        for b in range(0, batch, examples):
            for h in range(0, heads, some):
                end = min(h + some, heads)
                of = slice(h // each, (end - 1) // each + 1)
                found.append(Part(slice(b, min(b + examples, batch)), slice(h, end), of))
        return found

    def tiles(self, rows: slice, columns: slice, q: Tensor) -> Iterator[tuple[slice, Tensor | None, list[bool]]]:
        """Columns of each tile of a block, what the mask adds to its logits, and which examples see any of it."""
        width, mask = room(q.device)[0], self.mask
        for start in range(columns.start, columns.stop, width):
            here = slice(start, min(start + width, columns.stop))
            past = mask.kinds == {"causal"} and here.stop <= rows.start + mask.offset + 1
            visible = mask.block(rows, here, q.device) if self.hides and not past else None
            if visible is None or visible.all():
                yield here, None, [True]
                continue
            alive = visible.flatten(1).any(1).tolist()
            if any(alive):
                zero = torch.zeros((), dtype=exact(q), device=q.device)
                yield here, torch.where(visible.flip(2) if self.woven else visible, zero, -torch.inf), alive

    def take(self, x: Tensor, rows: slice) -> Tensor:
        """Rows of [batch, heads, queries, width], contiguous and in the type of the arithmetic."""
        x = x[:, :, rows].to(exact(x))
        return (x.flip(2) if self.woven else x).contiguous()

    def give(self, x: Tensor, into: Tensor, rows: slice) -> None:
        """The inverse of `take`."""
        into[:, :, rows] = x.flip(2) if self.woven else x

    def added(self, tensors: Sequence[Tensor], rows: slice, columns: slice, queries: int) -> Tensor | None:
        """The bias of a tile, [batch or 1, heads, rows, columns]."""
        if self.woven:
            line = tensors[0][:, diagonal(rows, columns, queries)]
            return line.unfold(-1, columns.stop - columns.start, 1).unsqueeze(0)
        return self.bias.replace(*tensors).block(rows, columns) if self.bias is not None else None

    def logits(
        self,
        score: Score,
        out: Tensor,
        flat: Tensor,
        q: Tensor,
        k: Tensor,
        level: Tensor,
        added: Tensor | None,
        hidden: Tensor | None,
    ) -> None:
        """The logits of a part to the base of two, on a level of each row, into `out`, of which `flat` is a view."""
        if added is None:
            out.copy_(level)
        else:
            torch.add(level, added, alpha=LOG2E, out=out)
        score.onto(flat, q, k)
        if hidden is not None:
            out += hidden

    def collect(
        self, added: Tensor, grad: Tensor, leaves: Sequence[Tensor], into: Sequence[Tensor | None], at: list[slice]
    ) -> None:
        """Add to `into` the gradients of the tensors of the bias, given that of the tile of it at rows and columns."""
        if type(self.bias) is Dense and into[0] is not None:  # autograd would make an N x N gradient for every tile
            inner = [slice(max(x.start - self.bias.prefix, 0), max(x.stop - self.bias.prefix, 0)) for x in at]
            left = [max(self.bias.prefix - x.start, 0) for x in at]
            into[0][:, :, inner[0], inner[1]] += grad[:, :, left[0] :, left[1] :]
            return
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with ordered():
            found = iter(torch.autograd.grad(added, wanted, grad, allow_unused=True))
        for part in into:
            if part is not None and (more := next(found)) is not None:
                part += more


class Additive(torch.autograd.Function):
    """Attention with an additive bias; the gradient is written out."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, job: Job, *tensors: Tensor) -> Tensor:
        kind, space = exact(q), Scratch(q)
        keys, values = job.score.keys(k.to(kind)), v.to(kind).contiguous()
        out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=kind, device=q.device)
        level = torch.full((*q.shape[:3], 1), torch.inf, dtype=kind, device=q.device)
        for rows, columns in blocks(job.mask, q.shape[2], k.shape[2], job.block):
            query = job.score.queries(job.take(q, rows))
            ground, total, mean = (query.new_zeros(*query.shape[:3], width) for width in (1, 1, v.shape[-1]))
            top = torch.full_like(ground, torch.finfo(kind).min if job.null is None else job.null * LOG2E)
            if job.null is not None:
                total += 1
            works = [
                (p, p.flat(query), p.keys(keys), p.keys(values), p.of(top), p.of(total), p.of(mean), p.flat(mean))
                for p in job.parts(rows, columns, q, k.shape[1])
            ]
            for here, hidden, alive in job.tiles(rows, columns, q):
                added, score = job.added(tensors, rows, here, q.shape[2]), job.score.at(rows, here)
                for part, part_q, part_k, part_v, high, sums, means, flat_means in works:
                    if not alive[part.batch.start % len(alive)]:
                        continue
                    weights, flat, _, _ = space.cut(part, rows, here)
                    extra = part.of(added), part.of(hidden)
                    job.logits(score, weights, flat, part_q, part_k[:, here], part.of(ground), *extra)
                    now = torch.maximum(high, weights.amax(-1, keepdim=True))
                    fade = high.sub_(now).exp2_()
                    weights.sub_(now).exp2_()
                    sums.mul_(fade).add_(weights.sum(-1, keepdim=True))
                    means.mul_(fade)
                    flat_means.baddbmm_(flat, part_v[:, here])
                    high.copy_(now)
            job.give(mean / total.clamp(min=torch.finfo(kind).tiny), out, rows)  # a row that sees nothing gives 0
            job.give(torch.where(total > 0, top + total.log2(), torch.inf), level, rows)
        ctx.job = job
        ctx.save_for_backward(q, k, v, out, level, *tensors)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, ...]:
        return once(partial(Additive.pull, ctx.job, ctx.needs_input_grad), down, *ctx.saved_tensors)

    @staticmethod
    def pull(job: Job, wanted: Sequence[bool], down: Tensor, *saved: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients."""
        q, k, v, out, level, *tensors = saved
        want_q, want_k, want_v, _, *want = wanted
        keys, values = job.score.keys(k.to(exact(q))), v.to(exact(q)).contiguous()
        into = [torch.zeros_like(t) if need else None for t, need in zip(tensors, want, strict=True)]
        learned, line = any(want) and not job.woven, into[0] if job.woven else None
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
        # Kept transposed: products that are wide run faster than products that are tall.
        dk, dv = (torch.zeros_like(x.mT, memory_format=torch.contiguous_format) for x in (keys, values))
        first, second = Scratch(q), Scratch(q, margin=job.woven)
        with torch.autocast(q.device.type, enabled=False):
            for rows, columns in blocks(job.mask, q.shape[2], k.shape[2], job.block):
                query, push = job.score.queries(job.take(q, rows)), job.take(down, rows)
                less, mean = -job.take(level, rows), -(push * job.take(out, rows)).sum(-1, keepdim=True)
                back = torch.zeros_like(query)
                works = [
                    (p, p.flat(query), p.keys(keys), p.keys(values), p.of(less), p.flat(push), p.of(mean), p.flat(back))
                    for p in job.parts(rows, columns, q, k.shape[1])
                ]
                for here, hidden, alive in job.tiles(rows, columns, q):
                    leaves = [
                        t.detach().requires_grad_(need and learned) for t, need in zip(tensors, want, strict=True)
                    ]
                    with torch.set_grad_enabled(learned and type(job.bias) is not Dense):
                        added = job.added(leaves, rows, here, q.shape[2])
                    below, full = None, all(alive)
                    if learned and added is not None:
                        below = torch.empty_like(added) if full else torch.zeros_like(added)
                    under = line[:, diagonal(rows, here, q.shape[2])] if line is not None else None
                    score = job.score.at(rows, here)
                    for part, part_q, part_k, part_v, lower, part_push, means, part_pull in works:
                        if not alive[part.batch.start % len(alive)]:
                            continue
                        weights, flat, _, _ = first.cut(part, rows, here)
                        slope, tilt, margin, skew = second.cut(part, rows, here)
                        extra = part.of(added), part.of(hidden)
                        job.logits(score, weights, flat, part_q, part_k[:, here], lower, *extra)
                        weights.exp2_()
                        if want_v:
                            part.keys(dv)[..., here].baddbmm_(part_push.mT, flat)
                        slope.copy_(means)
                        tilt.baddbmm_(part_push, part_v[:, here].mT)
                        slope *= weights
                        own = part_pull if want_q else None, part.keys(dk)[..., here] if want_k else None
                        score.pull(tilt, part_q, part_k[:, here], *own)
                        if under is not None:
                            margin.zero_()
                            under[part.heads] += diagonals(skew).view(*slope.shape[:2], -1).sum(0)
                        elif below is not None:
                            share = part.of(below)
                            fresh = full and (part.batch.start == 0 or len(below) > 1)
                            (share.copy_ if fresh else share.add_)(slope.sum_to_size(share.shape))
                    if below is not None and added is not None:
                        job.collect(added, below, leaves, into, [rows, here])
                job.give(back, dq, rows)
        job.score.done(dq if want_q else None, dk if want_k else None)
        found = (
            grad.to(like.dtype, memory_format=torch.contiguous_format) if need else None
            for grad, like, need in ((dq, q, want_q), (dk.mT, k, want_k), (dv.mT, v, want_v))
        )
        return *found, None, *into


class Scratch:
    """One allocation from which the logits of parts are cut: fresh pages would cost more than the arithmetic."""

    def __init__(self, q: Tensor, *, margin: bool = False) -> None:
        self.space, self.margin = torch.empty(0, dtype=exact(q), device=q.device), margin
        self.views: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def cut(self, part: Part, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Uninitialised [batch, heads, rows, columns]; the same as `Part.flat`; what lies behind its rows; `skewed`."""
        batch, heads, groups = (x.stop - x.start for x in part)
        name = batch, heads, groups, rows.stop - rows.start, columns.stop - columns.start
        if name not in self.views:
            height, width = name[3:]
            wide = width + height if self.margin else width
            size = batch * heads * height * wide
            if size > len(self.space):
                self.space, self.views = self.space.new_empty(size), {}
            whole = self.space[:size].view(batch, heads, height, -1)
            flat = whole.view(batch * groups, -1, wide)
            self.views[name] = whole[..., :width], flat[..., :width], whole[..., width:], skewed(whole)
        return self.views[name]
