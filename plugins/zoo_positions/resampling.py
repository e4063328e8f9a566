"""Resampling: a trained table of positions becomes a longer one, in which what was trained lies farther apart.

An encoding with a vector or a number for each position has none for what lies beyond them. Here the whole table is
drawn out over the new positions and what lies between is interpolated, as a picture is enlarged. The weights change;
the encoding stays what it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch

from zoo.errors import ZooError
from zoo.extension import Conversion
from zoo.position import Geometry, PositionEncoding
from zoo_positions.grid import Mode
from zoo_positions.learned import Learned
from zoo_positions.relative import RelativeBias


class Resampling(Conversion):
    """The table of Learned or RelativeBias is interpolated over `factor` times as many positions along each axis.

    Source: for images Dosovitskiy et al. 2021, arXiv:2010.11929, bicubic as in DeiT (Touvron et al. 2021,
    arXiv:2012.12877) or bilinear as in FlexiViT (Beyer et al. 2023, arXiv:2212.08013); for text Zhu et al. 2024,
    arXiv:2404.12096 (LongEmbed), linear. On a grid corners are not aligned, as in timm, whose function this equals with
    and without `antialias`; prefix tokens have no row and stay as they are. In a text row i of L' is what lies at
    i (L - 1) / (L' - 1) among the L rows of training, so that both ends keep their vector and no two positions share
    one (dividing by the factor instead would leave the last ones beyond the table).

    A table on a grid is stored with the same interpolation in flight, so that images of other sizes, those of training
    among them, read it as a picture of theirs. A table that was resampled before, and trained since, is what the next
    one is made from: the factor counts from first training.

    Raises ZooError for a factor below 1, for antialias with a text, which only grows, and where the table has all
    positions already.

    Args:
        factor: How many times further than at first training, 1 or more.
        mode: How it is interpolated along each axis (default: bicubic on a grid, linear for text).
        antialias: On a grid, interpolate as timm does by default.
    """

    converts = ("Learned", "RelativeBias")
    retains = True

    def __init__(
        self, *, factor: float, mode: Literal["bicubic", "linear"] | None = None, antialias: bool = False
    ) -> None:
        if not 1 <= factor < math.inf:
            raise ZooError(f"Resampling reads `factor` times as far as in training, 1 or more; got {factor}.")
        self.factor, self.mode, self.antialias = factor, mode, antialias

    def rewrite(self, node: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
        name, own = node["class_path"], copy.deepcopy(dict(node["init_args"]))
        longer = [round(self.factor * length) for length in geometry.length]
        if geometry.axes == 1:
            if self.antialias:
                raise ZooError(
                    "antialias smooths where a grid skips some of the table, and a text skips none. Leave it out."
                )
            rows = own.get("rows") or geometry.length[0]
            if longer[0] <= rows:
                raise ZooError(
                    f"{name} has a table of {rows} rows, and reads {longer[0]} positions as it is. Resampling makes it "
                    f"longer.   Try:  --to {2 * rows}"
                )
            return {"class_path": name, "init_args": own | {"rows": longer[0]}}
        told = {"grid": longer, "resample": self.kind(geometry), "antialias": self.antialias}
        return {"class_path": name, "init_args": own | told}

    def migrate(self, old: PositionEncoding, new: PositionEncoding) -> None:
        source, target = cast(Learned | RelativeBias, old), cast(Learned | RelativeBias, new)
        with torch.no_grad():
            table = source.picture(target.shape, self.kind(old.geometry), self.antialias)
            target.table.copy_(table.reshape(target.table.shape))

    def kind(self, geometry: Geometry) -> Mode:
        """How it interpolates in a model."""
        return self.mode or ("linear" if geometry.axes == 1 else "bicubic")
