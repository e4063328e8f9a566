"""FIRE: a learned function of the distance, divided by how far the query stands from the start.

The function is a small network of ReLUs with one input, so it is piecewise linear, and exactly so: its bends, the
knots, are the same for all heads, and between two of them each head has a slope and an intercept. These tables are made
outside of attention, by autograd; a pair of tokens then needs a look-up and a multiplication, and no N x N tensor
exists. Knots carry no gradient: where one piece hands over to the next, the two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.bias import at
from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, Pointwise, PositionEncoding, unrounded
from zoo_positions import grid

EPSILON = 1e-6
"""Added to the denominator after the logarithm, as in every reference."""
MANY = 16
"""Knots among some inputs beyond which it pays to sort these by pieces."""


class FIRE(PositionEncoding):
    """A bias that is a learned function of the distance relative to the position of the query, by logarithms.

    Source: Li et al. 2024, arXiv:2310.04418. With psi(x) = log(|c| x + 1), a threshold L and a network f of ReLUs,

        bias[h, i, j] = f(psi(p_i - p_j) / (psi(max(p_i, |L|)) + 1e-6))[h],        L = threshold multiplier

    a Pointwise bias, float32; c (from 0.1), the multiplier (from 1) and f (Linear(1, width), ReLU, Linear(width,
    heads), drawn as torch draws them) are trained. The input of f stays within [0, 1] at any length. Up to p_i = L the
    bias knows distances only; beyond, attention changes when all positions shift. Causal models only.

    On a grid, which is ours, the distance is the Euclidean one and the diagonal of the grid takes the place of p_i,
    with a fixed L: a Toeplitz bias on the numbers of `zoo_positions.grid`, for models that are not causal.

    Raises ZooError for a text model that is not causal, for more than two axes, and for numbers out of range.

    Args:
        shared: One function for all layers (FIRE-S); otherwise each layer has its own.
        depth: Hidden layers of f: one in the published code, two in the paper's text.
        width: Units of a hidden layer.
        threshold: L before training (default: 512, the references'; on a grid the diagonal of first training).
    """

    unextended = "what its function is given stays between 0 and 1 at any length, as in training"

    def __init__(
        self,
        geometry: Geometry,
        *,
        shared: bool = False,
        depth: Literal[1, 2] = 1,
        width: int = 32,
        threshold: float | None = None,
    ) -> None:
        super().__init__(geometry)
        if geometry.axes > 2 or (geometry.axes == 1 and not geometry.causal):
            what = f"has {geometry.axes} axes" if geometry.axes > 1 else "looks both ways"
            raise ZooError(
                "FIRE divides the distance to what came before by the position of the query, in a causal model of text "
                f"or on a grid, and this model {what}. Try:  --model.position T5"
            )
        if depth not in (1, 2) or width < 1 or (threshold is not None and not threshold > 0):
            raise ZooError(
                "FIRE's function has 1 or 2 hidden layers of at least 1 unit and a threshold above 0; got depth "
                f"{depth}, width {width}, threshold {threshold}. Leave them out, or try:  --model.position.width 32"
            )
        self.per_layer, self.relative = not shared, geometry.axes == 2
        usual = 512.0 if geometry.axes == 1 else max(1.0, math.hypot(*(length - 1 for length in geometry.length)))
        self.threshold = usual if threshold is None else float(threshold)
        widths = [1, *[width] * depth, geometry.heads]
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float32) for a, b in pairwise(widths))
        self.c, self.multiplier = (nn.Parameter(torch.empty((), dtype=torch.float32)) for _ in range(2))
        self.multiplier.requires_grad_(geometry.axes == 1)
        self.reset_parameters()

    def pinned(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def reset_parameters(self) -> None:
        """Draw the function anew."""
        for layer in self.linear:
            layer.reset_parameters()
        nn.init.constant_(self.c, 0.1)
        nn.init.ones_(self.multiplier)

    @property
    def linear(self) -> list[nn.Linear]:
        """The linear maps of f; ReLUs stand between them."""
        return cast(list[nn.Linear], list(self.layers))

    def psi(self, x: Tensor) -> Tensor:
        """log(|c| x + 1) of distances, which are not negative."""
        return (self.c * x).abs().log1p()

    def inverse(self, reach: Tensor) -> Tensor:
        """1 / (psi(max(reach, |L|)) + 1e-6)."""
        return 1 / (self.psi(torch.maximum(reach, (self.multiplier * self.threshold).abs())) + EPSILON)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        kind, prefix = self.c.dtype, self.geometry.prefix
        with unrounded(queries):
            if self.geometry.axes == 2:
                shape = grid.size(torch.cat((queries, keys), -2), self.geometry.length)
                away = grid.offsets(shape, queries.device).to(kind).norm(dim=-1)
                x = self.psi(away) * self.inverse(away.max())
                knots, slope, intercept = self.pieces()
                table = piece(x, slope, intercept, knots)
                return Encoding(bias=grid.look_up(table, queries, keys, shape, prefix=prefix))
            line = self.psi(torch.arange(extent, device=queries.device, dtype=kind))
            inverse = self.inverse(queries[..., 0].to(kind))
            bias = Piecewise(line, inverse, *self.pieces(), queries[..., 0], keys[..., 0], prefix=prefix)
        return Encoding(bias=bias)

    def pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        """f on [0, 1]: rising knots [n], without gradient, and slope and intercept [heads, n + 1] between them.

        A place that holds no knot is filled with 1, which no input exceeds: shapes depend on no value. All of it is
        float64, where the device has it, since a piece is known by the signs that the network has in its middle.
        """
        wide = torch.float32 if self.c.device.type == "mps" else torch.float64
        maps = [(layer.weight.to(wide), layer.bias.to(wide)) for layer in self.linear]
        knots = maps[0][0].new_empty(0)
        for number in range(1, len(maps)):
            with torch.no_grad():
                slope, intercept = straight(maps[:number], middles(knots))
                bends = -intercept / slope  # nan or infinite where a unit is constant
                left, right = ends(knots)
                inside = (bends > left.unsqueeze(-1)) & (bends <= right.unsqueeze(-1))
                knots = torch.cat((knots, torch.where(inside, bends, 1.0).flatten())).sort().values
        slope, intercept = straight(maps, middles(knots))
        kind = self.c.dtype
        return knots.to(kind), slope.T.to(kind), intercept.T.to(kind)


def ends(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pieces of [0, 1] begin and end, [n + 1] each."""
    return torch.cat((knots.new_zeros(1), knots)), torch.cat((knots, knots.new_ones(1)))


def middles(knots: Tensor) -> Tensor:
    """The middle of each piece, [n + 1]."""
    left, right = ends(knots)
    return (left + right) / 2


def straight(maps: list[tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept, [points, units], that a network of ReLUs has around each input; the last map has no ReLU."""
    slope, intercept = torch.ones_like(x).unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1)
    for number, (weight, bias) in enumerate(maps):
        if number:
            on = (slope * x.unsqueeze(-1) + intercept).detach() > 0
            slope, intercept = slope * on, intercept * on
        slope, intercept = slope @ weight.T, intercept @ weight.T + bias
    return slope, intercept


class Piecewise(Pointwise):
    """slope[h, s] x + intercept[h, s] on piece s of x = line[p_i - p_j] inverse[i].

    Args:
        line: [distances].
        inverse: Of queries, [tokens] or [batch, tokens].
        knots: [n], rising.
        slope: [heads, n + 1].
        intercept: [heads, n + 1].
        queries: Whole positions [tokens] or [batch, tokens].
        keys: Likewise.
        prefix: Prefix tokens.
    """

    def __init__(
        self,
        line: Tensor,
        inverse: Tensor,
        knots: Tensor,
        slope: Tensor,
        intercept: Tensor,
        queries: Tensor,
        keys: Tensor,
        *,
        prefix: int = 0,
    ) -> None:
        super().__init__(
            piecewise,
            (line, inverse, slope, intercept, knots, queries.long(), keys.long()),
            heads=len(slope),
            queries=queries.shape[-1],
            keys=keys.shape[-1],
            batch=1 if queries.ndim == 1 else len(queries),
            prefix=prefix,
        )

    def values(self, rows: slice, columns: slice) -> Tensor:
        line, inverse, slope, intercept, knots, queries, keys = self.tensors
        if line.device.type != "cpu":
            return super().values(rows, columns)
        away = (queries[..., rows, None] - keys[..., None, columns]).clamp(0, len(line) - 1)
        x = line.index_select(0, away.flatten()).view(away.shape) * inverse[..., rows, None]
        mine = slice(self.first, self.first + self.count)
        bias = piece(x, slope[mine], intercept[mine], knots)
        return bias.view(self.count, self.batch, *x.shape[-2:]).transpose(0, 1)


def piecewise(
    b: Tensor,
    h: Tensor,
    i: Tensor,
    j: Tensor,
    line: Tensor,
    inverse: Tensor,
    slope: Tensor,
    intercept: Tensor,
    knots: Tensor,
    queries: Tensor,
    keys: Tensor,
) -> Tensor:
    """The same for single indices, and for broadcasting ones; the piece is found by halving, in a fixed number."""
    away = (at(queries, b, i) - at(keys, b, j)).clamp(0, line.shape[0] - 1)
    x = line[away] * at(inverse, b, i)
    piece, count = away * 0, knots.shape[0]
    for step in (2**n for n in reversed(range(count.bit_length()))):
        ahead = piece + step
        below = (ahead <= count) & (knots[(ahead - 1).clamp(max=count - 1)] < x)
        piece = torch.where(below, ahead, piece)
    return slope[h, piece] * x + intercept[h, piece]


@torch.compiler.disable
def piece(x: Tensor, slope: Tensor, intercept: Tensor, knots: Tensor) -> Tensor:
    """slope[h, s] x + intercept[h, s] of all heads, [heads, ...], where x [...] lies on piece s."""
    return cast(Tensor, Piece.apply(x, slope, intercept, knots))


class Piece(torch.autograd.Function):
    """`piece` by products of matrices instead of look-ups; the pieces must meet at their knots, as those of f do.

    f is its first piece and, from each knot t on, the change of slope times (x - t): features of x alone, which all
    heads share. In backward the sums over a piece are differences of sums over all that lies beyond a knot.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, intercept: Tensor, knots: Tensor) -> Tensor:
        ctx.cuts = list(cuts(x, knots))
        ctx.save_for_backward(x, slope, knots)
        found = []
        with unrounded(x):  # a kernel asks for values inside of autocast, which would round these products
            for part, first, last in ctx.cuts:
                some = x[..., part].reshape(1, -1)
                if last > first:
                    some = torch.cat((some, (some - knots[first:last, None]).relu_()))
                # Head by head: so the bits of a head do not depend on which others are asked for.
                change = rises(slope, first, last).unsqueeze(1)
                values = torch.baddbmm(intercept[:, first, None, None], change, some.expand(len(slope), -1, -1))
                found.append(values.view(len(slope), *x.shape[:-1], -1))
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, knots = ctx.saved_tensors
        with unrounded(x):  # backward may be called inside one
            return *Piece.pull(x, slope, knots, down, ctx.cuts), None

    @staticmethod
    def pull(
        x: Tensor, slope: Tensor, knots: Tensor, down: Tensor, cuts: list[tuple[slice, int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, of the slopes and of the intercepts."""
        into_slope, into_intercept = torch.zeros_like(slope), torch.zeros_like(slope)
        into_x = torch.empty_like(x)
        for part, first, last in cuts:
            some, push = x[..., part].reshape(-1), down[..., part].reshape(len(slope), -1)
            change = rises(slope, first, last)
            pull = change[:, 0] @ push
            sums, moments = [push.sum(1)], [push @ some]
            if last > first:
                beyond = torch.gt(some, knots[first:last, None], out=some.new_empty(last - first, len(some)))
                pull += (change[:, 1:].T @ push).mul_(beyond).sum(0)
                sums += (beyond @ push.T).unbind()
                moments += (beyond.mul_(some) @ push.T).unbind()
            for into, over in ((into_intercept, sums), (into_slope, moments)):
                into[:, first : last + 1] -= torch.stack(over, 1).diff(dim=1, append=into.new_zeros(len(into), 1))
            into_x[..., part] = pull.view(*x.shape[:-1], -1)
        return into_x, into_slope, into_intercept


def rises(slope: Tensor, first: int, last: int) -> Tensor:
    """The slope of one piece and the changes from there to another."""
    return torch.cat((slope[:, first, None], slope[:, first : last + 1].diff(dim=1)), 1)


def cuts(x: Tensor, knots: Tensor, columns: slice | None = None) -> Iterator[tuple[slice, int, int]]:
    """Parts of the last axis of x, each with the first and the last piece that it lies on: few, or few columns.

    To look is to wait for a GPU, so there all of x lies on all pieces.
    """
    columns = columns or slice(0, x.shape[-1])
    if x.device.type != "cpu":
        yield columns, 0, len(knots)
        return
    first, last = torch.searchsorted(knots, torch.stack(x[..., columns].aminmax())).tolist()
    middle = (columns.start + columns.stop) // 2
    if last - first <= MANY or middle - columns.start < MANY:
        yield columns, first, last
        return
    yield from cuts(x, knots, slice(columns.start, middle))
    yield from cuts(x, knots, slice(middle, columns.stop))
