"""The NTK-aware change of base: the slowest wave is interpolated, the fastest left alone, a power in between."""

from __future__ import annotations

from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo_positions.waves import compute_base_powers


def rebased(frequencies: Tensor, series: Series, base: float) -> Tensor:
    """The frequencies of another base, as transformers computes them from it; those of training for their own base."""
    if base == series.base:
        return frequencies
    return 1.0 / compute_base_powers(base, series.width, frequencies.dtype)[: len(frequencies)]


def several(name: str, series: Series) -> None:
    """Raise ZooError where one wave would be the fastest and the slowest."""
    if series.width < 4:
        raise ZooError(
            f"{name} slows the slowest wave down and leaves the fastest alone, and here one wave is both (base "
            f"{series.base:g}, {series.width} channels an axis).   Try:  --model.position.extension Linear"
        )


class NTK(WaveExtension):
    """The base grows so far that the slowest wave turns `factor` times slower; the fastest stays as it is.

    Source: bloc97 2023 (NTK-aware scaled RoPE), as in Peng et al. 2023, arXiv:2309.00071. With d rotated channels,

        b' = b factor^(d / (d - 2))        w'_t = b'^(-2t / d) = w_t factor^(-2t / (d - 2))

    in radians per position. It works without fine-tuning, though not quite `factor` times as far: waves in the middle
    are slowed down by less. vLLM's "ntk" is another formula.

    Raises ZooError for a factor below 1, and where there is one wave only.

    Args:
        factor: How many times further than at first training, 1 or more.
    """

    def __init__(self, series: Series, *, factor: float) -> None:
        super().__init__(series, factor=factor)
        several("NTK", series)

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        base = self.series.base * self.factor ** (self.series.width / (self.series.width - 2))
        return rebased(frequencies, self.series, base), 1.0
