"""Dynamic NTK: the base grows with the request, so that short texts are read as in training.

The request declares its extent once, and the base is chosen by that: keys in a cache stay true, which they do not where
the base follows the tokens that are already there.

Frequencies are computed in the order of operations of transformers' models, which hold the length of a request in a
tensor and so compute the new base in float32: float32 frequencies are theirs to the last bit. (Their function by
itself, given a Python number, rounds the base once and may differ in the last bit.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo_positions.rope.extensions.ntk import several
from zoo_positions.waves import compute_base_powers


class DynamicNTK(WaveExtension):
    """NTK's change of base, as far as the request needs it and not at all within the trained length.

    Source: emozilla 2023 (dynamically scaled RoPE), as in Peng et al. 2023, arXiv:2309.00071. With trained length L and
    a request of `extent` positions, the base is NTK's with

        s = max(1, factor extent / L - (factor - 1))

    in the place of its factor. A factor of 1 is just enough, s = extent / L; greater ones, "dynamic" in transformers,
    stretch further than the request. cos and sin have no attention factor.

    Raises ZooError for a factor below 1, where there is one wave only, and on grids, whose extent is no length.

    Args:
        factor: How fast the base grows with the extent, 1 or more.
    """

    dynamic = True

    def __init__(self, series: Series, *, factor: float = 1.0) -> None:
        super().__init__(series, factor=factor)
        several("DynamicNTK", series)
        if series.axes > 1:
            raise ZooError(
                f"DynamicNTK chooses by the extent of a request, and on {series.axes} axes that is a number of patches "
                "and no length.   Try:  --model.position.extension NTK"
            )

    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        if extent <= self.series.length:
            return frequencies, 1.0
        length, width, dtype = self.series.length, self.series.width, frequencies.dtype
        stretch = self.factor * torch.tensor(extent, dtype=dtype, device="cpu") / length - (self.factor - 1)
        base = self.series.base * stretch ** (width / (width - 2))
        return 1.0 / compute_base_powers(base, width, dtype)[: len(frequencies)], 1.0
