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
from zoo.extension import Series, WaveExtension
from zoo.position import EXACT, Geometry, PositionEncoding
from zoo_positions.relocation import Relocation


def spectrum(base: float, width: int, kind: torch.dtype = torch.float32) -> Tensor:
    """base^(-2t / width) for t = 0 .. width / 2 - 1, in radians per position."""
    if not base > 1:
        raise ZooError(
            f"Waves cannot have the base {base}: their frequencies are powers of 1 / base and have to fall. "
            "Give a number above 1:  --model.position.base 10000"
        )
    return 1.0 / compute_base_powers(base, width, kind)


def compute_base_powers(base: float | Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """base^(2t / width) for t = 0 .. width / 2 - 1, in transformers' order of operations: 1 / frequency."""
    return base ** (torch.arange(0, width, 2, dtype=dtype, device="cpu") / width)


def angles(positions: Tensor, frequencies: Tensor, extent: int) -> Tensor:
    """Position times frequency: [..., tokens, axes] and [axes, waves] give [..., tokens, axes * waves].

    A float32 product, as in the references, while `extent` is at most `zoo.position.EXACT`. Beyond, its rounding
    (0.004 rad at 131 072) would show, so the same frequencies are multiplied in float64. Float64 ones always are.
    """
    kind = torch.float64 if extent > EXACT else frequencies.dtype
    return (positions.to(kind).unsqueeze(-1) * frequencies.to(kind)).flatten(-2)


def table(turned: Tensor, frequencies: Tensor, factor: float) -> Tensor:
    """Cosines or sines in the precision of the frequencies, with the attention factor."""
    turned = turned.to(frequencies.dtype)
    return turned if factor == 1 else turned * factor


class Waves(PositionEncoding):
    """An encoding with waves of geometrically falling frequency.

    Args:
        geometry: Of the model.
        base: The longest wave is nearly 2 pi base positions long.
        width: Channels of one axis that the exponents are taken over.
        kept: Use so many of the fastest waves; None: all.
        still: Follow them by so many waves of frequency 0.
        extension: How the waves read further than they were trained; one is built for each axis. A relocation changes
            no wave; an encoding whose annotation takes one asks it.
    """

    frequencies: Tensor
    """Radians per position, [axes, waves]; with a dynamic extension, those of requests within the trained length."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float,
        width: int,
        kept: int | None = None,
        still: int = 0,
        extension: Callable[[Series], WaveExtension | Relocation] | None = None,
    ) -> None:
        super().__init__(geometry)
        self.base, self.width, self.kept, self.still = base, width, kept, still
        spectrum(base, width)  # says what is wrong with a base before an extension takes its logarithm
        series = [Series(base=base, width=width, length=size, axes=geometry.axes) for size in geometry.length]
        self.extensions = [extension(one) for one in series] if extension is not None else []
        self.moving = [one for one in self.extensions if isinstance(one, WaveExtension)]
        self.dynamic = any(one.dynamic for one in self.extensions)
        self.relocation = next((one for one in self.extensions if isinstance(one, Relocation)), None)
        if self.relocation is not None:
            self.relocation.serves(geometry)
            self.relative = self.relocation.relative
        self.factor = self.extended(torch.float32, 1)[1]
        home = torch.get_default_device()
        home = torch.device("cpu") if home.type == "meta" else home
        self.register_buffer("frequencies", self.tuned(torch.float32).to(home), persistent=False)

    def tuned(self, kind: torch.dtype) -> Tensor:
        """The frequencies computed anew, on the CPU."""
        return self.extended(kind, 1)[0]

    def extended(self, kind: torch.dtype, extent: int) -> tuple[Tensor, float]:
        """Frequencies [axes, waves] and the attention factor of a request, computed anew, on the CPU."""
        waves, axes = spectrum(self.base, self.width, kind)[: self.kept], self.geometry.axes
        found = [one.waves(waves, extent) for one in self.moving] or [(waves, 1.0)] * axes
        if len({factor for _, factor in found}) > 1:
            raise ZooError(
                f"{type(self.moving[0]).__name__} gives the axes of a grid of {self.geometry.length} attention "
                "factors that differ, and there is one for the whole logit. Try one that has none, such as Linear."
            )
        still = waves.new_zeros(self.still)
        return torch.stack([torch.cat((moved, still)) for moved, _ in found]), found[0][1]

    def request(self, extent: int) -> tuple[Tensor, float]:
        """Frequencies [axes, waves] and the attention factor of a request, on the module's device."""
        if self.dynamic:
            waves, factor = self.extended(self.frequencies.dtype, extent)
            return waves.to(self.frequencies.device), factor
        return self.frequencies, self.factor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.frequencies = self.tuned(self.frequencies.dtype).to(self.frequencies.device)
        return self
