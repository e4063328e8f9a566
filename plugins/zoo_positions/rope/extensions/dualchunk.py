"""Dual chunk attention: positions start anew in each chunk, and earlier chunks are seen from beyond the chunk's end."""

from __future__ import annotations

import math

from torch import Tensor

from zoo.extension import Series
from zoo_positions.relocation import Band, Relocation, same, within
from zoo_positions.rope.extensions.byparts import positive


class DualChunk(Relocation):
    """Tokens of a chunk see each other as in training, those of the chunk before nearly so, and all others from afar.

    Source: An et al. 2024, arXiv:2402.17463 (DCA, of ChunkLlama). With `chunk` positions s of which w are `local`,
    texts are cut every c = s - w tokens. Keys are rotated at j mod c, and a query at i

        at i mod c                    for keys of its own chunk
        at min(i mod c + c, s)        for those of the chunk before
        at min(2c - 1, s)             for those of all chunks before that

    so that the last w keys before a chunk keep their distances, and none exceeds s. cos and sin are multiplied by
    0.05 ln(extent / L) + 1, for trained length L, which is the authors' code; their paper's results are without. Texts
    of any length are read. A request of at most L positions is read by plain RoPE, which is ours: the authors' code
    cuts those too, and has nothing to gain by it.

    Raises ZooError for a chunk that is not 1 to L - 1, a local part that is not 0 to chunk - 1, an attention factor
    that is not above 0, on grids, in models that are not causal, behind a prefix.

    Args:
        chunk: The farthest distance, s (default: floor(3/4 L)).
        local: Keys before a chunk that keep their distances from its first query, w (default: L // 8).
        attention: Attention factor (default: as above; 1 is the paper's).
    """

    dynamic = True

    def __init__(
        self, series: Series, *, chunk: int | None = None, local: int | None = None, attention: float | None = None
    ) -> None:
        super().__init__(series)
        self.chunk = within("DualChunk", "chunk", chunk, self.length * 3 // 4, self.length - 1)
        usual = min(self.length // 8, self.chunk - 1)
        self.local = within("DualChunk", "local", local, usual, self.chunk - 1, least=0)
        self.attention = attention
        positive("DualChunk", attention)

    def bands(self, extent: int) -> tuple[Band, ...]:
        if extent <= self.length:
            return (Band(same, same),)
        farthest, cut = self.chunk, self.chunk - self.local

        def number(p: Tensor) -> Tensor:
            return p.div(cut, rounding_mode="floor")

        def inner(p: Tensor) -> Tensor:
            return p.remainder(cut)

        return (
            Band(inner, inner, lambda i, j: number(i) - number(j) < 1),
            Band(lambda p: (inner(p) + cut).clamp(max=farthest), inner, lambda i, j: number(i) - number(j) < 2),
            Band(lambda p: (0 * p + 2 * cut - 1).clamp(max=farthest), inner),
        )

    def gain(self, extent: int) -> float:
        if extent <= self.length:
            return 1.0
        return 0.05 * math.log(extent / self.length) + 1 if self.attention is None else self.attention

    def account(self) -> list[str]:
        return [
            f"positions start anew every {self.chunk - self.local} tokens; keys of earlier chunks are rotated as if at "
            f"most {self.chunk} back"
        ]
