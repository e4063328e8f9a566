"""Learned absolute positions: a row of a table per position, added to the token embeddings.

The table ends where first training ended, and a request beyond it is refused: a clamp would give two tokens one
position in silence. The check costs no device sync: it reads the declared extent, and the look-up checks each axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding


class Learned(PositionEncoding):
    """A trained vector for each position, added to the embedding of the token that stands there.

    Source: Gehring et al. 2017, arXiv:1705.03122; in GPT-2 and ViT. embedding = table[position], of shape
    [tokens, dim] or [batch, tokens, dim]; on a grid the row of the table is y * width + x. The table is
    [product of the lengths, dim], drawn from N(0, std), and always float32.

    Raises ZooError for a position beyond the table.

    Args:
        std: Standard deviation of the first vectors (GPT-2: 0.02).
    """

    relative = False

    def __init__(self, geometry: Geometry, *, std: float = 0.02) -> None:
        super().__init__(geometry)
        if std < 0:
            raise ZooError(
                f"Learned cannot draw its table with std {std}. Give 0 or more, such as --model.position.std 0.02"
            )
        self.std = std
        self.rows = torch.Size(geometry.length).numel()
        self.table = nn.Parameter(torch.empty(self.rows, geometry.dim, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.table, std=self.std)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        if extent > self.rows:
            raise ZooError(self.beyond(f"a request of {extent} positions"))
        try:
            # An index per axis: the look-up itself then notices a column beyond the grid, which y * width + x would
            # turn into a column of the next row.
            return Encoding(embedding=self.table.view(*self.geometry.length, -1)[queries.long().unbind(-1)])
        except IndexError as error:
            raise ZooError(self.beyond("a position that is not in it")) from error

    def beyond(self, what: str) -> str:
        """The sentence for a position that has no vector."""
        size = " x ".join(map(str, self.geometry.length))
        return (
            f"Learned has a vector for each of {size} positions and cannot serve {what}. "
            f"Stay within {size}, or train with an encoding that has no table:  --model.position RoPE"
        )
