"""CoPE: distance counted in tokens that matter, where each query decides by its logits which ones do.

A position is a sum over the keys between, different for each pair, so this is a map of whole rows of logits: kernels
that fuse less refuse it, and it needs memory for rows x keys of the block at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, Logits, PositionEncoding


class CoPE(PositionEncoding):
    """A key stands as far back as the gates of the keys from it to the query add up to, and is told by a vector there.

    Source: Golovneva et al. 2024, arXiv:2405.18719. With z_ij = q_i . k_j / sqrt(head_dim) and n positions,

        g_ij = sigmoid(z_ij)        p_ij = min(n - 1, g_ij + ... + g_ii)        logit = z_ij + q_i . e(p_ij)

    where e(p) lies between e[floor p] and e[ceil p] and q_i is not scaled: a Logits bias, in the type of the logits. e
    is float32 [head_dim, n], one per layer, shared by its heads, and starts at zero, where the model is one without
    position encoding. Only keys that the query may see count: neither the future, nor another document, nor padding,
    nor what lies outside the window. Positions as such are not read. Causal models only.

    Raises ZooError for a model that is not causal or has two axes, and for fewer than two positions.

    Args:
        positions: Vectors, for the positions 0 .. n - 1; a key farther away is told by the last one.
    """

    per_layer = True

    def __init__(self, geometry: Geometry, *, positions: int = 64) -> None:
        super().__init__(geometry)
        if geometry.axes != 1 or not geometry.causal:
            what = f"has {geometry.axes} axes" if geometry.axes != 1 else "looks both ways"
            raise ZooError(
                f"CoPE counts the tokens from a key to a later query, in a causal model of one axis, and this model "
                f"{what}. Try:  --model.position RoPE"
            )
        if positions < 2:
            raise ZooError(
                f"CoPE with {positions} positions tells no two keys apart; it needs 2 or more. Try:  "
                "--model.position.positions 64"
            )
        self.vectors = nn.Parameter(torch.empty(geometry.head_dim, positions, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero, as the authors start."""
        nn.init.zeros_(self.vectors)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        return Encoding(bias=Logits(counted, (self.vectors * 1,), heads=self.geometry.heads))


def counted(
    logits: Tensor, q: Tensor, k: Tensor, h: Tensor, i: Tensor, visible: Tensor | None, scale: float, vectors: Tensor
) -> Tensor:
    """The logits with what the vectors say of each key's position."""
    gates = logits.sigmoid()
    if visible is not None:  # before anything is counted: the gates of the future must not leak
        gates = gates.masked_fill(~visible, 0.0)
    last = vectors.shape[-1] - 1
    position = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=last)
    below = position.detach().long().clamp(max=last - 1)
    told = q @ vectors.to(q.dtype)
    return logits + torch.lerp(told.gather(-1, below), told.gather(-1, below + 1), position - below)
