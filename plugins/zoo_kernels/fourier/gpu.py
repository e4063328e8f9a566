"""Fourier integral attention on a GPU: what lies around the Triton kernels of `device`, which it imports when asked.

Backward is one pass over the tiles, in which the queries' gradients are summed by atomic additions; or, where the order
of all sums is to be fixed, two passes, which take about twice the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernel import Mask
from zoo_kernels.rows import once

TILE = 64
"""Queries and keys in a tile, a power of two of at least 16."""
FAR = 2**30
"""Beyond any distance of two tokens."""


def available() -> str | None:
    """Why these kernels cannot run here, as a sentence; None where they can."""
    if find_spec("triton") is None:
        return "The GPU kernels of Fourier attention need Triton, which comes with torch for CUDA."
    if not torch.cuda.is_available():
        return "The GPU kernels of Fourier attention need a CUDA device."
    return None


class Sight(NamedTuple):
    """A mask as bounds on j - i, of buffer indices that begin at 0 for queries and keys alike."""

    offset: int
    low: int
    high: int
    sinks: int
    cap: int
    """Up to which the sinks are seen."""

    @classmethod
    def of(cls, mask: Mask) -> Sight:
        window = FAR if mask.window is None else min(mask.window, FAR)
        cap = mask.offset if mask.causal else FAR
        high = min(cap, mask.offset + window - 1)
        sinks = mask.sinks if mask.window is not None else 0
        return cls(mask.offset, mask.offset - window + 1, high, sinks, cap)


@dataclass(frozen=True, eq=False)
class Job:
    """What a call does, but for its tensors; see `attend`."""

    mask: Mask
    null: float | None
    radial: bool
    deterministic: bool
    fast: bool

    def numbers(self, a: Tensor, b: Tensor, v: Tensor) -> dict[str, Any]:
        """What all kernels are told."""
        (_, heads, queries, channels), (_, groups, keys, width) = a.shape, v.shape
        told = self.mask.documents, self.mask.padding
        documents, padding = (x if x is None else x.expand(len(a), *x.shape[1:]).contiguous() for x in told)
        found: dict[str, Any] = {"DOCUMENTS": documents, "PADDING": padding, "HEADS": heads, "GROUPS": groups}
        found |= {"M": queries, "N": keys, "MP": up(queries, TILE), "NP": up(keys, TILE), "SIZE": TILE}
        found |= {name.upper(): value for name, value in Sight.of(self.mask)._asdict().items()}
        each = 2 if self.radial else 1
        found |= {"RADIAL": self.radial, "LIVE": channels // each, "TERMS": up(channels // each, 8)}
        found["CHANNELS"] = found["TERMS"] * each
        found |= {"WIDTH": width, "WIDE": max(16, 1 << (width - 1).bit_length()), "FAST": self.fast}
        # Of float32 values. Three products of TF32 are as good as one of float32, for which registers do not suffice.
        coarse = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return found | {"PRECISION": "tf32" if coarse else "tf32x3", "num_warps": 8, "num_stages": 1}

    def lean(self, v: Tensor) -> dict[str, int]:
        """Where a kernel's loops do with 128 registers a thread, two programs fit a multiprocessor instead of one."""
        known = self.fast and not self.radial and v.dtype.itemsize == 2 and v.shape[-1] <= 64
        return {"maxnreg": 128} if known else {}


def up(count: int, step: int) -> int:
    """The next multiple."""
    return -(-count // step) * step


def turned(x: Tensor, channels: int, tokens: int) -> Tensor:
    """[batch, heads, length, width] as [batch x heads, channels, tokens], with zeros behind."""
    more = tokens - x.shape[2], channels - x.shape[3]
    return functional.pad(x.flatten(0, 1).mT, (0, more[0], 0, more[1])).contiguous()


def back(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `turned`, summed over the query heads of a group."""
    x = x[:, : like.shape[3], : like.shape[2]].mT
    return x.unflatten(0, (*like.shape[:2], -1)).sum(2)


class Fourier(torch.autograd.Function):
    """Attention of `attend`, after types have been settled."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, v: Tensor, rate: Tensor, line: Tensor | None, job: Job) -> Tensor:
        from zoo_kernels.fourier import device

        numbers = job.numbers(a, b, v)
        batch, heads, queries, _ = a.shape
        tiles = batch * heads * numbers["MP"] // TILE
        turn_a, turn_b = turned(a, numbers["CHANNELS"], numbers["MP"]), turned(b, numbers["CHANNELS"], numbers["NP"])
        out, level = v.new_empty(batch, heads, queries, v.shape[3]), a.new_empty(batch, heads, numbers["MP"])
        null = -math.inf if job.null is None else job.null * math.log2(math.e)
        with on(a):
            device.forward[(tiles,)](turn_a, turn_b, v, rate, line, out, level, NULL=null, **numbers, **job.lean(v))
        ctx.job = job
        ctx.save_for_backward(a, b, v, rate, line, out, level)
        return out

    @staticmethod
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, ...]:
        return once(partial(Fourier.pull, ctx.job, ctx.needs_input_grad), down, *ctx.saved_tensors)

    @staticmethod
    def pull(job: Job, wanted: Sequence[bool], down: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
        """The gradients."""
        from zoo_kernels.fourier import device

        a, b, v, rate, line, out, level = saved
        numbers, down = job.numbers(a, b, v), down.contiguous()
        (batch, heads, queries, _), keys = a.shape, b.shape[2]
        owners, width = batch * heads, v.shape[3]
        programs = owners * numbers["MP"] // TILE, owners * numbers["NP"] // TILE
        turn_a, turn_b = turned(a, numbers["CHANNELS"], numbers["MP"]), turned(b, numbers["CHANNELS"], numbers["NP"])
        mean = functional.pad((down.float() * out.float()).sum(-1), (0, numbers["MP"] - queries))
        da, db = torch.zeros_like(turn_a), a.new_zeros(owners, *turn_b.shape[1:])
        dv, learned = a.new_empty(owners, keys, width), line is not None and wanted[4]
        drate = a.new_empty(programs[0 if job.deterministic else 1])
        into = None
        if learned:
            into = a.new_zeros(*((programs[0],) if job.deterministic else (heads,)), queries + keys - 1)
        given = turn_a, turn_b, v, rate, line, down, level, mean, da
        with on(a):
            if job.deterministic:
                device.rows[(programs[0],)](*given, drate, into, **numbers, **job.lean(v))
                device.columns[(programs[1],)](*given, db, dv, None, None, ROWS=False, **numbers, **job.lean(v))
            else:
                device.columns[(programs[1],)](*given, db, dv, drate, into, ROWS=True, **numbers)
        if into is not None and job.deterministic:
            into = into.view(batch, heads, -1, into.shape[-1]).sum((0, 2))
        dv = dv.unflatten(0, (*v.shape[:2], -1)).sum(2).to(v.dtype)
        return back(da, a), back(db, b), dv, drate.view(batch, heads, -1).sum((0, 2)), into, None


def on(x: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def attend(
    a: Tensor,
    b: Tensor,
    v: Tensor,
    rate: Tensor,
    *,
    mask: Mask,
    line: Tensor | None = None,
    null: float | None = None,
    radial: bool = False,
    deterministic: bool = False,
    fast: bool = True,
) -> Tensor:
    """Softmax over rate x sum of ln|sinc(a_c - b_c)|, times v; [batch, heads, queries, value width] in v's type.

    Source: Nguyen et al. 2022, arXiv:2206.00206. A row that sees nothing gives 0. Differentiable but for the null.

    Args:
        a: [batch, heads, queries, width], float32: queries times R.
        b: [batch, groups, keys, width], float32: keys times R; head h reads group h groups // heads.
        v: [batch, groups, keys, value width].
        rate: [heads], float32: the power p.
        mask: What is seen; without null tokens.
        line: [heads, queries + keys - 1], float32: added to the logits, over j - i = 1 - queries ... keys - 1.
        null: Logit of one more key, whose value is 0.
        radial: Channels are pairs, and the argument of a sinc is the distance of two of them.
        deterministic: Sum all gradients in a fixed order, also if torch.use_deterministic_algorithms asks for it.
        fast: Use the hardware's approximate sine, reciprocal and logarithm; False is for comparisons.
    """
    from zoo_kernels.fourier import device

    kind = v.dtype
    ordered = deterministic or torch.are_deterministic_algorithms_enabled()
    job = Job(mask, null, radial, ordered, fast and not device.INTERPRETED)
    v = v.float() if kind == torch.float64 else v
    line = line if line is None else line.float().contiguous()
    return Fourier.apply(a.float(), b.float(), v.contiguous(), rate.float(), line, job).to(kind)
