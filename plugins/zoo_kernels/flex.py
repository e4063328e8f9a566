"""Flex: FlexAttention, which compiles a bias and a mask into one fused kernel.

A rung up to Pointwise is a score_mod as it stands, a mask a mask_mod. What torch's documentation and bug reports ask
for is kept here: the score_mod is a new closure in each forward, so that its tensors join the autograd graph; each
tensor that carries a gradient is looked up once; a 0-d tensor becomes a vector of one (its gradient was wrong until
torch 2.14); the number of cached tokens is a tensor, so that decoding does not compile anew for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Bias, Pointwise

BLOCK = 128
"""Rows and columns of a block of the mask; blocks of which nothing is seen are skipped."""


class Flex(Kernel):
    """FlexAttention (torch.nn.attention.flex_attention), compiled: trains on CUDA, inference only on the CPU.

    Source: Dong et al. 2024, arXiv:2412.05496. Gradients of a learned bias are summed by atomic additions, so they
    are not the same bits twice. On the CPU every new length is compiled anew, and cached decoding is refused.
    """

    fuses = Pointwise

    def refuses(self, request: Request) -> list[str]:
        reasons = []
        if request.device not in (None, "cuda", "cpu", "xpu"):
            reasons.append(f"FlexAttention does not run on {request.device}.")
        if request.device in ("cpu", "mps") and request.training:
            reasons.append("FlexAttention has no backward pass on the CPU; it trains on CUDA only.")
        if request.device == "cpu" and not able():
            reasons.append("FlexAttention on the CPU needs Linux or Windows and AVX2.")
        if request.dtype == torch.float64:
            reasons.append("FlexAttention computes in float32, so float64 would be float64 in name only.")
        if request.device != "cpu" and min(request.head_dim, request.value_dim) < 16:
            reasons.append("FlexAttention on a GPU needs heads at least 16 wide.")
        if request.learned and torch.are_deterministic_algorithms_enabled():
            reasons.append("FlexAttention sums the gradients of a learned bias in no fixed order.")
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        mask = mask or Mask()
        if q.device.type == "cpu":
            if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
                raise ZooError("The kernel Flex cannot train on the CPU: FlexAttention has no backward pass there.")
            if mask.offset:
                raise ZooError("The kernel Flex cannot decode with a cache on the CPU. Try: --model.kernel SDPA")
        return attention(q.device.type)(
            q,
            k,
            v,
            score_mod=score(bias.climb(Pointwise)) if bias is not None else None,
            block_mask=blocks(mask, q.shape[2], k.shape[2], q.device),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )


@cache
def attention(device: str) -> Callable[..., Any]:
    """The compiled function. Whole graphs only, or else torch would in silence materialise the logits."""
    return torch.compile(flex_attention, fullgraph=True, dynamic=False if device == "cpu" else None)


def able() -> bool:
    """Whether torch compiles FlexAttention for this CPU."""
    try:
        from torch._inductor.kernel.flex.flex_cpu import check_cpu_supported
    except ImportError:  # torch moved it; torch will say so itself
        return True
    return bool(check_cpu_supported())


def score(bias: Pointwise) -> Callable[..., Tensor]:
    """The score_mod of a bias: prefix rows and columns get 0."""
    first, prefix, value = bias.first, bias.prefix, bias.value
    scalars = tuple(t.ndim == 0 for t in bias.tensors)
    tensors = tuple(t.reshape(1) if t.ndim == 0 else t for t in bias.tensors)

    def mod(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        read = [t[h * 0] if scalar else t for t, scalar in zip(tensors, scalars, strict=True)]
        if not prefix:
            return logit + value(b, h + first, i, j, *read)
        inside = (i >= prefix) & (j >= prefix)
        row, column = (torch.where(x >= prefix, x - prefix, 0) for x in (i, j))
        return logit + torch.where(inside, value(b, h + first, row, column, *read), 0.0)

    return mod


def blocks(mask: Mask, queries: int, keys: int, device: torch.device) -> BlockMask | None:
    """The mask for FlexAttention, made once per forward pass and shared by layers."""
    if not mask.kinds:
        return None
    name = ("flex", queries, keys, device)
    if name not in mask.memo:
        shifted, offset = replace(mask, offset=0), torch.tensor([mask.offset], device=device)

        def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return shifted.value(b, i + offset[b * 0], j)

        batch = next((len(t) for t in (mask.documents, mask.padding) if t is not None), None)
        make = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
        mask.memo[name] = make(mod, batch, None, queries, keys, device=device, BLOCK_SIZE=BLOCK)
    return mask.memo[name]
