"""Sinks: a head may attend to nothing, because the softmax's denominator has one term that belongs to no token.

That term is a null token before all others: a key that every query sees, whatever the mask says, with value 0. So the
form is plain softmax attention over one key more, on whatever Auto picks; a null query stands beside the null key, so
that plain causality stays the plain causality that flash kernels know. Masks (`Mask.null`) and biases (their prefix)
count it. In decoding, where nothing is hidden, there is no null query.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.bias import Bias
from zoo.kernel import Kernel, Mask
from zoo.position import Geometry
from zoo_kernels.features import PIECES, Featured, attention, pieces, precise, spare, widen
from zoo_kernels.sdpa import needed


class OffByOne(Featured):
    """Softmax with 1 added to its denominator, so that a head may attend to nothing.

    Source: Miller 2023, "Attention Is Off By One", evanmiller.org; "zero sink" in Xiao et al. 2023, arXiv:2309.17453.
    weights = exp(l) / (1 + sum exp(l)) with logits l = scale q k' + bias. Shapes, types and masks as in Eager. Carries
    biases up to Dense; a map of the logits is refused, since it would see the null token. Keys and values are copied
    once, to stand behind the null token's.
    """

    form = "softmax-off-by-one"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        return beside(self.inner, q, k, v, None, bias, mask or Mask(), scale)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        return drained(q, k, v, q.new_zeros(q.shape[1]), bias, mask, scale)


class Sink(Featured):
    """Softmax whose denominator has a learned term per head, an attention sink that is no token.

    Source: gpt-oss (OpenAI 2025, arXiv:2508.10925), after the sink tokens of Xiao et al. 2023, arXiv:2309.17453.
    weights = exp(l) / (exp(s_h) + sum exp(l)) with logits l = scale q k' + bias and one learned s per head. Shapes,
    types and masks as in Eager. The term enters as a channel of the queries, to float32's precision in any type.
    Carries biases up to Dense; a map of the logits is refused, since it would see the null token. Tokens as sinks are
    a mask, and go with any kernel.

    Args:
        start: Every s_h in the beginning; 0 is OffByOne.
    """

    form = "softmax-sink"
    divisible = True
    extra = PIECES

    def __init__(self, geometry: Geometry, *, start: float = 0.0) -> None:
        super().__init__(geometry)
        self.start = start
        self.logit = nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put every sink back to where it starts."""
        nn.init.constant_(self.logit, self.start)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        width, more = q.shape[-1], spare(q.shape[-1])
        q = widen(q, pieces((self.logit[self.share] / scale).view(-1, 1, 1), q.dtype), more)
        k, null = functional.pad(k, (0, more)), functional.pad(k.new_zeros(width), (0, more), value=1.0)
        return beside(self.inner, q, k, v, null, bias, mask or Mask(), scale)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        return drained(q, k, v, self.logit[self.share], bias, mask, scale)


def beside(
    inner: Kernel, q: Tensor, k: Tensor, v: Tensor, null: Tensor | None, bias: Bias | None, mask: Mask, scale: float
) -> Tensor:
    """Softmax attention with the key `null` [width] (None: 0), of value 0, before all others."""
    key = k.new_zeros(()) if null is None else null
    k = torch.cat((key.expand(*k.shape[:2], 1, k.shape[-1]), k), 2)
    v = functional.pad(v, (0, 0, 1, 0))
    if bias is None and not needed(mask, q.shape[2], k.shape[2] - 1):
        return inner(q, k, v, mask=Mask(), scale=scale)
    q = functional.pad(q, (0, 0, 1, 0))
    return inner(q, k, v, bias=moved(bias, mask), mask=joined(mask), scale=scale)[:, :, 1:]


def joined(mask: Mask) -> Mask:
    """The mask with one more null token, made once per forward pass and shared by layers."""
    if "null" not in mask.memo:
        mask.memo["null"] = replace(mask, null=mask.null + 1, memo={})
    return mask.memo["null"]


def moved(bias: Bias | None, mask: Mask) -> Bias | None:
    """The bias of the same tokens behind one more prefix token; layers that share a fixed bias share this one too."""
    if bias is None:
        return None
    kept = mask.memo.get("moved")
    if kept is not None and kept[0] is bias:
        return kept[1]
    other = copy.copy(bias)
    other.prefix = bias.prefix + 1
    if not any(tensor.requires_grad for tensor in bias.tensors):
        mask.memo["moved"] = bias, other
    return other


def drained(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, bias: Bias | None, mask: Mask | None, scale: float
) -> Tensor:
    """The form by its definition: `sink` [heads] is one more logit of each row, whose weight is dropped."""
    with torch.autocast(q.device.type, enabled=False):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        a, b, c, s = precise(q, k, v, sink)
        return attention(a @ b.mT * scale, c, bias, mask, s.to(a)).to(q.dtype)
