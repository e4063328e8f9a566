"""Windows that are shorter than what they train: a few runs of text, placed far apart.

A short window can show a model every distance of a long one if its tokens are told positions with gaps. A window is
then some runs of neighbours; each is a `Run`, which starts so many positions later, and so many tokens later in the
text, than it would in one piece. A draw is a function of the seed and the item's number alone, as all of `zoo.data` is,
so a resumed run repeats it.

The references make one window of each document, from its start. Here a window starts where its block starts, and what
is skipped stays in the document in which the window ends, so that the runs are of one text wherever it is long enough.
As in both references the last token of a run is trained to predict the first one of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from zoo.errors import ZooError

WINDOWS = 5
"""Windows of text from which PoSE takes one, at most."""


class Run(NamedTuple):
    """Neighbouring tokens of a window."""

    start: int
    """Of its first token, in the window."""
    positions: int
    """How much later its positions are than in the window."""
    text: int
    """How much later in the text it is taken from."""


Draw = Callable[[np.random.Generator, int, int, int], list[Run]]


def pose(random: np.random.Generator, window: int, target: int, room: int) -> list[Run]:
    """Two runs: the first counts from 0, the second starts anywhere that leaves it below the target.

    Source: Zhu et al. 2023, arXiv:2309.10400, with two chunks, and their code (PoSE a3d4ba8). The first is
    U{1, ceil(window / 2)} long, the positions of the second are U{0, target - window} later, and its text, apart from
    that, U{0, 4 windows} later, or as far as there is text.

    Args:
        random: Origin of the draw.
        window: Tokens that are read.
        target: Positions are below it.
        room: Tokens that the document has beyond the window.
    """
    first = int(random.integers(1, -(-window // 2), endpoint=True))
    text = int(random.integers(0, min(room, (WINDOWS - 1) * window), endpoint=True))
    return [Run(0, 0, 0), Run(first, int(random.integers(0, target - window, endpoint=True)), text)]


def cream(random: np.random.Generator, window: int, target: int, room: int) -> list[Run]:
    """Three runs: a head that counts from 0, a tail with the last positions of the target, and a middle between them.

    Source: Wu et al. 2024, arXiv:2406.07138, and their code (CREAM b792386). With f = target / window, head and tail
    are window // 3 tokens each or, as often, 4 f. The last position of the middle, m tokens, is
    U{head + (m - 1) u / 2, u window / 2 - tail - 1}, where u is a whole number within 2 and 2 f, drawn from a Gaussian
    that is cut there. The code's has mean 9 and deviation 3, for f = 8; here it has the middle of its range, 1 + f, and
    3 (f - 1) / 7, which for f = 8 are the same. Text follows positions as far as the document goes, and is else taken
    from its end.

    Args: as in `pose`.
    """
    factor = target / window
    side = window // 3 if random.random() < 0.5 else int(4 * factor)
    middle = window - 2 * side
    # (Drawn by the inverse of the exact distribution, where the code interpolates a table of it.)
    bell = NormalDist(1 + factor, 3 * (factor - 1) / 7)
    low, high = bell.cdf(2), bell.cdf(2 * factor)
    drawn = round(bell.inv_cdf(low + (high - low) * random.random()))
    stretch = min(max(drawn, 2), math.floor(2 * factor)) / 2
    last = int(
        random.integers(
            side + math.ceil((middle - 1) * stretch), math.floor(stretch * window) - side - 1, endpoint=True
        )
    )
    shifts = 0, last - (side + middle - 1), target - window
    starts = 0, side, side + middle
    return [Run(start, shift, min(shift, room)) for start, shift in zip(starts, shifts, strict=True)]


DRAWS: dict[str, Draw] = {"pose": pose, "cream": cream}


@dataclass(frozen=True)
class Placement:
    """Where the tokens of each window are taken from, and what positions they are told.

    Args:
        name: pose or cream.
        window: Tokens that are read.
        target: Positions are below it.
        seed: Origin of the draws.
    """

    name: str
    window: int
    target: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target <= self.window:
            raise ZooError(
                f"{self.name} spreads a window over more positions than it has tokens, and the model reads "
                f"{self.target} where the window has {self.window}.   Try:  --data.length {max(1, self.target // 4)}, "
                "or --data.positions full"
            )
        least = 3 if self.name == "cream" else 2
        if self.window < least or (self.name == "cream" and 2 * int(4 * self.target / self.window) >= self.window):
            why = " of 4 times the factor each" if self.window >= least else ""
            raise ZooError(
                f"{self.name} needs room for its {least} runs{why}, and a window of {self.window} has none if it is to "
                f"train {self.target}.   Try:  a longer --data.length, or --data.positions pose"
            )

    @property
    def most(self) -> int:
        """Tokens beyond the window that may be asked for."""
        return self.target - self.window if self.name == "cream" else (WINDOWS - 1) * self.window

    def __call__(self, number: int, room: int, *more: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of a window are, and the positions that it trains.

        Args:
            number: Of the item.
            room: Tokens that the document has beyond the window.
            more: Further origins of the draw, such as the stream that the item is one of.

        Returns: places in the text [window + 1], from the window's start, and positions [window], int64. The token
        after the window, which is only predicted, follows the last run.
        """
        runs = DRAWS[self.name](
            np.random.default_rng([self.seed, number, *more]), self.window, self.target, max(0, min(room, self.most))
        )
        places, positions = np.arange(self.window + 1), np.arange(self.window)
        for run, end in zip(runs, [*(run.start for run in runs[1:]), self.window + 1], strict=True):
            places[run.start : end] += run.text
            positions[run.start : end] += run.positions
        return places, positions
