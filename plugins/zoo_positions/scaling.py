"""Scaling: what makes biases read further, by taking distances beyond those of training for some that were trained.

An encoding that adds a bias on the logits by distance is asked about distances that it has never met when a text is
longer. An extension here maps them: it divides them all, or moves the bounds that they are sorted by. It changes no
parameter, and the bias stays on its rung, whichever kernels carry it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from zoo.errors import ZooError
from zoo.extension import Extension
from zoo.position import Geometry


def further(extension: Extension, factor: float) -> float:
    """The factor, if it is 1 or more and finite."""
    if not 1 <= factor < math.inf:
        raise ZooError(
            f"{type(extension).__name__} reads `factor` times as far as in training, 1 or more; got {factor}.   "
            "Try:  --model.position.extension.factor 4"
        )
    return factor


class DistanceExtension(Extension, ABC):
    """Base class of extensions that divide the distances by which an encoding makes its bias.

    Args:
        geometry: Of the model.
        factor: How many times further the encoding is to read.
    """

    def __init__(self, geometry: Geometry, *, factor: float = 1.0) -> None:
        self.geometry, self.factor = geometry, further(self, factor)

    @abstractmethod
    def divisor(self, extent: int) -> float:
        """What the distances of a request are divided by, 1 or more; a pure function.

        Args:
            extent: Final length of the request.
        """


class DistanceScaling(DistanceExtension):
    """All distances are divided by `factor`, so that none lies beyond those of training.

    Source: Al-Khateeb et al. 2023, arXiv:2310.13017, for ALiBi, where it is to scale the slopes: m' = m / factor, with
    factor = L' / L for texts of L' positions after L of training. KERPLE, Sandwich and DynamicBias give their bias at
    (p_i - p_j) / factor; T5 sorts the whole part of it, which makes each bucket `factor` times as wide. Neighbours are
    told apart less well, so short texts suffer; ALiBi gains up to about twice the length without training. RoPEMixed
    turns by positions, whose distances are all that attention sees of them, and takes them divided.

    Raises ZooError for a factor below 1.

    Args:
        factor: How many times further than at first training, 1 or more.
    """

    def __init__(self, geometry: Geometry, *, factor: float) -> None:
        super().__init__(geometry, factor=factor)

    def divisor(self, extent: int) -> float:
        return self.factor


class DynamicDistanceScaling(DistanceExtension):
    """Distances are divided as far as the request needs it, and not at all within the trained length.

    Source: Al-Khateeb et al. 2023, arXiv:2310.13017: slopes times L / max(L, L'), where L is the trained length and L'
    that of the text at hand, here the declared extent of the request. Other encodings divide the distance by
    max(1, extent / L), as in DistanceScaling. Short texts are read as in training.

    Raises ZooError on grids, whose extent is no length.
    """

    dynamic = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if geometry.axes > 1:
            raise ZooError(
                f"DynamicDistanceScaling chooses by the extent of a request, and on {geometry.axes} axes that is a "
                "number of patches and no length.   Try:  --model.position.extension DistanceScaling"
            )

    def divisor(self, extent: int) -> float:
        return max(1.0, extent / self.geometry.length[0])


class BucketScaling(Extension):
    """T5's buckets end `factor` times farther out, and its near ones stay as they are.

    Source: Raffel et al. 2020, arXiv:1910.10683, whose max_distance is multiplied by `factor`. Each of the first half
    of the buckets keeps its one distance; the other half divides the longer range evenly in the logarithm. What was in
    the last bucket is told apart again, as distances that were nearer. A model that was trained on less than T5's
    `distance` positions has never used its last buckets: DistanceScaling leaves them alone, this one does not.

    Raises ZooError for a factor below 1.

    Args:
        factor: How many times further than at first training, 1 or more.
    """

    def __init__(self, geometry: Geometry, *, factor: float) -> None:
        self.geometry, self.factor = geometry, further(self, factor)

    def end(self, distance: int) -> int:
        """Where the last bucket's logarithm ends that ended at `distance` in training."""
        return round(distance * self.factor)
