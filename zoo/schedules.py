"""Learning-rate schedules: a factor on the optimizer's rate for each optimizer step."""

from __future__ import annotations

import math

from zoo.errors import ZooError


class Schedule:
    """Base class: linear warm-up, then whatever `after` says.

    Args:
        warmup: Steps of warm-up; a fraction of all steps where it is below 1.
        floor: Factor at the last step.
    """

    def __init__(self, warmup: float = 0.01, floor: float = 0.1) -> None:
        if warmup < 0 or not 0 <= floor <= 1:
            raise ZooError(f"A schedule takes warmup >= 0 and floor within 0 and 1, and got {warmup} and {floor}.")
        self.warmup, self.floor = warmup, floor

    def factor(self, step: int, total: int) -> float:
        """Factor at `step` (0-based) of `total`."""
        warm = self.warmup if self.warmup >= 1 else self.warmup * total
        if step < warm:
            return (step + 1) / (warm + 1)
        return self.after(min(max((step - warm) / max(total - 1 - warm, 1), 0.0), 1.0))

    def after(self, progress: float) -> float:
        """Factor after the warm-up; `progress` runs from 0 to 1."""
        return 1.0


class WarmupCosine(Schedule):
    """Warm-up, then half a cosine down to the floor (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        warmup: Steps of warm-up; a fraction of all steps where it is below 1.
        floor: Factor at the last step.
    """

    def after(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


class WarmupStableDecay(Schedule):
    """Warm-up, a constant rate, then a linear decay to the floor (Hu et al. 2024, arXiv:2404.06395).

    Args:
        warmup: Steps of warm-up; a fraction of all steps where it is below 1.
        floor: Factor at the last step.
        decay: The fraction of the steps after warm-up that decays.
    """

    def __init__(self, warmup: float = 0.01, floor: float = 0.0, decay: float = 0.2) -> None:
        super().__init__(warmup, floor)
        if not 0 < decay <= 1:
            raise ZooError(f"decay is a fraction of the steps, above 0 and at most 1, and got {decay}.")
        self.decay = decay

    def after(self, progress: float) -> float:
        return 1 - (1 - self.floor) * max(0.0, 1 - (1 - progress) / self.decay)
