"""How sure a count is: the interval of Wilson, which is honest at 0 of 5 and 5 of 5, where the normal one has no width.

A grid of retrieval cells has few trials a cell, and many cells at the ends of the scale. There the textbook interval
(share plus or minus 1.96 standard errors) says 100 % for sure; Wilson's says that 5 of 5 may be a model that is right
in 57 of 100.
"""

from __future__ import annotations

import math

from zoo.errors import ZooError

Z = 1.959963984540054
"""The normal distribution's 97.5 % point: two-sided 95 %."""


def wilson(right: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, as fractions: Wilson 1927 (JASA 22, 209-212).

    Args:
        right: Trials that succeeded. May be a sum of fractions of success: a value between 0 and 1 of mean p varies by
            at most p (1 - p), so that the interval is then, if anything, too wide.
        trials: All trials; without any nothing is known, and the interval is (0, 1).
    """
    if not 0 <= right <= trials + 1e-9:
        raise ZooError(f"Of {trials} trials, {right} cannot have been right.")
    if trials == 0:
        return 0.0, 1.0
    share, square = min(right / trials, 1.0), Z * Z / trials
    centre = share + square / 2
    spread = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    return (0.0 if right == 0 else max(low, 0.0)), (1.0 if share == 1 else min(high, 1.0))
