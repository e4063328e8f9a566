"""How far apart the heads of a layer are: by what they give, and by where they look.

Attention maps are not asked of a kernel, which may never make one. Every form is linear in its values, so the kernel is
called again with columns of the identity as values, as many at once as its values are wide, and gives the columns of
its map: any kernel can be read, and memory stays linear in the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.bias import Bias
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask

ROWS = 1024
"""Rows of a mask that are looked at together."""


class HeadDistances(Metric):
    """Mean distances of the heads of a layer from each other, over its pairs of different heads.

    FourierFormer (Nguyen et al. 2022, arXiv:2206.00206) reports a "mean L2 distance between heads", greater where heads
    are less redundant, and does not say of what. The definitions here are ours. With o_h[i] what head h gives token i,
    before the output projection, and A_h[i, j] its weight for key j:

        distance     |o_g[i] - o_h[i]|, Euclidean; it grows with the values, so models compare by the next one
        relative     the mean of that, divided by the mean |o_h[i]| of the same layer
        variation    1/2 sum_j |A_g[i, j] - A_h[i, j]|, over the tokens i that see at least two keys: for weights that
                     sum to 1 their total variation, 0 where heads attend alike and 1 where they share no key

    Means are over examples, tokens (prefix included) and pairs, for each layer by itself. `compute` gives of each the
    mean over layers, `distance`, the standard deviation over layers (divided by their number), `distance_std`, and
    `layers`, [layers, 3], in this order. What has not been seen is nan. Sums are float64; distances float32, or better
    where tensors are.

    The cosine of `zoo.analyze.heads` is another measure, of softmax attention only.

    Args:
        layers: Layers of the model.
    """

    full_state_update = False
    names = ("distance", "relative", "variation")
    sums: Tensor
    counts: Tensor

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        if layers < 1:
            raise ZooError(f"HeadDistances measures 1 layer or more, and got {layers}.")
        # Distances, norms, variations; and how many there were of each.
        self.add_state("sums", torch.zeros(layers, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(layers, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        output: Tensor,
        maps: Tensor | Iterable[Tensor] | None = None,
        choice: Tensor | None = None,
        layer: int = 0,
    ) -> None:
        """Add what a layer made of some examples.

        Args:
            output: What its heads gave, [batch, heads, tokens, width], two heads or more.
            maps: Their weights, [batch, heads, tokens, keys], or blocks of columns of them.
            choice: The tokens that see two keys or more, bool [batch or 1, tokens] (default: all).
            layer: Its number.
        """
        batch, heads, tokens, _ = output.shape
        if heads < 2:
            raise ZooError("The distance between heads is that of two or more, and the layer has one.")
        pairs = heads * (heads - 1) / 2
        sums, counts = self.sums[layer], self.counts[layer]
        apart, norms = pairwise(output, 2.0), exact(output).norm(dim=-1)
        sums[:2] += torch.stack([apart.sum(dtype=torch.float64) / 2, norms.sum(dtype=torch.float64)])
        counts[:2] += counts.new_tensor([batch * tokens * pairs, batch * tokens * heads])
        if maps is None:
            return
        if choice is None:
            choice = torch.ones(1, tokens, dtype=torch.bool, device=output.device)
        choice = choice.expand(batch, tokens)
        for columns in [maps] if isinstance(maps, Tensor) else maps:
            sums[2] += pairwise(columns, 1.0)[choice].sum(dtype=torch.float64) / 4
        counts[2] += choice.sum() * pairs

    def compute(self) -> dict[str, Tensor]:
        """The numbers so far, over all processes."""
        distance, norm, variation = (self.sums / self.counts).unbind(-1)
        layers = torch.stack((distance, distance / norm, variation), -1)
        mean, std = layers.mean(0), layers.std(0, correction=0)
        found = {name: mean[n] for n, name in enumerate(self.names)}
        return {**found, **{f"{name}_std": std[n] for n, name in enumerate(self.names)}, "layers": layers}


def exact(x: Tensor) -> Tensor:
    """The tensor in float32, or better where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pairwise(x: Tensor, p: float) -> Tensor:
    """p-norms of the differences of heads, [batch, tokens, heads, heads], each pair twice, of x [batch, heads, ...]."""
    rows = exact(x).transpose(1, 2).contiguous()
    # The differences themselves: by way of a product, heads that are nearly the same would be apart by rounding.
    return torch.cdist(rows, rows, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def maps(
    kernel: Kernel, q: Tensor, k: Tensor, *, bias: Bias | None, mask: Mask, scale: float, columns: int
) -> Iterator[Tensor]:
    """The weights by which a kernel sums values, [batch, heads, queries, keys], in blocks of columns, in float32.

    A kernel that does not take the call in float32 (flash kernels want half precision) is read by its `reference`,
    which is the same form by definition.

    Args:
        kernel: Of any form.
        q: [batch, heads, queries, width].
        k: [batch, kv_heads, keys, width].
        bias: As it was called with; so are mask and scale.
        mask: The mask.
        scale: Of the logits.
        columns: Of a block; the width of the values that the kernel is used to.
    """
    q, k = exact(q), exact(k)
    batch, groups, keys, _ = k.shape
    call = kernel.forward  # not the module: whoever watches its calls should not see these
    for start in range(0, keys, columns):
        index = torch.arange(start, start + columns, device=k.device)
        units = (torch.arange(keys, device=k.device)[:, None] == index).to(k.dtype).expand(batch, groups, -1, -1)
        with torch.autocast(q.device.type, enabled=False):
            try:
                block = call(q, k, units, bias=bias, mask=mask, scale=scale)
            except (ZooError, RuntimeError, ValueError) as error:
                if call == kernel.reference or isinstance(error, torch.OutOfMemoryError):
                    raise  # the reference takes more memory still
                call = kernel.reference
                block = call(q, k, units, bias=bias, mask=mask, scale=scale)
        yield block[..., : keys - start]


def choices(mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor:
    """Which queries see two keys or more, bool [batch or 1, queries]."""
    found = []
    for start in range(0, queries, ROWS):
        rows = slice(start, min(start + ROWS, queries))
        seen = mask.block(rows, slice(0, keys), device)
        if seen is None:
            return torch.full((1, queries), keys > 1, device=device)
        found.append(seen[:, 0].sum(-1) > 1)
    return torch.cat(found, -1)
