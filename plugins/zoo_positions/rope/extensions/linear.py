"""Position interpolation: all waves alike, so that no position lies beyond those of training."""

from __future__ import annotations

from torch import Tensor

from zoo.extension import Series, WaveExtension


class Linear(WaveExtension):
    """All waves turn `factor` times slower, which is to divide the positions.

    Source: Chen et al. 2023, arXiv:2306.15595 (position interpolation). w'_t = w_t / factor, in radians per position.
    Neighbours come closer together too, so it wants fine-tuning. "linear" in transformers and vLLM.

    Raises ZooError for a factor below 1.

    Args:
        factor: How many times further than at first training, 1 or more.
    """

    def __init__(self, series: Series, *, factor: float) -> None:
        super().__init__(series, factor=factor)

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        return frequencies / self.factor, 1.0
