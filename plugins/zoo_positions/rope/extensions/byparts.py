"""NTK by parts, as the YaRN paper has it: waves are sorted by how often they turned in training."""

from __future__ import annotations

import math

from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension


def blended(frequencies: Tensor, kept: Tensor, factor: float) -> Tensor:
    """Waves of which the part `kept` stays and the rest is interpolated; a factor of 1 gives the same bits."""
    return frequencies * (kept + (1 - kept) / factor).to(frequencies.dtype)


def rotations(frequencies: Tensor, series: Series) -> Tensor:
    """How often each wave turned over the trained length, float64."""
    return frequencies.double() * (series.length / (2 * math.pi))


def ordered(name: str, slow: float, fast: float) -> None:
    """Raise ZooError unless 0 < slow < fast."""
    if not 0 < slow < fast < math.inf:
        raise ZooError(
            f"{name} interpolates waves of fewer than `slow` rotations and keeps those of more than `fast`, so that "
            f"0 < slow < fast; got slow {slow:g} and fast {fast:g}."
        )


def positive(name: str, attention: float | None) -> None:
    """Raise ZooError for an attention factor that is not above 0."""
    if attention is not None and not 0 < attention < math.inf:
        raise ZooError(f"{name}'s attention factor multiplies cos and sin and is above 0; got {attention}.")


class ByParts(WaveExtension):
    """Waves that turned often in training stay, those that did not turn once are interpolated, linearly in between.

    Source: Peng et al. 2023, arXiv:2309.00071, section 3.2 (NTK-by-parts). Wave t turned r_t = L w_t / 2 pi times over
    the trained length L, and

        w'_t = w_t (g_t + (1 - g_t) / factor)        g_t = clip((r_t - slow) / (fast - slow), 0, 1)

    in radians per position. Implementations of YaRN have another ramp, linear in t, which is `YaRN` here: in the middle
    the two are up to a factor of two apart.

    Raises ZooError for a factor below 1, and unless 0 < slow < fast.

    Args:
        factor: How many times further than at first training, 1 or more.
        slow: Rotations below which a wave is interpolated as in Linear (alpha in the paper).
        fast: Rotations above which a wave stays as it is (beta).
        attention: Attention factor, which multiplies cos and sin; with 0.1 ln(factor) + 1 it is the paper's YaRN.
    """

    def __init__(
        self, series: Series, *, factor: float, slow: float = 1.0, fast: float = 32.0, attention: float = 1.0
    ) -> None:
        super().__init__(series, factor=factor)
        ordered("ByParts", slow, fast)
        positive("ByParts", attention)
        self.slow, self.fast, self.attention = slow, fast, attention

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        turned = rotations(frequencies, self.series)
        kept = ((turned - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return blended(frequencies, kept, self.factor), self.attention
