"""SelfExtend: near keys as in training, far ones by the number of their group, so that groups are as near as tokens."""

from __future__ import annotations

import math

from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series
from zoo_positions.relocation import Band, Relocation, same, within
from zoo_positions.scaling import further


def longest(length: int, window: int, group: int) -> int:
    """Tokens whose distances all stay below the trained length."""
    return (length - window + window // group) * group


class SelfExtend(Relocation):
    """Keys within a window are rotated as in training, those before it by groups of tokens that share a position.

    Source: Jin et al. 2024, arXiv:2401.01325. With window W and groups of G, a query at i and a key at j are rotated at

        i, j                                          if i - j < W
        floor(i / G) + W - floor(W / G), floor(j / G)     else

    The paper puts the longest text at (L - W) G + W for trained length L, which is exact where G divides W; the last
    pair of others would be one step beyond training, so the exact (L - W + floor(W / G)) G stands here. The default
    is the least G whose longest text reaches factor L. (The repository has W = 1024 and G = 8 at L = 4096, and leaves
    the logarithm off; its later code does not round W / G.)

    Raises ZooError for a factor below 1, a window that is not 1 to L - 1, a group that does not reach so far, on grids,
    in models that are not causal, behind a prefix.

    Args:
        factor: How many times further than at first training, 1 or more.
        window: Distances below this one are as in training (default: L // 4).
        group: Tokens of a group (default: as above).
        log_n: Multiply the logits of a query at p by max(1, ln(p + 1) / ln(L)).
    """

    def __init__(
        self,
        series: Series,
        *,
        factor: float,
        window: int | None = None,
        group: int | None = None,
        log_n: bool = False,
    ) -> None:
        super().__init__(series, log_n=log_n)
        self.factor, length = further(self, factor), self.length
        self.window = within("SelfExtend", "window", window, max(1, length // 4), length - 1)
        target = math.ceil(factor * length - 1e-6)  # a length that a division and a product have rounded
        least = max(1, (target - self.window) // (length - self.window))
        while longest(length, self.window, least) < target:
            least += 1
        self.group = least if group is None else group
        if self.group < 1 or longest(length, self.window, self.group) < target:
            raise ZooError(
                f"SelfExtend with groups of {self.group} and a window of {self.window} does not reach {target} tokens "
                f"within the {length} of training. Give {least}, or leave it out:  "
                f"--model.position.extension.group {least}"
            )
        self.relative = self.group == 1 and not log_n

    def bands(self, extent: int) -> tuple[Band, ...]:
        window, group = self.window, self.group
        beside = window - window // group

        def grouped(p: Tensor) -> Tensor:
            return p.div(group, rounding_mode="floor")

        near = Band(same, same, lambda i, j: i - j < window)
        return near, Band(lambda p: grouped(p) + beside, grouped)

    def account(self) -> list[str]:
        reach = longest(self.length, self.window, self.group)
        return [
            f"keys less than {self.window} back are rotated as in training, those before them in groups of "
            f"{self.group}: up to {reach} tokens no pair stands farther apart than in training"
        ]
