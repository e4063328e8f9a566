"""Sigmoid: every key is weighed by itself, and nothing makes the weights of a row add up to 1.

A row may so attend to many keys fully, or to none. A shift of the logits by -log of the length keeps the sum of a row's
weights near 1 at first. The form is computed by blocks of rows, in memory linear in the length.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from zoo.bias import Bias, Logits
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask, grouped
from zoo.position import Geometry
from zoo_kernels.rows import exact, rowwise


class Sigmoid(Kernel):
    """Attention whose weights are sigmoids of the logits, without a normaliser.

    Source: Ramapuram et al. 2024, arXiv:2409.04431. weights = sigmoid(scale q k' + bias + shift), 0 for a masked key.
    Shapes, types and masks as in Eager; all arithmetic in float32 or better; O(length x block) memory, deterministic,
    trains on any device. Carries every rung; a map of the logits gets them without the shift. Under torch.compile it
    breaks the graph.

    Raises ZooError for a block below 1.

    Args:
        shift: Added to all logits (default: -log of the tokens of first training, prefix included).
        block: Queries in a block; memory grows with it.
    """

    form, fuses = "sigmoid", Logits

    def __init__(self, geometry: Geometry, *, shift: float | None = None, block: int = 128) -> None:
        super().__init__(geometry)
        if block < 1:
            raise ZooError(f"A block of Sigmoid holds at least 1 query, and got {block}.")
        self.shift = -math.log(geometry.prefix + math.prod(geometry.length)) if shift is None else shift
        self.block = block

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        form = partial(weigh, shift=self.shift)
        return rowwise(q, k, v, bias=bias, mask=mask or Mask(), scale=scale, block=self.block, form=form)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        rows, columns = slice(0, q.shape[2]), slice(0, k.shape[2])
        visible = (mask or Mask()).block(rows, columns, q.device)
        with torch.autocast(q.device.type, enabled=False):
            return weigh(q, k, v, bias, visible, scale, rows, shift=self.shift)


def weigh(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | None,
    visible: Tensor | None,
    scale: float,
    rows: slice,
    *,
    shift: float,
) -> Tensor:
    """Some rows of sigmoid attention by definition; arguments as in `zoo.kernel.attend`."""
    kind = q.dtype
    q, k, v = (x.to(exact(x)) for x in (q, k, v))
    logits = grouped(q, k.mT) * scale
    if bias is not None:
        logits = bias.onto(logits, q, k, visible, scale, rows)
    weights = (logits + shift).sigmoid()
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)
    return grouped(weights, v).to(kind)
