"""Blocks of rows: any attention that is defined row by row, in memory linear in the length.

A block of queries meets whole rows of keys, so whatever a form does to a row (a softmax, a sigmoid, a count of gates)
it does as its definition says. Backward runs each block again under autograd, so a form needs no gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.bias import Bias
from zoo.kernel import Mask, attend

settings: Any = torch.utils.deterministic
Form = Callable[..., Tensor]
"""form(q, k, v, bias, visible, scale, rows, *tensors): some rows by definition, as `zoo.kernel.attend`."""


@torch.compiler.disable
def rowwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Bias | None,
    mask: Mask,
    scale: float,
    block: int,
    form: Form = attend,
    tensors: tuple[Tensor, ...] = (),
) -> Tensor:
    """Attention by blocks of `block` queries.

    Args:
        q: [batch, heads, queries, width].
        k: [batch, kv_heads, keys, width]; v likewise.
        bias: Of any rung.
        mask: The mask.
        scale: Of the logits.
        block: Queries in a block.
        form: What is computed of a block; called with keys from the first on.
        tensors: What the form itself learns, handed to it after `rows`.
    """
    named = () if bias is None else bias.tensors
    with torch.autocast(q.device.type, enabled=False):
        job = form, bias and bias.replace(), mask, scale, block, len(tensors)
        return Rowwise.apply(q, k, v, job, *tensors, *named)


def blocks(mask: Mask, queries: int, keys: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each block that has anything to see."""
    for start in range(0, queries, block):
        rows = slice(start, min(start + block, queries))
        columns = mask.columns(rows, keys)
        if columns.stop > columns.start:
            yield rows, columns


class Rowwise(torch.autograd.Function):
    """A form, row by row; backward runs each block again under autograd."""

    @staticmethod
    def part(q: Tensor, k: Tensor, v: Tensor, job: Any, tensors: Sequence[Tensor], rows: slice) -> Tensor:
        """One block of the output; its columns start at the first key."""
        form, bias, mask, scale, _, own = job
        visible = mask.block(rows, slice(0, k.shape[2]), q.device)
        bias = bias.replace(*tensors[own:]) if bias is not None else None
        return form(q, k, v, bias, visible, scale, rows, *tensors[:own])

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, job: Any, *tensors: Tensor) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(q, k, v, *tensors)
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        for rows, columns in blocks(job[2], q.shape[2], k.shape[2], job[4]):
            keys = slice(0, columns.stop)
            out[:, :, rows] = Rowwise.part(q[:, :, rows], k[:, :, keys], v[:, :, keys], job, tensors, rows)
        return out

    @staticmethod
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, ...]:
        return once(partial(Rowwise.pull, ctx.job, ctx.needs_input_grad), down, *ctx.saved_tensors)

    @staticmethod
    def pull(job: Any, wanted: Sequence[bool], down: Tensor, *saved: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients."""
        needs = [need for place, need in enumerate(wanted) if place != 3]
        into = [torch.zeros_like(t, dtype=exact(t)) if need else None for t, need in zip(saved, needs, strict=True)]
        with torch.autocast(down.device.type, enabled=False):
            for rows, columns in blocks(job[2], saved[0].shape[2], saved[1].shape[2], job[4]):
                # Where each of q, k, v is cut; the other tensors are used whole.
                places = [rows, slice(0, columns.stop), slice(0, columns.stop)]
                with torch.enable_grad():
                    leaves = [
                        (t.detach() if n > 2 else t.detach()[:, :, places[n]]).requires_grad_(needs[n])
                        for n, t in enumerate(saved)
                    ]
                    q, k, v, *tensors = leaves
                    out = Rowwise.part(q, k, v, job, tensors, rows)
                asked = [leaf for leaf in leaves if leaf.requires_grad]
                with ordered():
                    found = iter(torch.autograd.grad(out, asked, down[:, :, rows], allow_unused=True))
                for n, part in enumerate(into):
                    if part is not None and (more := next(found)) is not None:
                        target = part if n > 2 else part[:, :, places[n]]
                        target += more
        grads = [part.to(t.dtype) if part is not None else None for part, t in zip(into, saved, strict=True)]
        return *grads[:3], None, *grads[3:]


class Once(torch.autograd.Function):
    """Gradients that have none of their own.

    torch's `once_differentiable` tells those only who come by the output's gradient; a second derivative by what the
    gradients were computed from would lack a part of its terms without a word.
    """

    @staticmethod
    def forward(ctx: Any, pull: Callable[..., tuple[Tensor | None, ...]], *tensors: Tensor) -> Any:
        return pull(*tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "Attention by blocks writes its gradient out, and that cannot be differentiated once more. The kernel "
            "Eager, and the `reference` of each kernel, can be differentiated as often as you like."
        )


def once(pull: Callable[..., tuple[Tensor | None, ...]], *tensors: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients that `pull` makes of some tensors; whoever differentiates them is refused."""
    found: tuple[Tensor | None, ...] = Once.apply(pull, *tensors)
    return found


def exact(x: Tensor) -> torch.dtype:
    """The type of the arithmetic: float32, or float64 where the input is."""
    return torch.promote_types(x.dtype, torch.float32)


@contextmanager
def ordered() -> Iterator[None]:
    """Sums in a fixed order: the gradient of a look-up is otherwise summed by atomic additions, on the CPU too."""
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = fill
