"""RoPE: queries and keys turn with their position, so that their product knows the distance only.

Pairs of channels turn at geometrically spaced frequencies. On a grid the first half of the pairs turns with the row,
the second half with the column, each over a full spectrum of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo.position import Encoding, Geometry, Rotation
from zoo_positions.relocation import Relocated, Relocation
from zoo_positions.waves import Waves, angles, table


class RoPE(Waves):
    """Each pair of channels of queries and keys is rotated by the position times the frequency of the pair.

    Source: Su et al. 2021, arXiv:2104.09864; partial as in GPT-NeoX (Black et al. 2022, arXiv:2204.06745); on a grid as
    in EVA-02 (Fang et al. 2023, arXiv:2303.11331) and RoPE-ViT's axial form (Heo et al. 2024, arXiv:2403.13298).
    With r = int(fraction head_dim) rotated channels and p positions, pair t < r / 2 turns by
    p base^(-2t / r) radians; on a grid pair t < r / 4 turns by y base^(-4t / r), pair r / 4 + t by x base^(-4t / r).
    cos and sin are float32, [1 or batch, 1, tokens, r / 2]; the frequencies are not in the state dict.

    Raises ZooError where the rotated channels do not make up whole pairs, the same number for each axis.

    Args:
        base: The slowest pair turns once in nearly 2 pi base positions (RoPE-ViT takes 100 on grids).
        fraction: Part of the head's channels that is rotated, the leading ones; exponents are taken over these.
        pairing: Pairs are channels (t, t + r/2) for "half" (Llama, GPT-NeoX), (2t, 2t + 1) for "interleaved" (GPT-J).
        extension: How it reads further than it was trained, a plugin such as YaRN (default: not at all). Its attention
            factor multiplies cos and sin, and with them the rotated channels' part of the logits twice. With one that
            maps positions, such as SelfExtend, RoPE is a Logits bias in place of a rotation.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        pairing: Literal["half", "interleaved"] = "half",
        extension: Callable[[Series], WaveExtension | Relocation] | None = None,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ZooError(f"RoPE cannot rotate a fraction {fraction} of a head. Give more than 0 and at most 1.")
        rotated, axes = int(fraction * geometry.head_dim), geometry.axes
        if rotated < 2 * axes or rotated % (2 * axes):
            raise ZooError(
                f"RoPE cannot rotate {rotated} channels of a head (fraction {fraction}, head_dim {geometry.head_dim}): "
                f"it turns whole pairs, the same number for each of {axes} axes, so a multiple of {2 * axes} channels. "
                "Change head_dim or --model.position.fraction"
            )
        super().__init__(geometry, base=base, width=rotated // axes, extension=extension)
        self.fraction, self.pairing = fraction, pairing

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        if self.relocation is None:
            return Encoding(rotation=self.turn(queries, extent))
        turn, heads = partial(self.turn, extent=extent), self.geometry.heads
        bias = Relocated(self.relocation, turn, queries, keys, extent, heads=heads)
        return Encoding(bias=bias, scale=self.relocation.scale(queries))

    def turn(self, positions: Tensor, extent: int) -> Rotation:
        """The rotation of a request at some positions, [tokens, axes] or [batch, tokens, axes]."""
        frequencies, factor = self.request(extent)
        if self.relocation is not None:
            factor *= self.relocation.gain(extent)
        angle = angles(positions, frequencies, extent)
        angle = angle[None, None] if angle.ndim == 2 else angle.unsqueeze(1)
        return Rotation(
            table(angle.cos(), frequencies, factor),
            table(angle.sin(), frequencies, factor),
            frequencies,
            factor,
            isometric=factor == 1,
            interleaved=self.pairing == "interleaved",
            prefix=self.geometry.prefix,
        )
