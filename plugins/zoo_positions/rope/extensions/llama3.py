"""Llama 3's scaling: by parts with a ramp of its own, from one rotation in training to four.

Frequencies are computed in transformers' order of operations, so that float32 ones are its to the last bit; only a
factor of 1, which is the identity here, may differ from it there by the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.extension import Series, WaveExtension
from zoo_positions.rope.extensions.byparts import ordered


class Llama3(WaveExtension):
    """Waves of more than `high` rotations in training stay, those of fewer than `low` are interpolated.

    Source: Grattafiori et al. 2024, arXiv:2407.21783 (Llama 3.1); "llama3" in transformers. Wave t turned
    r_t = L w_t / 2 pi times over the trained length L, and

        w'_t = w_t (g_t + (1 - g_t) / factor)        g_t = clip((r_t - low) / (high - low), 0, 1)

    in radians per position, so that it is ByParts with other bounds. Llama 3.1 has a factor of 8, Llama 3.2 one of 32,
    both with L = 8192.

    Raises ZooError for a factor below 1, and unless 0 < low < high.

    Args:
        factor: How many times further than at first training, 1 or more.
        low: Rotations below which a wave is interpolated as in Linear ("low_freq_factor").
        high: Rotations above which a wave stays as it is ("high_freq_factor").
    """

    def __init__(self, series: Series, *, factor: float, low: float = 1.0, high: float = 4.0) -> None:
        super().__init__(series, factor=factor)
        ordered("Llama3", low, high)
        self.low, self.high = low, high

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        if self.factor == 1:
            return frequencies, 1.0
        length = self.series.length
        wavelengths = 2 * math.pi / frequencies
        kept = (length / wavelengths - self.low) / (self.high - self.low)
        between = (1 - kept) * frequencies / self.factor + kept * frequencies
        scaled = torch.where(wavelengths > length / self.low, frequencies / self.factor, between)
        return torch.where(wavelengths < length / self.high, frequencies, scaled), 1.0
