"""YaRN as all implementations have it: the ramp between kept and interpolated waves is linear in their number.

The paper's is linear in the rotations of training; that form is `ByParts`. The decision here: bounds of the ramp are
rounded to whole waves, as in the implementations, only where there are more than 16 waves. Among fewer a bound that
moves by one wave moves much: at 16 channels rounding keeps 0.30 of a wave of which the formula keeps 0.07.

Frequencies are computed in transformers' order of operations, so that float32 ones are its to the last bit; only a
factor of 1, which is the identity here, may differ from it there by the last bit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo_positions.rope.extensions.byparts import ordered, positive
from zoo_positions.waves import compute_base_powers

FEW = 32
"""Channels up to which "auto" does not truncate."""


def bounds(series: Series, slow: float, fast: float, truncate: bool) -> tuple[float, float]:
    """The numbers of the waves, fractions where not truncated, between which waves are kept in part."""
    width, base, length = series.width, series.base, series.length
    low, high = ((width * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(base)) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    if high <= 0:  # not even the first wave turned: all are interpolated, where the references' ramp would keep all
        return -1, 0
    low, high = max(low, 0), min(high, series.width - 1)  # the last wave is width / 2 - 1; the references clamp here
    return low, high if low != high else high + 0.001


def ramp(count: int, low: float, high: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """How much of each wave is interpolated, [count]: none up to `low`, all from `high` on."""
    return ((torch.arange(count, dtype=dtype, device="cpu") - low) / (high - low)).clamp(0, 1)


def temper(factor: float, scale: float) -> float:
    """0.1 scale ln(factor) + 1."""
    return 0.1 * scale * math.log(factor) + 1


class YaRN(WaveExtension):
    """Fast waves stay, slow ones are interpolated, and logits grow a little to make up for the longer context.

    Source: Peng et al. 2023, arXiv:2309.00071, in the form of its code, transformers and vLLM. With d rotated channels,
    base b and trained length L, the wave that turns n times in training has the number

        c(n) = d ln(L / 2 pi n) / (2 ln b)

    and w'_t = w_t (1 - m_t + m_t / factor), in radians per position, where m_t rises linearly in t from 0 at c(fast) to
    1 at c(slow). cos and sin are multiplied by 0.1 ln(factor) + 1, so that the rotated channels' part of the logits is
    multiplied by its square.

    Raises ZooError for a factor below 1, unless 0 < slow < fast, for an attention factor that is not above 0, and for
    both an attention factor and numbers to derive it from.

    Args:
        factor: How many times further than at first training, 1 or more.
        fast: Rotations in training from which on a wave stays as it is ("beta_fast").
        slow: Rotations up to which a wave is interpolated as in Linear ("beta_slow").
        truncate: Round the bounds of the ramp outwards to whole waves: transformers' default. "auto" does so for more
            than 32 rotated channels.
        attention: Attention factor (default: derived).
        mscale: The attention factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1), which is
            DeepSeek's; transformers has it where both are given, and else what the defaults give here.
        mscale_all_dim: See `mscale`.
    """

    def __init__(
        self,
        series: Series,
        *,
        factor: float,
        fast: float = 32.0,
        slow: float = 1.0,
        truncate: bool | Literal["auto"] = "auto",
        attention: float | None = None,
        mscale: float = 1.0,
        mscale_all_dim: float = 0.0,
    ) -> None:
        super().__init__(series, factor=factor)
        ordered("YaRN", slow, fast)
        positive("YaRN", attention)
        derived = (mscale, mscale_all_dim) == (1.0, 0.0)
        if not (mscale >= 0 and mscale_all_dim >= 0 and (derived or attention is None)):
            raise ZooError(
                "YaRN takes an attention factor, or mscale and mscale_all_dim, both 0 or more, to derive it from; got "
                f"attention {attention}, mscale {mscale} and mscale_all_dim {mscale_all_dim}."
            )
        truncate = series.width > FEW if truncate == "auto" else truncate
        self.low, self.high = bounds(series, slow, fast, truncate)
        usual = temper(factor, mscale) / temper(factor, mscale_all_dim)
        self.attention = attention if attention is not None else usual

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        if self.factor == 1:
            return frequencies, self.attention
        dtype, count = frequencies.dtype, len(frequencies)
        powers = compute_base_powers(self.series.base, self.series.width, dtype)[:count]
        interpolated = 1.0 / (self.factor * powers)
        kept = 1 - ramp(count, self.low, self.high, dtype)
        return interpolated * (1 - kept) + frequencies * kept, self.attention
