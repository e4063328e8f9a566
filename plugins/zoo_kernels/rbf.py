"""RBF: attention by nearness; a query weighs keys by a Gaussian of their distance.

|q - k|^2 is |q|^2 - 2 q k' + |k|^2. The first is the same for all keys of a query, so the softmax drops it, and the
last is one more channel of the keys: the form is plain softmax attention, on whatever Auto picks, flash included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zoo.bias import Bias
from zoo.kernel import Mask, Request
from zoo_kernels.features import PIECES, Featured, attention, pieces, precise, spare, widen


class RBF(Featured):
    """Softmax over squared distances of queries and keys, also known as L2 attention.

    Source: Kim et al. 2021, arXiv:2006.04710; the Gaussian baseline of FourierFormer, Nguyen et al. 2022,
    arXiv:2206.00206. weights = softmax(-scale/2 |q - k|^2 + bias): with queries and keys of norm 1 the softmax of their
    dot products. Queries and keys keep projections of their own (Kim et al. tie them, for a Lipschitz bound). Shapes,
    types and masks as in Eager; |k|^2 is float32 in any type. Carries biases up to Dense; refuses maps of the logits,
    rotations that change norms, and factors per query.
    """

    form = "rbf"
    extra = PIECES

    def refuses(self, request: Request) -> list[str]:
        reasons = super().refuses(request)
        if not request.isometric:
            reasons.append(
                "RBF measures distances of queries from keys, and this rotation changes norms: a distance would tell "
                "where the tokens stand. Rotations that keep norms (RoPE) and biases (ALiBi) go with it."
            )
        if request.scaled:
            reasons.append(
                "RBF has no place for a factor per query: it would move the query instead of sharpening its row."
            )
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        more = spare(q.shape[-1])
        norms = precise(k)[0].square().sum(-1, keepdim=True)
        q, k = functional.pad(q, (0, more), value=1.0), widen(k, pieces(norms / -2, k.dtype), more)
        return self.inner(q, k, v, bias=bias, mask=mask, scale=scale)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            a, b, c = precise(q, k, v)
            distances = torch.stack([(row.unsqueeze(-2) - b).square().sum(-1) for row in a.unbind(2)], 2)
            return attention(distances * (-scale / 2), c, bias, mask).to(q.dtype)
