"""The profile: a bias, and often the mask with it, as one vector per head over j - i.

Where positions count up by one, as they nearly always do, slopes and tables depend on j - i only, and so do causality
and the window. Packed documents whose positions start anew count up by one within each document, and no other pair is
seen, so they have a profile too. A block of attention reads a profile as a view (`unfold`, rows in reverse), and the
gradient of a profile is a sum along diagonals, without an index or an atomic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.bias import Bias, Slopes, Toeplitz
from zoo.kernel import Mask


def profile(bias: Bias | None, mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """[heads, queries + keys - 1] over j - i = 1 - queries ... keys - 1; None where that is not all there is.

    Made by autograd outside the blocks, so a slope or a table gets its gradient through a tensor of heads x length.
    The mask is in it (as -inf) where `weavable` says so; what it hides is otherwise left to the caller.
    """
    if bias is None or bias.prefix or mask.null or not isinstance(bias, Slopes | Toeplitz):
        return None
    away = start(bias, mask)
    if away is None:
        return None
    ahead = torch.arange(1 - queries, keys, device=device)
    table = bias.tensors[0][bias.first : bias.first + bias.count]
    if isinstance(bias, Slopes):
        line = -table[:, None] * (ahead - away).abs().to(table.dtype)
    else:
        # Entry n looks up high - n; beyond its ends the table goes on with its last values.
        count, last = len(ahead), table.shape[1]
        high = int(away) + queries - 1 - bias.lowest
        low = high - count + 1
        over, under = (min(max(beyond, 0), count) for beyond in (high - last + 1, -low))
        inside = table[:, max(low, 0) : max(min(high + 1, last), 0)].flip(1)
        line = torch.cat((table[:, -1:].expand(-1, over), inside, table[:, :1].expand(-1, under)), 1)
    if not weavable(mask, queries, keys):
        return line
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if mask.causal:
        hidden = ahead > mask.offset
    if mask.window is not None:
        hidden = hidden | ((ahead - mask.offset).abs() >= mask.window)
    return line.masked_fill(hidden, -torch.inf)


def weavable(mask: Mask, queries: int, keys: int) -> bool:
    """Whether the mask depends on j - i only and leaves no row without a key."""
    if not mask.kinds <= {"causal", "window"} or mask.null or (mask.sinks and mask.window is not None):
        return False
    return mask.window is None or (mask.window > 0 and queries + mask.offset - mask.window < keys)


def start(bias: Slopes | Toeplitz, mask: Mask) -> float | None:
    """Position of query 0 less that of key 0, if the positions of all that is seen count up by one together."""
    _, queries, keys = bias.tensors
    asked = queries, keys, mask.documents, mask.padding
    known = vars(bias).get("start")  # layers share a bias, and on a GPU the answer is worth a synchronisation
    if known is None or any(mine is not other for mine, other in zip(known[0], asked, strict=True)):
        known = vars(bias)["start"] = (asked, answer(queries, keys, mask))
    return known[1]


def answer(queries: Tensor, keys: Tensor, mask: Mask) -> float | None:
    """See `start`."""
    ends = [x - torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) for x in (queries, keys)]
    away = ends[0][..., :1] - ends[1][..., :1]
    checks = [(end == end[..., :1]).all() for end in ends] + [(away == away.flatten()[0]).all()]
    everywhere = torch.stack(checks).all()
    within = torch.zeros_like(everywhere)
    count = queries.shape[-1]
    if (mask.documents is not None or mask.padding is not None) and mask.offset + count <= keys.shape[-1]:
        # A query is a key too, and only keys of its own document, which count up from one to the next, are seen.
        joined = torch.ones(1, keys.shape[-1] - 1, dtype=torch.bool, device=keys.device)
        rising = torch.ones_like(everywhere)
        if mask.documents is not None:
            step = mask.documents.diff()
            joined, rising = step == 0, (step >= 0).all()
        if mask.padding is not None and mask.causal:  # else the padding's queries see keys, from where they stand
            joined = joined & (torch.arange(keys.shape[-1] - 1, device=keys.device) >= mask.padding[:, None])
        same = queries == keys[..., mask.offset : mask.offset + count]
        within = ((ends[1].diff() == 0) | ~joined).all() & rising & same.all()
    found = torch.stack([x.to(torch.float64) for x in (everywhere, within, away.flatten()[0])]).tolist()
    return found[2] if found[0] else mask.offset if found[1] else None


def diagonal(rows: slice, columns: slice, queries: int) -> slice:
    """The part of a profile that a block of reversed rows reads."""
    first = columns.start - rows.stop + queries
    return slice(first, first + (rows.stop - rows.start) + (columns.stop - columns.start) - 1)


def skewed(x: Tensor) -> Tensor:
    """A view of a contiguous [batch, heads, rows, columns + rows] whose columns are diagonals of its first `columns`.

    With a stride of one less, rows shift by one each: [batch x heads, rows, columns + rows - 1]. What moves in are the
    last `rows` columns, which must be 0 by the time of reading.
    """
    batch, heads, rows, wide = x.shape
    return x.as_strided((batch * heads, rows, wide - 1), (rows * wide, wide - 1, 1))


def diagonals(skew: Tensor) -> Tensor:
    """Sums over equal r + c of what `skewed` shows, [batch x heads, rows + columns - 1]."""
    one = skew.new_ones(1, 1, skew.shape[1]).expand(len(skew), -1, -1)
    return torch.bmm(one, skew).squeeze(1)  # a product with ones is the fastest sum
