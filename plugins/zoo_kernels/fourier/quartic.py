"""FourierQuartic: Fourier integral attention to fourth order, on torch's fused softmax kernels.

ln |sinc u| is -u^2/6 - u^4/180 - ... Without what belongs to the query alone, which a softmax does not see, the first
two terms are a dot product of polynomials of the query with powers of the key: three channels for each and one more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.bias import Bias
from zoo.kernel import Mask, Request
from zoo.position import Geometry
from zoo_kernels.features import Featured, attention, spare
from zoo_kernels.fourier.bandwidth import Bandwidth, Per, Radius
from zoo_kernels.fourier.integral import unserved

SECOND, FOURTH = 1 / 6, 1 / 180
"""Coefficients of -ln |sinc u|."""


class FourierQuartic(Featured):
    """Softmax over -p times the sum over channels of u^2/6 + u^4/180, with u = R (q - k).

    Ours, after Nguyen et al. 2022, arXiv:2206.00206: their product of sinc functions to fourth order of its logarithm,
    which has no zeros and runs on any fused kernel. At "matched" R and queries and keys of variance one the outputs
    are within two percent of FourierIntegral's. Width of queries and keys: 3 head_dim + 1. Shapes and masks as in
    Eager; carries biases up to Dense; features are float32 or better, since bfloat16 loses what cancels between them.
    Refuses rotations, maps of the logits and factors per query.

    Raises ZooError for numbers that are not above 0.

    Args:
        power: p, above 0.
        learn_power: Learn one p per head, from `power` on.
        radius: R in the beginning: a number, "matched" to softmax attention, or that of the "official" release.
        per: What has an R of its own: the layer, each head, each channel, or both.
    """

    form = "fourier-quartic"
    divisible = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        power: float = 4.0,
        learn_power: bool = False,
        radius: Radius = "matched",
        per: Per = "both",
    ) -> None:
        super().__init__(geometry)
        self.extra = 2 * geometry.head_dim + 1
        self.bandwidth = Bandwidth(geometry, power=power, learn_power=learn_power, radius=radius, per=per)

    def refuses(self, request: Request) -> list[str]:
        reasons = super().refuses(request) + unserved("FourierQuartic", request)
        if request.rotation:
            reasons.append(
                "FourierQuartic takes queries from keys channel by channel, and a rotation moves their differences "
                "between channels. Encodings that are added to embeddings or logits go with it, and RBF goes with RoPE."
            )
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        with torch.autocast(q.device.type, enabled=False):
            a, b, values, rate = self.bandwidth.scaled(q, k, v, self.share, scale)
            more = spare(a.shape[-1], self.extra) - self.extra
            one, gap = torch.ones_like(a[..., :1]), (0, more)
            cubic = a * (2 * SECOND) + a.pow(3) * (4 * FOURTH)
            query = torch.cat((cubic, a.square() * (-6 * FOURTH), a * (4 * FOURTH), one), -1) * rate.view(-1, 1, 1)
            own = (b.square() * SECOND + b.pow(4) * FOURTH).sum(-1, keepdim=True)
            key = torch.cat((b, b.square(), b.pow(3), -own), -1)
            query, key = (torch.nn.functional.pad(x, gap) for x in (query, key))
            return self.inner(query, key, values.to(query.dtype), bias=bias, mask=mask).to(q.dtype)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            a, b, c, rate = self.bandwidth.scaled(q, k, v, self.share, scale)
            b, c = (x.repeat_interleave(a.shape[1] // x.shape[1], 1) for x in (b, c))
            squares = [(row.unsqueeze(-2) - b).square() for row in a.unbind(2)]
            rows = [(w * SECOND + w.square() * FOURTH).sum(-1) for w in squares]
            return attention(-rate.view(-1, 1, 1) * torch.stack(rows, 2), c.to(a.dtype), bias, mask).to(q.dtype)
