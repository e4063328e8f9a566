"""The relative position bias of vision transformers: a trained number for each offset of two patches, head and layer.

The table is kept as a picture, a row per dy and a column per dx, since that is what resampling needs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, PositionEncoding
from zoo_positions.grid import Mode, filled, look_up, resampled, size, stored


class RelativeBias(PositionEncoding):
    """A trained bias on the logits for each head and each offset (rows, columns) between query and key.

    Source: Liu et al. 2021, arXiv:2103.14030 (Swin), on a whole image as in BEiT (Bao et al. 2021, arXiv:2106.08254).
    bias[h, i, j] = table[h, y_i - y_j + H - 1, x_i - x_j + W - 1] for a grid of H x W, that of first training
    unless another is stored. The table is float32 [heads, 2 H - 1, 2 W - 1], one per layer, drawn from
    N(0, std) cut at +-2, as Swin's is. Class and register tokens get 0, as in Swin's code (BEiT has three more numbers
    per head for its class token).

    With `resample`, patches that fill another grid read the table as a picture of theirs: bicubic or bilinear
    interpolation to 2 H' - 1 by 2 W' - 1, corners not aligned; bicubic without antialias is how Swin's authors load
    weights into another window (BEiT interpolates at unequal steps instead). The size of the grid is read off the
    positions, which waits for a GPU.

    Raises ZooError for a model of text, and for patches farther apart than any in the grid of first training.

    Args:
        std: Standard deviation of the first numbers (BEiT: 0).
        grid: Height and width in patches whose offsets the table has; default: those of first training.
        resample: What to do with another grid than the table's: refuse what is beyond it (none), or interpolate.
        antialias: Whether interpolation averages over all that a smaller grid skips; bicubic changes its cubic too.
    """

    per_layer = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        std: float = 0.02,
        grid: list[int] | None = None,
        resample: Literal["none", "bicubic", "linear"] = "none",
        antialias: bool = False,
    ) -> None:
        super().__init__(geometry)
        if geometry.axes != 2:
            raise ZooError(
                f"RelativeBias has a table over rows and columns, and this model has {geometry.axes} "
                f"{'axis' if geometry.axes == 1 else 'axes'}. For text, a table over distances is  --model.position T5"
            )
        if std < 0:
            raise ZooError(
                f"RelativeBias cannot draw its table with std {std}. Give 0 or more, such as --model.position.std 0.02"
            )
        if antialias and resample == "none":
            raise ZooError(
                "RelativeBias smooths by antialias only what it resamples. Leave it at false, or add  "
                "--model.position.resample bicubic"
            )
        self.std, self.resample, self.antialias = std, resample, antialias
        self.shape = stored(grid, geometry.length, "RelativeBias")
        picture = (2 * length - 1 for length in self.shape)
        self.table = nn.Parameter(torch.empty(geometry.heads, *picture, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        if self.std:
            nn.init.trunc_normal_(self.table, std=self.std)
        else:
            nn.init.zeros_(self.table)

    def pinned(self) -> dict[str, Any]:
        return {"grid": list(self.shape)}

    def picture(self, size: tuple[int, ...], mode: Mode, antialias: bool = False) -> Tensor:
        """The table as one of another grid of H' x W' patches, [heads, 2 H' - 1, 2 W' - 1]."""
        return resampled(self.table, tuple(2 * length - 1 for length in size), mode, antialias)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        table: Tensor = self.table
        grid = self.shape
        if self.resample == "none":
            asked = size(keys, grid)
            if any(new > old for new, old in zip(asked, grid, strict=True)):
                trained, new = (" x ".join(map(str, shape)) for shape in (grid, asked))
                raise ZooError(
                    f"RelativeBias has a number for each offset within {trained} patches and none for all of {new}. "
                    "Have the table resampled by  --model.position.resample bicubic  or  zoo extend , or train with an "
                    "encoding that has none:  --model.position LogCPB"
                )
        elif (asked := filled(keys, grid, "RelativeBias")) != grid:
            table, grid = self.picture(asked, self.resample, self.antialias), asked
        bias = look_up(table.flatten(1), queries, keys, grid, prefix=self.geometry.prefix)
        return Encoding(bias=bias)
