"""p-RoPE: the fast waves turn, the slow ones stand still, so that the slow pairs carry meaning at any distance.

It is not partial rotary with the same fraction. There the rotated channels share a whole spectrum among them, the slow
waves included; here each pair keeps the wave that RoPE gives it, and the slow pairs lose theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo.position import Geometry
from zoo_positions.relocation import Relocation
from zoo_positions.rope.rope import RoPE


class pRoPE(RoPE):  # noqa: N801 - the paper's capitals
    """RoPE of which only the fastest waves turn; pairs of the slow ones have no position.

    Source: Barbero et al. 2024, arXiv:2410.06205; "proportional" in transformers, Gemma 4's global layers (there with
    fraction 0.25 and base 1e6). With d = head_dim, pair t < floor(fraction d / 2) turns by p base^(-2t / d) radians at
    position p, and the other pairs are left as they are. On a grid, which is ours, this holds for each axis with the
    d / 2 channels that RoPE gives it. A fraction of 1 is RoPE and one of 0 is NoPE. cos and sin are those of RoPE.

    Raises ZooError where the channels do not make up whole pairs, the same number for each axis, and where a fraction
    above 0 leaves no pair to turn.

    Args:
        base: As in RoPE; the wave that a pair has does not depend on the fraction.
        fraction: Part of the pairs that turn, those of the fastest waves.
        pairing: Pairs are channels (t, t + d/2) for "half" (Gemma), (2t, 2t + 1) for "interleaved".
        extension: How it reads further than it was trained, a plugin such as Linear (default: not at all). It knows
            all d / 2 waves and moves those that turn; its attention factor multiplies the pairs that stand still too.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        fraction: float = 0.75,
        pairing: Literal["half", "interleaved"] = "half",
        extension: Callable[[Series], WaveExtension | Relocation] | None = None,
    ) -> None:
        if not 0 <= fraction <= 1:
            raise ZooError(f"pRoPE cannot turn a fraction {fraction} of the pairs. Give at least 0 and at most 1.")
        if geometry.head_dim % (2 * geometry.axes):
            raise ZooError(
                f"pRoPE turns whole pairs of channels, the same number for each of {geometry.axes} axes, so that "
                f"head_dim is a multiple of {2 * geometry.axes}; here it is {geometry.head_dim}."
            )
        super().__init__(geometry, base=base, pairing=pairing, extension=extension)
        pairs = self.width // 2
        self.fraction, self.kept = fraction, int(fraction * self.width // 2)
        self.still = pairs - self.kept
        if fraction and not self.kept:
            raise ZooError(
                f"pRoPE would turn none of the {pairs} pairs of an axis: {fraction} of them is less than one. "
                f"Give --model.position.fraction at least {1 / pairs:g}, or 0 if no position is meant."
            )
        self.frequencies = self.tuned(torch.float32).to(self.frequencies.device)
