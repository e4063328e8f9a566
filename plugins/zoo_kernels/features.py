"""Features: what kernels share that are softmax attention of other queries and keys, computed by whatever Auto picks.

A term of the logits that belongs to a query or to a key alone is one more channel, against a constant in the other, so
flash attention computes it. A channel may hold numbers far larger than its neighbours; it is therefore cut into pieces
of 8 bits, which bfloat16, float16 and TF32 hold exactly, and the matrix product puts them together again in float32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.auto import Auto
from zoo.bias import Bias, Dense
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Geometry


class Featured(Kernel):
    """Base class of kernels that hand other queries and keys to Auto; a subclass says what form that is.

    It carries what is added to the logits. A map of the logits would be given the changed queries and keys, or see a
    key that is no token: it is refused.
    """

    fuses = Dense
    extra: int = 0
    """Channels that it adds to queries and keys; `spare` makes room for them."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.inner = Auto(geometry)

    def refuses(self, request: Request) -> list[str]:
        if request.device is None:  # nobody chooses before the device is known
            return []
        wide = request.head_dim + (spare(request.head_dim, self.extra) if self.extra else 0)
        try:
            self.inner.choose(replace(request, head_dim=wide))
        except ZooError as error:
            return [str(error)]
        return []


PIECES = 3
"""Pieces of 8 bits make float32's 24."""


def spare(width: int, extra: int = PIECES) -> int:
    """Channels to add to `width` so that `extra` fit and the sum is a multiple of 8, as fused kernels want it."""
    return -(-(width + extra) // 8) * 8 - width


def pieces(x: Tensor, kind: torch.dtype) -> list[Tensor]:
    """Tensors of type `kind` that add up to the float `x`; its gradient is that of the first, since all are alike."""
    if kind == torch.float64:
        return [x.double()]
    x = x.float()
    found, rest = [], x.detach()
    for _ in range(PIECES):
        # Bits are cut, not rounded through bfloat16: a compiler may leave a cast there and back out.
        found.append((rest.view(torch.int32) & -(2**16)).view(torch.float32))
        rest = rest - found[-1]
    found[0] = x - (x.detach() - found[0])
    return [piece.to(kind) for piece in found]


def widen(x: Tensor, channels: list[Tensor], total: int) -> Tensor:
    """`x` [batch, heads, tokens, width] with channels [..., 1] beside it and zeros up to `total` more."""
    shape = x.shape[:-1]
    more = [channel.expand(*shape, 1) for channel in channels]
    return torch.cat((x, *more, x.new_zeros(()).expand(*shape, total - len(more))), -1)


def precise(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32, or better where they are."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def attention(logits: Tensor, v: Tensor, bias: Bias | None, mask: Mask | None, sink: Tensor | None = None) -> Tensor:
    """Softmax attention of given logits [batch, heads, queries, keys], by definition; the oracle of these forms.

    Args:
        logits: Without bias.
        v: [batch, heads, keys, width].
        bias: Added.
        mask: Rows that see nothing give 0.
        sink: [heads], one more logit of every row, which no mask hides and whose weight is dropped.
    """
    rows, columns = slice(0, logits.shape[2]), slice(0, logits.shape[3])
    visible = (mask or Mask()).block(rows, columns, logits.device)
    if bias is not None:
        logits = logits + bias.block(rows, columns)
    if visible is not None:
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    if sink is not None:
        logits = torch.cat((logits, sink.view(-1, 1, 1).expand(*logits.shape[:3], 1)), -1)
    weights = logits.softmax(-1)[..., : v.shape[2]]
    return (weights if visible is None else weights.masked_fill(~visible, 0.0)) @ v
