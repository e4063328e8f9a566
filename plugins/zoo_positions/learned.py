"""Learned absolute positions: a row of a table per position, added to the token embeddings.

A position beyond the table is refused: a clamp would give two tokens one position in silence. The check costs no device
sync: it reads the declared extent, and the look-up checks each axis. An image of another size may have the table
resampled to its grid, if that is asked for; `zoo extend` writes a table that has been.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding
from zoo_positions.grid import Mode, filled, resampled, stored, stretched


class Learned(PositionEncoding):
    """A trained vector for each position, added to the embedding of the token that stands there.

    Source: Gehring et al. 2017, arXiv:1705.03122; in GPT-2 and ViT. embedding = table[position], of shape
    [tokens, dim] or [batch, tokens, dim]; on a grid the row of the table is y * width + x. The table is
    [rows, dim], on a grid [height * width, dim], drawn from N(0, std), and always float32.

    With `resample`, patches whose positions fill another grid than the table's read it as that grid's picture of it:
    bicubic or bilinear interpolation, corners not aligned, in float32 or better, the prefix left out. Bicubic without
    `antialias` it is what DeiT and RoPE-ViT do, with it what timm does; linear without it what FlexiViT does. The size
    of the grid is read off the positions, which waits for a GPU.

    Raises ZooError for a position beyond the table, and for arguments that contradict each other or the geometry.

    Args:
        std: Standard deviation of the first vectors (GPT-2: 0.02).
        rows: Positions of the table, for text; default: the length of first training. Randomised positions need more.
        grid: Height and width of the table in patches, for images; default: those of first training.
        resample: What to do with another grid than the table's: refuse what is beyond it (none), or interpolate.
        antialias: Whether interpolation averages over all that a smaller grid skips; bicubic changes its cubic too.
    """

    relative = False

    def __init__(
        self,
        geometry: Geometry,
        *,
        std: float = 0.02,
        rows: int | None = None,
        grid: list[int] | None = None,
        resample: Literal["none", "bicubic", "linear"] = "none",
        antialias: bool = False,
    ) -> None:
        super().__init__(geometry)
        text, trained = geometry.axes == 1, torch.Size(geometry.length).numel()
        if std < 0:
            raise ZooError(
                f"Learned cannot draw its table with std {std}. Give 0 or more, such as --model.position.std 0.02"
            )
        if rows is not None and not text:
            size = " x ".join(map(str, geometry.length))
            raise ZooError(
                f"Learned takes its rows from the grid, here {size}, and cannot have {rows}. Leave "
                "--model.position.rows out; another grid is served by  --model.position.resample bicubic"
            )
        if rows is not None and rows < 1:
            raise ZooError(
                f"Learned needs a table of at least 1 row, and got {rows}. Try:  --model.position.rows {trained}"
            )
        if grid is not None and text:
            raise ZooError(
                f"Learned has a table of one axis for text, and cannot have a grid of {grid}.   "
                f"Try:  --model.position.rows {trained}"
            )
        if resample != "none" and geometry.axes != 2:
            raise ZooError(
                f"Learned resamples the table of a grid, and this model has {geometry.axes} "
                f"{'axis' if text else 'axes'}. A longer text is served by a longer table: train with "
                "--model.position.rows, or lengthen a trained one with  zoo extend"
            )
        if antialias and resample == "none":
            raise ZooError(
                "Learned smooths by antialias only what it resamples. Leave it at false, or add  "
                "--model.position.resample bicubic"
            )
        self.std, self.resample, self.antialias = std, resample, antialias
        self.shape = (trained if rows is None else rows,) if text else stored(grid, geometry.length, "Learned")
        self.rows = torch.Size(self.shape).numel()
        self.table = nn.Parameter(torch.empty(self.rows, geometry.dim, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.table, std=self.std)

    def pinned(self) -> dict[str, Any]:
        return {"rows": self.rows} if self.geometry.axes == 1 else {"grid": list(self.shape)}

    def picture(self, size: tuple[int, ...], mode: Mode, antialias: bool = False) -> Tensor:
        """The table as one of another size, [*size, dim]; over the length of a text with its ends aligned."""
        table = self.table.view(*self.shape, -1).movedim(-1, 0)
        if len(size) == 1:
            return stretched(table, size[0], mode).movedim(0, -1)
        return resampled(table, size, mode, antialias).movedim(0, -1)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        table = self.table.view(*self.shape, -1)
        if self.resample == "none":
            if extent > self.rows:
                raise ZooError(self.beyond(f"a request of {extent} positions"))
        elif (size := filled(keys, self.shape, "Learned")) != self.shape:
            table = self.picture(size, self.resample, self.antialias)
        try:
            # An index per axis: the look-up itself then notices a column beyond the grid, which y * width + x would
            # turn into a column of the next row.
            return Encoding(embedding=table[queries.long().unbind(-1)])
        except IndexError as error:
            raise ZooError(self.beyond("a position that is not in it")) from error

    def beyond(self, what: str) -> str:
        """The sentence for a position that has no vector."""
        size = " x ".join(map(str, self.shape))
        if self.geometry.axes == 1:
            way = "give a trained model a longer table with  zoo extend , a new one --model.position.rows, or none"
        else:
            way = (
                "have the table resampled by  --model.position.resample bicubic  or  zoo extend , or train without one"
            )
        return (
            f"Learned has a vector for each of {size} positions and cannot serve {what}. "
            f"Stay within {size}, {way}:  --model.position RoPE"
        )
