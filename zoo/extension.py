"""The contract of extensions: what makes a trained position encoding read further than it was trained.

An extension is a keyword of the encodings that take it, annotated with the kind. Waves are the kind that several
encodings share, so it is here; others live with their encodings. A `Conversion` is no part of a model: it says which
encoding takes the place of a trained one, and what becomes of its weights.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from zoo.errors import ZooError
from zoo.position import Geometry, PositionEncoding


class Extension:
    """Base class of what makes an encoding read further than it was trained.

    An argument `factor` of a subclass says how many times further, 1 or more; it alone may be without a default.
    """

    dynamic: bool = False
    """Whether it looks at the extent of a request; otherwise all requests are served alike."""
    advice: str = ""
    """What has to be done before the result is of use, as a clause; `zoo extend` prints it."""

    def account(self) -> list[str]:
        """What it does with these numbers, in clauses for a person, as far as a table of waves does not tell."""
        return []


class Searched(ABC):
    """What an extension is besides if some of its numbers can be found by a search over text: how to vary them.

    They are a list, whose meaning and limits are the extension's own. Which list is best is for the search to say.
    """

    @abstractmethod
    def seeds(self) -> list[list[float]]:
        """Where a search starts; the first are the numbers that the extension has without one."""

    @abstractmethod
    def child(self, one: list[float], other: list[float], rng: random.Random) -> list[float]:
        """Numbers that vary those of two parents, which may be the same, and keep within the limits."""

    @abstractmethod
    def arguments(self, numbers: list[float]) -> dict[str, Any]:
        """The keywords with which the extension has these numbers."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The waves of one axis as they were trained: base^(-2t / width) radians per position, for t < width / 2.

    Args:
        base: Of the powers.
        width: Twice the number of waves, which for RoPE is the number of rotated channels.
        length: Positions along the axis at first training.
        axes: Of the model; beyond one, the extent of a request is no length along an axis.
    """

    base: float
    width: int
    length: int
    axes: int = 1


class WaveExtension(Extension, ABC):
    """Base class of extensions that change the waves of an encoding, such as RoPE's: one is built for each axis.

    Args:
        series: The waves as they were trained.
        factor: How many times further the encoding is to read.
    """

    def __init__(self, series: Series, *, factor: float = 1.0) -> None:
        if not 1 <= factor < math.inf:
            raise ZooError(
                f"{type(self).__name__} reads `factor` times as far as in training, 1 or more; got {factor}.   "
                "Try:  --model.position.extension.factor 4"
            )
        self.series, self.factor = series, factor

    @abstractmethod
    def waves(self, frequencies: Tensor, extent: int) -> tuple[Tensor, float]:
        """The waves of a request, and the attention factor, which multiplies cos and sin.

        A pure function, called on the CPU. An encoding may have only the fastest waves of the series.

        Args:
            frequencies: Of the fastest waves of the series, radians per position, falling, float32 or float64.
            extent: Final length of the request.
        """


class Conversion(Extension, ABC):
    """Base class of methods that put another encoding, or another setting with weights of its own, in a trained one's
    place.

    Its arguments are keywords, and `zoo extend` builds it. A subclass whose `factor` has no default is given it.
    """

    converts: ClassVar[tuple[str, ...]] = ()
    """Names of the encodings that it converts."""

    @abstractmethod
    def rewrite(self, node: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
        """The description {class_path, init_args} of the encoding that takes the place of another.

        Args:
            node: The other's description, without any extension.
            geometry: Of the model, with the length of first training.
        """

    def migrate(self, old: PositionEncoding, new: PositionEncoding) -> None:
        """Fill the weights of the new encoding, which has those that it draws itself, from the trained ones of the old.

        Args:
            old: As it was trained, on the CPU.
            new: As `rewrite` describes it, freshly built on the CPU; for each layer where it is per layer.
        """
