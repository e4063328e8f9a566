"""Resonance: waves whose period is a whole number of positions, so that far positions repeat angles of training."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from zoo.extension import Series, WaveExtension


class Resonance(WaveExtension):
    """Periods are rounded to whole positions, those of the plain waves or those of another extension.

    Source: Wang et al. 2024, arXiv:2403.00071 (Resonance RoPE). w'_t = 2 pi / round(2 pi / w_t) radians per position,
    at least one position a period, with the other extension's w_t and attention factor. Fast waves move most, the
    fastest from 6.28 positions to 6; it is no identity even where the other extension is one.

    Args:
        extension: Extension whose waves are rounded, a plugin such as YaRN (default: none, the waves of training).
    """

    def __init__(self, series: Series, *, extension: Callable[[Series], WaveExtension] | None = None) -> None:
        super().__init__(series)
        self.extension = extension(series) if extension is not None else None
        self.dynamic = self.extension is not None and self.extension.dynamic

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        factor = 1.0
        if self.extension is not None:
            frequencies, factor = self.extension.waves(frequencies, extent)
        periods = (2 * math.pi / frequencies.double()).round().clamp(min=1)
        return (2 * math.pi / periods).to(frequencies.dtype), factor
