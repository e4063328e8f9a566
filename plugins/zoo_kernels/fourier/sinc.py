"""The score of Fourier integral attention on a tile, in plain torch: any device, any precision, no compiler.

With u the distance of a query from a key in one component, times R, the score is the sum of ln |sinc u| over the
components, times p. The power comes as the last channel of the queries, so that its gradient is one of theirs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo_kernels.scores import Score

GROUP = 4
"""Components between two logarithms: their product does not underflow in float32."""
SMALLEST = 1e-9
"""|sin u| is not taken to be smaller: at the zeros of sinc the weight is 0 all the same."""
ZETA = [sum(n**-power for n in range(1, 2000)) for power in range(4, 24, 2)]
SERIES = [-2 * zeta / math.pi**power for power, zeta in zip(range(4, 24, 2), ZETA, strict=True)]
"""h(u) is the sum over n of -2 zeta(2n) / pi^(2n) u^(2n - 2); the first is -1/3, these follow."""


class Sinc(Score):
    """p times the sum over components of ln |sinc|; source: Nguyen et al. 2022, arXiv:2206.00206.

    Args:
        pairs: Components are pairs of neighbouring channels, and u is their Euclidean distance; otherwise channels.
        learned: The power wants a gradient.
    """

    def __init__(self, *, pairs: bool, learned: bool) -> None:
        self.width, self.learned = 2 if pairs else 1, learned

    def keys(self, x: Tensor) -> Tensor:
        return x.mT.contiguous().mT

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        logits.addcmul_(q[..., -1:], self.logarithm(q, k))

    def pull(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        self.pull_tokens(tilt, q, k, dq, dk)
        if dq is not None and self.learned:
            dq[..., -1] += (tilt * self.logarithm(q, k)).sum(-1) * math.log(2)

    def logarithm(self, q: Tensor, k: Tensor) -> Tensor:
        """Sum of log2 |sinc|, [parts, rows, columns], of q, whose last channel does not count, and k."""
        total, product = torch.zeros((), dtype=q.dtype, device=q.device), None
        count = k.shape[-1] // self.width
        for c in range(count):
            w, apart = self.apart(q, k, c)
            u = apart[0] if len(apart) == 1 else w.sqrt()
            factor = torch.where(w == 0, 1.0, u.sin() / u)
            product = factor if product is None else product.mul_(factor)
            if c % GROUP == GROUP - 1 or c == count - 1:
                total, product = total + product.abs_().clamp_(min=1e-36).log2_(), None
        return total

    def pull_tokens(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        """The gradients of queries and keys."""
        tilt = tilt * q[..., -1:]
        for c in range(k.shape[-1] // self.width):
            w, apart = self.apart(q, k, c)
            steep = tilt * slope(w)
            for n, difference in enumerate(apart):
                part, d = steep * difference, c * self.width + n
                if dq is not None:
                    dq[..., d] += part.sum(-1)
                if dk is not None:
                    dk[:, d] -= part.sum(-2)

    def apart(self, q: Tensor, k: Tensor, c: int) -> tuple[Tensor, list[Tensor]]:
        """u^2 of a component, and the differences that it is made of."""
        apart = [q[..., d, None] - k[..., d].unsqueeze(-2) for d in range(c * self.width, (c + 1) * self.width)]
        w = apart[0].square()
        for more in apart[1:]:
            w = w.addcmul(more, more)
        return w, apart


def slope(w: Tensor) -> Tensor:
    """h(u) = (cot u - 1 / u) / u at w = u^2: the derivative of ln |sinc u| is h(u) u.

    Below |u| = 1/2 by its series: there the two terms are large and nearly the same.
    """
    u = w.sqrt()
    sine = u.sin()
    sine = torch.where(sine.abs() < SMALLEST, SMALLEST, sine)
    far = (u * u.cos() - sine) / (w * sine)
    near = torch.full_like(w, SERIES[-1])
    for coefficient in SERIES[-2::-1]:
        near = near.mul_(w).add_(coefficient)
    return torch.where(w < 0.25, near.mul_(w).sub_(1 / 3), far)
