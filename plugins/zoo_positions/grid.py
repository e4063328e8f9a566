"""Grids of patches: their size, tables stretched over another grid, and biases that depend on the offset (dy, dx) only.

The decision here: a table over offsets is a Toeplitz bias. Let the patch at row y and column x of a grid of W columns
have the number y (2 W - 1) + x. Then two patches' numbers differ by dy (2 W - 1) + dx, and as |dx| < W no two offsets
share a difference. So the table's rows are ordered by dy, then dx, and what looks up distances looks up offsets.

How large a grid is, its positions say. To read that off them waits for a GPU; an image model does it once a layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from zoo.errors import ZooError
from zoo.position import Toeplitz

Mode = Literal["bicubic", "linear"]
MODES = {"bicubic": "bicubic", "linear": "bilinear"}
"""How a table is interpolated along each of its axes, and torch's word for both at once."""


def size(positions: Tensor, trained: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of the smallest grid that holds the positions [..., tokens, 2] of any one example.

    Positions on the meta device have no values; they are those of the grid of first training.
    """
    if positions.is_meta:
        return trained
    spans = positions.amax(-2) - positions.amin(-2) + 1
    height, width = spans.view(-1, positions.shape[-1]).amax(0).long().tolist()
    return height, width


def filled(positions: Tensor, trained: tuple[int, ...], name: str) -> tuple[int, ...]:
    """`size`, for an encoding that resamples its table to it; raises ZooError unless every patch of it is there."""
    found, tokens = size(positions, trained), positions.shape[-2]
    if found[0] * found[1] != tokens and not positions.is_meta:
        raise ZooError(
            f"{name} cannot tell which grid to resample its table to: {tokens} positions do not fill the grid of "
            f"{found[0]} x {found[1]} that they span. Give it whole images, or  --model.position.resample none"
        )
    return found


def stored(grid: list[int] | None, trained: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Patches along each axis of an encoding's table: those of first training, unless it was given others since."""
    if grid is None:
        return trained
    if len(grid) != len(trained) or min(grid) < 1:
        shape, here = (" x ".join(map(str, each)) for each in (grid, trained))
        raise ZooError(
            f"{name} has a table for a grid of {len(trained)} axes, and {shape or 'nothing'} is none.   "
            f"Try:  --model.position.grid [{here.replace(' x ', ',')}]"
        )
    return tuple(grid)


def offsets(size: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """(dy, dx) of each row of a table for (H, W), int64 [(2 H - 1) (2 W - 1), 2], from (1 - H, 1 - W) on."""
    return torch.cartesian_prod(*(torch.arange(1 - length, length, device=device) for length in size)).view(-1, 2)


def look_up(table: Tensor, queries: Tensor, keys: Tensor, size: tuple[int, ...], *, prefix: int = 0) -> Toeplitz:
    """table[h, row of (dy, dx)], where (dy, dx) leads from the key to the query.

    Args:
        table: [heads, (2 H - 1) (2 W - 1)], made by autograd; its rows are those of `offsets`.
        queries: Whole positions (row, column), [tokens, 2] or [batch, tokens, 2].
        keys: Likewise; nowhere H rows or W columns from a query.
        size: (H, W).
        prefix: Prefix tokens, without a bias.
    """
    height, width = size
    stride = 2 * width - 1
    numbers = [x[..., 0] * stride + x[..., 1] for x in (queries.long(), keys.long())]
    return Toeplitz(table, *numbers, lowest=-((height - 1) * stride + width - 1), prefix=prefix)


def resampled(tables: Tensor, size: tuple[int, ...], mode: Mode, antialias: bool = False) -> Tensor:
    """Tables [channels, height, width] as pictures of another size, corners not aligned.

    Cell i of n lies at (i + 1/2) / n. With `antialias` torch takes another cubic (a = -1/2 for -3/4) and, at the edges,
    what there is instead of repeating the last cell; where the size shrinks it averages over all that is skipped. So
    the two differ wherever the size does, most where it shrinks.
    """
    return functional.interpolate(tables[None], size, mode=MODES[mode], align_corners=False, antialias=antialias)[0]


def stretched(tables: Tensor, length: int, mode: Mode) -> Tensor:
    """Tables [channels, length] over another length, ends aligned: entry i of n lies at i / (n - 1)."""
    line = tables[None, :, None]
    return functional.interpolate(line, (1, length), mode=MODES[mode], align_corners=True)[0, :, 0]
