"""Waves: the geometric series of frequencies that Sinusoidal, RoPE and FoPE share, and the angles at given positions.

Frequencies are a formula, not a state. They are computed on the CPU, so that every device gets the same bits, in the
references' order of operations, and again whenever the module moves: a model in half precision keeps them float32, one
in float64 gets them in float64, and one that was built on the meta device gets them at all. No checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.position import EXACT, Geometry, PositionEncoding


def spectrum(base: float, width: int, kind: torch.dtype = torch.float32) -> Tensor:
    """base^(-2t / width) for t = 0 .. width / 2 - 1, in radians per position."""
    if not base > 1:
        raise ZooError(
            f"Waves cannot have the base {base}: their frequencies are powers of 1 / base and have to fall. "
            "Give a number above 1:  --model.position.base 10000"
        )
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=kind, device="cpu") / width)


def angles(positions: Tensor, frequencies: Tensor, extent: int) -> Tensor:
    """Position times frequency: [..., tokens, axes] and [axes, waves] give [..., tokens, axes * waves].

    A float32 product, as in the references, while `extent` is at most `zoo.position.EXACT`. Beyond, its rounding
    (0.004 rad at 131 072) would show, so the same frequencies are multiplied in float64. Float64 ones always are.
    """
    kind = torch.float64 if extent > EXACT else frequencies.dtype
    return (positions.to(kind).unsqueeze(-1) * frequencies.to(kind)).flatten(-2)


class Waves(PositionEncoding):
    """An encoding with waves of geometrically falling frequency.

    Args:
        geometry: Of the model.
        base: The longest wave is nearly 2 pi base positions long.
        width: Channels of one axis that the exponents are taken over.
        kept: Use so many of the fastest waves; None: all.
        still: Follow them by so many waves of frequency 0.
    """

    frequencies: Tensor
    """Radians per position, [axes, waves]."""

    def __init__(self, geometry: Geometry, *, base: float, width: int, kept: int | None = None, still: int = 0) -> None:
        super().__init__(geometry)
        self.base, self.width, self.kept, self.still = base, width, kept, still
        home = torch.get_default_device()
        home = torch.device("cpu") if home.type == "meta" else home
        self.register_buffer("frequencies", self.tuned(torch.float32).to(home), persistent=False)

    def tuned(self, kind: torch.dtype) -> Tensor:
        """The frequencies computed anew, on the CPU."""
        waves = spectrum(self.base, self.width, kind)[: self.kept]
        return torch.cat((waves, waves.new_zeros(self.still))).repeat(self.geometry.axes, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.frequencies = self.tuned(self.frequencies.dtype).to(self.frequencies.device)
        return self
