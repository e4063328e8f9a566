"""Tiled: exact attention in memory linear in the length, on any device, with the gradients of any bias.

The work is done by blocks of queries and tiles of keys (`zoo_kernels.tiles`); a map of the logits wants whole rows and
is computed by those (`zoo_kernels.rows`), unless all that it does is to turn queries and keys otherwise in some bands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.bias import Banded, Bias, Logits
from zoo.kernel import Kernel, Mask
from zoo.position import Geometry
from zoo_kernels.rows import rowwise
from zoo_kernels.scores import Bands, Dot
from zoo_kernels.tiles import tiled


class Tiled(Kernel):
    """Softmax attention by blocks of queries and tiles of keys: memory linear in the length, trains on any device.

    Source: Rabe and Staats 2021, arXiv:2112.05682; Dao et al. 2022, arXiv:2205.14135. Equal to Eager up to rounding, in
    values and in the gradients of q, k, v and of every tensor of the bias, and the same bits twice. Under torch.compile
    it breaks the graph. A relocation (`zoo.bias.Banded`) goes by tiles too, where all examples of a batch stand at the
    same positions and there are more queries than a block has; any other map of the logits goes by whole rows.

    Args:
        block: Queries in a block, at most; under a causal mask short sequences are cut finer.
    """

    fuses = Logits

    def __init__(self, geometry: Geometry, *, block: int = 256) -> None:
        super().__init__(geometry)
        if block < 1:
            raise ValueError(f"block must be at least 1, not {block}")
        self.block = block

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        mask = mask or Mask()
        if isinstance(bias, Banded) and q.shape[2] > self.block and len(bias.band(slice(0, 1), slice(0, 1))) == 1:
            exact = torch.promote_types(q.dtype, torch.float32)
            turned = zip(*bias.turned(q.to(exact), k.to(exact)), strict=True)
            queries, keys = (torch.cat(each, -1) for each in turned)
            score = Bands(scale, bias, q.shape[3])
            return tiled(queries, keys, v.to(exact), None, mask, score, self.block).to(q.dtype)
        if isinstance(bias, Logits):
            block = min(self.block, max(q.shape[2] // 8, 64)) if mask.causal else self.block
            return rowwise(q, k, v, bias=bias, mask=mask, scale=scale, block=block)
        return tiled(q, k, v, bias, mask, Dot(scale), self.block)
