"""FourierIntegral: a query weighs keys by the product over channels of sinc(R (q - k)) to a power.

Everything is done with logarithms, so nothing underflows, and by tiles, so memory is linear in the length; the bias of
an encoding is added to the logarithm. What is wanted of R and p comes by autograd from R q, R k and p.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from zoo.bias import Bias, Dense
from zoo.errors import ZooError, listing
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Geometry
from zoo_kernels.features import attention
from zoo_kernels.fourier import choice
from zoo_kernels.fourier.bandwidth import Bandwidth, Per, Radius
from zoo_kernels.fourier.choice import Implementation

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FourierIntegral(Kernel):
    """Fourier integral attention: softmax over p times the sum over channels of ln |sinc(R (q - k))|.

    Source: FourierFormer, Nguyen et al. 2022, arXiv:2206.00206, in logarithms. weights_ij = softmax_j(p sum_d
    ln |sinc(R_hd (q_id - k_jd))| + bias_ij), with sinc(u) = sin(u) / u and one R per head and channel. A scale of the
    logits relative to 1 / sqrt(head_dim) multiplies p. Shapes and masks as in Eager, O(length x block) memory; carries
    biases up to Dense; trains on any device. It gives the same bits twice on a CPU, and on a GPU where
    torch.use_deterministic_algorithms asks for it. Under torch.compile it breaks the graph.

    Queries and keys are taken to float32 before they are subtracted. Rounded to bfloat16 by their projection (autocast)
    they leave logits good to 0.03 where R is "matched" to queries and keys of variance one in 64 channels or more (0.2
    in 16), and no better than several units where R is 1: train in float32, or float16. Refuses rotations, since turned
    queries and keys are further from each other in some channels and nearer in others depending on where they stand,
    and factors per query.

    Raises ZooError for numbers that are not above 0, and for an implementation that is not to be had.

    Args:
        power: p, above 0; 4 in the published models, even not needed, as |sinc| is taken.
        learn_power: Learn one p per head, from `power` on.
        radius: R in the beginning: a number, "matched" to softmax attention, or that of the "official" release.
        per: What has an R of its own: the layer, each head, each channel, or both.
        null: One more logit in every row, whose value is 0; the release's guard is -13.8155, ln 1e-6 (default: none).
        implementation: triton (on a GPU), native (C++, on a CPU), torch, or the fastest there is.
        block: Queries in a block, at most; memory grows with it.
    """

    form, fuses = "fourier", Dense
    divisible = True
    pairs = False
    """Whether a component is a pair of channels."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        power: float = 4.0,
        learn_power: bool = False,
        radius: Radius = "matched",
        per: Per = "both",
        null: float | None = None,
        implementation: Implementation = "auto",
        block: int = 256,
    ) -> None:
        super().__init__(geometry)
        name = type(self).__name__
        if block != int(block) or block < 1:
            raise ZooError(f"A block of {name} holds a whole number of queries, at least 1, and got {block}.")
        if null is not None and not math.isfinite(null):
            raise ZooError(f"The null logit of {name} is a finite number, or none; got {null}.")
        if implementation not in get_args(Implementation):
            raise ZooError(f"{name} runs as {listing(get_args(Implementation))}; got {implementation}.")
        self.bandwidth = Bandwidth(
            geometry, power=power, learn_power=learn_power, radius=radius, per=per, pairs=self.pairs
        )
        self.null, self.implementation, self.block = null, implementation, block

    def refuses(self, request: Request) -> list[str]:
        name, reasons = type(self).__name__, self.unserved(request)
        if request.rotation:
            reasons.append(
                f"{name} takes queries from keys channel by channel, and a rotation moves their differences between "
                "channels: weights would tell where the tokens stand, not how far apart. Encodings that are added to "
                "embeddings or logits (Sinusoidal, ALiBi, T5, FIRE) go with it, and FourierRadial goes with RoPE."
            )
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        fitting(type(self).__name__, q, k, v)
        with torch.autocast(q.device.type, enabled=False):
            a, b, values, rate = self.bandwidth.scaled(self.arranged(q), self.arranged(k), v, self.share, scale)
            out = choice.attend(
                a,
                b,
                values,
                rate,
                bias,
                mask or Mask(),
                self.implementation,
                null=self.null,
                pairs=self.pairs,
                block=self.block,
            )
            return out.to(q.dtype)

    def unserved(self, request: Request) -> list[str]:
        """Reasons that have nothing to do with rotations."""
        reasons = unserved(type(self).__name__, request)
        if request.device is not None and not reasons:
            kind = torch.promote_types(request.dtype or torch.float32, torch.float32)
            reason = choice.unfit(self.implementation, request.device, kind)
            reasons += [reason] if reason is not None else []
        return reasons

    def arranged(self, x: Tensor) -> Tensor:
        """Channels in the order in which components are taken from them."""
        return x

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            a, b, c, rate = self.bandwidth.scaled(self.arranged(q), self.arranged(k), v, self.share, scale)
            b, c = (x.repeat_interleave(a.shape[1] // x.shape[1], 1) for x in (b, c))
            rows = [self.distances(row.unsqueeze(-2) - b) for row in a.unbind(2)]
            logarithms = [torch.sinc(u / torch.pi).abs().clamp(min=1e-30).log().sum(-1) for u in rows]
            sink = None if self.null is None else rate.new_full((a.shape[1],), self.null)
            return attention(rate.view(-1, 1, 1) * torch.stack(logarithms, 2), c.to(a.dtype), bias, mask, sink).to(
                q.dtype
            )

    def distances(self, apart: Tensor) -> Tensor:
        """u of each component, given differences in each channel as `arranged`."""
        return apart


def fitting(name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ZooError for tensors that do not belong together: C++ would read what is not there."""
    (batch, heads, _, width), (groups, keys) = q.shape, k.shape[1:3]
    if k.shape != (batch, groups, keys, width) or v.shape[:3] != (batch, groups, keys) or heads % max(groups, 1):
        raise ZooError(
            f"{name} takes queries [batch, heads, queries, width], keys [batch, kv_heads, keys, width] and values "
            f"[batch, kv_heads, keys, any width], and got {[*q.shape]}, {[*k.shape]} and {[*v.shape]}."
        )


def unserved(name: str, request: Request) -> list[str]:
    """Why no form of Fourier attention serves a request, as far as all of them are alike."""
    reasons = []
    if request.scaled:
        reasons.append(f"{name} has no place for a factor per query: it would move the query, not sharpen its row.")
    if request.dtype is not None and request.dtype not in FLOATS:
        reasons.append(f"{name} computes with real floating-point numbers, and this is {request.dtype}.")
    return reasons
