"""LongRoPE: a divisor for each wave, found by a search, and two lists of them: for short requests and for long.

The request declares its extent once, which decides between the lists; all its keys are rotated by the same one. A
search varies the long list and keeps it rising, as the authors' does: a slower wave is never slowed down by less.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Searched, Series, WaveExtension
from zoo_positions.rope.extensions.byparts import positive
from zoo_positions.rope.extensions.yarn import bounds, ramp
from zoo_positions.waves import compute_base_powers

FURTHER = 2.0
"""A search goes up to so many times the factor: waves that turned little in training may need more than the factor
(LongRoPE2, Shang et al. 2025, arXiv:2502.20082)."""
DIGITS = 4
"""Decimals of a divisor that was searched."""


class LongRoPE(WaveExtension, Searched):
    """Each wave has a divisor of its own: of the short list within the trained length, of the long one beyond.

    Source: Ding et al. 2024, arXiv:2402.13753; "longrope" in transformers and vLLM, Phi-3's. With trained length L,
    w'_t = w_t / divisor_t, in radians per position, and cos and sin are multiplied by sqrt(1 + ln(factor) / ln(L)),
    whichever list is used. The long list comes from a search (`zoo extend --search`); without one it is where the
    authors' search starts: 1 - m_t + m_t factor with YaRN's ramp m_t.

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
        dtype, count = frequencies.dtype, len(frequencies)
        chosen = (self.short if extent <= self.series.length else self.long)[:count]
        divisors = torch.tensor(chosen, dtype=dtype, device="cpu")
        powers = compute_base_powers(self.series.base, self.series.width, dtype)[:count]
        # A divisor of 1 leaves a frequency as it was given, the same bits as the formula's in every encoding.
        return torch.where(divisors == 1, frequencies, 1.0 / (divisors * powers)), self.attention

    def seeds(self) -> list[list[float]]:
        """The long list; YaRN's divisors; those of the change of base; position interpolation's."""
        count, factor = len(self.long), self.factor
        slowed = ramp(count, *bounds(self.series, 1.0, 32.0, truncate=False)).tolist()
        yarn = [1 / (1 - part + part / factor) for part in slowed]
        ntk = [factor ** (wave / max(count - 1, 1)) for wave in range(count)]
        return [self.long, yarn, ntk, [factor] * count]

    def child(self, one: list[float], other: list[float], rng: random.Random) -> list[float]:
        """A mean of the parents, then one of three changes: the curve of divisors is moved along the waves, made
        flatter or steeper, or single divisors are drawn anew; rising, from 1 to twice the factor."""
        share = rng.random()
        found = [share * math.log(a) + (1 - share) * math.log(b) for a, b in zip(one, other, strict=True)]
        last, change = len(found) - 1, rng.randrange(3)
        if change == 0:
            step = rng.gauss(0, max(1.0, last / 16))
            found = [between(found, min(max(wave - step, 0), last)) for wave in range(last + 1)]
        elif change == 1:
            power = math.exp(rng.gauss(0, 0.2))
            found = [each * power for each in found]
        else:
            found = [each + (rng.random() < 0.3) * rng.gauss(0, 0.2) for each in found]
        most, least = math.log(FURTHER * self.factor), 0.0
        for wave, each in enumerate(found):
            least = found[wave] = min(max(each, least), most)
        return [round(math.exp(each), DIGITS) for each in found]

    def arguments(self, numbers: list[float]) -> dict[str, Any]:
        return {"long": numbers}


def between(values: list[float], at: float) -> float:
    """A value at a place between two, on the line through them."""
    low = min(int(at), max(len(values) - 2, 0))
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])
