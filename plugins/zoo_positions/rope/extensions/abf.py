"""ABF: another base and nothing else, the extension that every engine can serve."""

from __future__ import annotations

import math

from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo_positions.rope.extensions.ntk import rebased


def critical(series: Series) -> int:
    """The number of the first wave that did not complete a turn over the trained length."""
    return math.ceil(series.width / 2 * math.log(series.length / (2 * math.pi)) / math.log(series.base))


class ABF(WaveExtension):
    """The waves are those of a greater base.

    Source: Xiong et al. 2023, arXiv:2309.16039 (adjusted base frequency); Roziere et al. 2023, arXiv:2308.12950. With d
    rotated channels, w'_t = base^(-2t / d) radians per position. The default is ours: of the waves that completed a
    turn in training, numbers 0 to i - 1, the next one, i, is slowed down by just `factor`,

        base = b factor^((d / 2) / i)        i = ceil((d / 2) log_b(L / 2 pi))

    for base b and trained length L. It wants fine-tuning.

    Raises ZooError for a factor below 1, for a base below the one with which the slowest wave turns `factor` times
    slower (NTK's, b factor^(d / (d - 2))), and, where the base is left to us, if no wave completed a turn.

    Args:
        factor: How many times further than at first training, 1 or more.
        base: The new base (default: as above).
    """

    def __init__(self, series: Series, *, factor: float, base: float | None = None) -> None:
        super().__init__(series, factor=factor)
        half, turned = series.width / 2, critical(series)
        if base is None and turned < 1:
            raise ZooError(
                f"ABF derives its base from the waves that completed a turn in training, and over {series.length} "
                "positions none did.   Try:  --model.position.extension.base 1e6"
            )
        self.base = base if base is not None else series.base * factor ** (half / turned)
        least = series.base * factor ** (half / (half - 1)) if half > 1 else series.base
        if base is not None and not least * (1 - 1e-9) <= base < math.inf:
            raise ZooError(
                f"ABF cannot read {factor:g} times as far with the base {base:g}, since even the slowest wave would "
                f"not turn {factor:g} times slower. Give {least:.6g} or more, or leave it out:  "
                f"--model.position.extension.base {least:.6g}"
            )

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        return rebased(frequencies, self.series, self.base), 1.0
