"""What a bias adds to the logits over distance, learned or fixed, of any rung.

For text it is the picture of FIRE's paper (Li et al. 2024, arXiv:2310.04418): the bias of the 128th query on every key
before it, and beside it that of the last query, since some biases change with where the query stands. For images it is
a map over the offset (dy, dx).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.analyze.response import thin
from zoo.analyze.watch import Call, Layer
from zoo.bias import Logits, rung

QUERY = 128
"""The query whose bias FIRE's authors draw, counted from 1."""


def added(call: Call, rows: slice) -> Tensor:
    """What the bias adds to the logits of some rows, [batch or 1, heads, rows, keys], float32.

    A map of the logits adds what it gives less what it takes, on the queries and keys at hand.
    """
    assert call.bias is not None
    q, k, visible = call.q[:, :, rows].float(), call.k.float(), call.visible(rows)
    if isinstance(call.bias, Logits):
        plain = call.logits(rows)
        return call.bias.onto(plain, q, k, visible, call.scale, rows) - plain
    return call.bias.block(rows, slice(0, k.shape[2])).float()


class Curves:
    """The bias of some queries over the distance to the key, or over (dy, dx) on a grid, per layer and head.

        values    text: for each of `queries` (counted from 1) [heads][distances], for the key so many tokens back;
                  images: [heads][2 H - 1][2 W - 1], the mean over all pairs of patches that are (dy, dx) apart, query
                  less key, from (1 - H, 1 - W) on
        low, high the least and the greatest over the examples, where the bias depends on the content, so that values
                  are means (text only)

    Args:
        grid: Tokens along each axis.
        prefix: Prefix tokens, left out.
    """

    def __init__(self, grid: tuple[int, ...], prefix: int) -> None:
        self.grid, self.prefix = grid, prefix
        self.queries = sorted({min(QUERY, grid[0]), grid[0]})
        self.found: dict[int, list[list[Tensor]]] = {}
        self.rungs: dict[int, str] = {}

    def add(self, seen: Layer) -> None:
        """Add a layer's bias on one batch of examples."""
        call = seen.asked
        if call is None or call.bias is None:
            return
        step = rung(call.bias)
        assert step is not None
        self.rungs[seen.number] = step.__name__
        kept = self.found.setdefault(seen.number, [])
        if len(self.grid) == 1:
            rows = []
            for query in self.queries:
                row = self.prefix + query - 1
                curve = added(call, slice(row, row + 1))[:, :, 0, self.prefix : row + 1].flip(-1)
                rows.append(curve[..., thin(query)].double().cpu())
            kept.append(rows)
        else:
            kept.append([self.map(call)])

    def map(self, call: Call) -> Tensor:
        """Means by offset, [1, heads, 2 H - 1, 2 W - 1]."""
        height, width = self.grid
        line = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        size = (2 * height - 1) * (2 * width - 1)
        total, count = torch.zeros(call.q.shape[1], size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for first in range(0, len(line), 128):
            here = line[first : first + 128]
            apart = here[:, None] - line + torch.tensor(self.grid) - 1
            where = (apart[..., 0] * (2 * width - 1) + apart[..., 1]).flatten()
            rows = slice(self.prefix + first, self.prefix + first + len(here))
            values = added(call, rows)[..., self.prefix :].mean(0).flatten(1).double().cpu()
            total.index_add_(1, where, values)
            count.index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
        return (total / count).view(1, -1, 2 * height - 1, 2 * width - 1)

    def value(self) -> dict[str, Any] | None:
        """Numbers by layer and head; None where no layer has a bias."""
        if not self.found:
            return None
        text = len(self.grid) == 1
        layers = []
        for number, examples in sorted(self.found.items()):
            each = [torch.cat(rows) for rows in zip(*examples, strict=True)]  # [examples, heads, ...]
            moves = any(float((rows - rows[:1]).abs().max()) > 1e-6 for rows in each)
            entry: dict[str, Any] = {"layer": number, "rung": self.rungs[number], "content": moves}
            means = [rows.mean(0).tolist() for rows in each]
            entry["values"] = means if text else means[0]
            if moves and text:
                entry |= {
                    "low": [rows.amin(0).tolist() for rows in each],
                    "high": [rows.amax(0).tolist() for rows in each],
                }
            layers.append(entry)
        found: dict[str, Any] = {"layers": layers}
        if text:
            return {"queries": self.queries, "distances": [thin(query) for query in self.queries], **found}
        return {"offsets": [[1 - length, length - 1] for length in self.grid], **found}
