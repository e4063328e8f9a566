"""LongRoPE: a divisor for each wave, found by a search, and two lists of them: for short requests and for long.

The request declares its extent once, which decides between the lists; all its keys are rotated by the same one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo_positions.rope.extensions.byparts import positive
from zoo_positions.rope.extensions.yarn import bounds, ramp


class LongRoPE(WaveExtension):
    """Each wave has a divisor of its own: of the short list within the trained length, of the long one beyond.

    Source: Ding et al. 2024, arXiv:2402.13753; "longrope" in transformers and vLLM, Phi-3's. With trained length L,
    w'_t = w_t / divisor_t, in radians per position, and cos and sin are multiplied by sqrt(1 + ln(factor) / ln(L)),
    whichever list is used. The lists come from a search; without one the long list is where the authors' search starts:
    1 - m_t + m_t factor with YaRN's ramp m_t.

    Raises ZooError for a factor below 1, a list that has not one number above 0 for each wave, a trained length of
    1, and on grids, whose extent is no length.

    Args:
        factor: How many times further than at first training, 1 or more.
        short: Divisors for requests of at most L positions, one a wave (default: ones).
        long: Divisors for longer ones, one a wave (default: as above).
        attention: Attention factor (default: as above).
    """

    dynamic = True

    def __init__(
        self,
        series: Series,
        *,
        factor: float,
        short: list[float] | None = None,
        long: list[float] | None = None,
        attention: float | None = None,
    ) -> None:
        super().__init__(series, factor=factor)
        count = series.width // 2
        if series.axes > 1:
            raise ZooError(
                f"LongRoPE chooses by the extent of a request, and on {series.axes} axes that is a number of patches "
                "and no length.   Try:  --model.position.extension YaRN"
            )
        if series.length < 2:
            raise ZooError("LongRoPE's attention factor is for trained lengths of 2 or more.")
        positive("LongRoPE", attention)
        for name, divisors in (("short", short), ("long", long)):
            if divisors is not None and (len(divisors) != count or not all(0 < d < math.inf for d in divisors)):
                raise ZooError(
                    f"LongRoPE's `{name}` is a list of {count} numbers above 0, one for each wave; got "
                    f"{len(divisors)} from {min(divisors, default=0):g} to {max(divisors, default=0):g}. "
                    "Leave it out to start from YaRN's."
                )
        if long is None:
            slowed = ramp(count, *bounds(series, 1.0, 32.0, truncate=False))
            long = (1 + slowed * (factor - 1)).tolist()
        self.short, self.long = list(short) if short is not None else [1.0] * count, list(long)
        usual = math.sqrt(1 + math.log(factor) / math.log(series.length))
        self.attention = attention if attention is not None else usual

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        divisors = (self.short if extent <= self.series.length else self.long)[: len(frequencies)]
        return frequencies / torch.tensor(divisors, dtype=frequencies.dtype, device="cpu"), self.attention
