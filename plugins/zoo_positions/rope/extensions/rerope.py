"""ReRoPE: near keys as in training, far ones as if at the edge of a window, or slowly farther in its leaky form."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extension import Series
from zoo_positions.relocation import Band, Relocation, same, within
from zoo_positions.scaling import further


class ReRoPE(Relocation):
    """Keys farther back than a window are all rotated as if they stood at its edge.

    Source: Su 2023, github.com/bojone/rerope (rectified rotary position embeddings), with the log-n scaling of Chiang
    and Cholak 2022, arXiv:2202.12172. With window w, a query at i and a key at j are rotated at distance

        min(i - j, w)

    and the logits of a query at p are multiplied by max(1, ln(p + 1) / ln(L)), for trained length L. Texts of any
    length are read, and keys beyond the window are told apart by what they say only. The repository takes windows of
    512 and 1024 at L = 4096.

    Raises ZooError for a window that is not 1 to L - 1, on grids, in models that are not causal, behind a prefix.

    Args:
        window: Distances up to this one are as in training (default: L // 4).
        log_n: Multiply the logits of late queries as above.
    """

    def __init__(self, series: Series, *, window: int | None = None, log_n: bool = True) -> None:
        super().__init__(series, log_n=log_n)
        self.window = within("ReRoPE", "window", window, max(1, self.length // 4), self.length - 1)
        self.relative = not log_n

    def bands(self, extent: int) -> tuple[Band, ...]:
        window = self.window
        near = Band(same, same, lambda i, j: i - j < window)
        return near, Band(lambda p: torch.full_like(p, window), torch.zeros_like)

    def account(self) -> list[str]:
        return [f"keys up to {self.window} back are rotated as in training, all before them as if {self.window} back"]


class LeakyReRoPE(Relocation):
    """Beyond a window distances grow several times slower.

    Source: Su 2023, github.com/bojone/rerope (leaky form), with the log-n scaling of Chiang and Cholak 2022,
    arXiv:2202.12172. With window w and leak k, a query at i and a key at j are rotated at distance

        i - j                      if i - j < w
        w + (i - j - w) / k        else

    and the logits of a query at p are multiplied by max(1, ln(p + 1) / ln(L)). With trained length L and
    L' = factor L the default is the least k that keeps the farthest pair within the distances of training,

        w + (L' - 1 - w) / k = L - 1        k = (L' - 1 - w) / (L - 1 - w)

    which is 1 for a factor of 1, and meets the repository's condition w + (L' - w) / k < L for all above. (The
    repository has w = 512 and k = 16 at L = 4096.)

    Raises ZooError for a factor below 1, a window that is not 1 to L - 2, a leak below the default, on grids, in models
    that are not causal, behind a prefix.

    Args:
        factor: How many times further than at first training, 1 or more.
        window: Distances up to this one are as in training (default: L // 4).
        leak: How many times slower distances beyond it grow (default: as above).
        log_n: Multiply the logits of late queries as above.
    """

    def __init__(
        self,
        series: Series,
        *,
        factor: float,
        window: int | None = None,
        leak: float | None = None,
        log_n: bool = True,
    ) -> None:
        super().__init__(series, log_n=log_n)
        self.factor, last = further(self, factor), self.length - 1
        if self.length < 3:
            raise ZooError("LeakyReRoPE needs distances within its window and beyond, so a trained length of 3.")
        self.window = within("LeakyReRoPE", "window", window, max(1, self.length // 4), last - 1)
        least = (factor * self.length - 1 - self.window) / (last - self.window)
        self.leak = least if leak is None else leak
        if not self.leak >= least:
            raise ZooError(
                f"LeakyReRoPE with a leak of {self.leak:g} would rotate pairs at distances beyond the {last} of "
                f"training, since the text is {factor:g} times as long. Give {least:.4g} or more, or leave it out:  "
                f"--model.position.extension.leak {least:.4g}"
            )
        self.relative = not log_n

    def bands(self, extent: int) -> tuple[Band, ...]:
        window, leak = self.window, self.leak

        def query(p: Tensor) -> Tensor:
            return (p + window * (leak - 1)) / leak

        return Band(same, same, lambda i, j: i - j < window), Band(query, lambda p: p / leak)

    def account(self) -> list[str]:
        return [
            f"keys up to {self.window} back are rotated as in training; beyond, distances grow {self.leak:.4g} times "
            f"slower and reach {self.length - 1} after {self.window + int(self.leak * (self.length - 1 - self.window))}"
        ]
