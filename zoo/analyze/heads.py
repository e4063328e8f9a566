"""What heads attend to: how far, how widely, how much to the start, and how much alike.

Weights are those of softmax attention's definition, by blocks of rows, so memory is linear in the length. Of kernels of
another form there is nothing to say here, and that is said instead; `distances` measures those too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.analyze.watch import Layer
from zoo.errors import Unfit


class Heads:
    """Statistics of attention per layer and head, means over all queries of all examples.

    With weights w[i, j] of query i on key j:

        distance     sum_j w[i, j] |p_i - p_j| / sum_j w[i, j], in tokens, or in patches (Euclidean), over the keys that
                     have a position (Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, draws it in pixels)
        entropy      -sum_j w[i, j] ln w[i, j], in nats: exp of it is the number of keys that evenly shared attention
        sink         w[i, 0], the weight of the first token, over the queries after it (Xiao et al. 2023,
                     arXiv:2309.17453); for images that of all prefix tokens, class and registers, over the patches
        nothing      1 - sum_j w[i, j]: what a kernel with a null token gives to no token
        similarity   of heads a and b of a layer, the cosine of their rows w_a[i] and w_b[i]: 1 where they are the same,
                     0 where they share no key; over the queries that have a choice, so not the first of a text
        redundancy   of a layer, the mean similarity over the pairs of different heads

    Queries are all tokens of a text, and the patches of an image, not its prefix tokens.

    Args:
        positions: Of the tokens, [tokens, axes], without the prefix.
        prefix: Prefix tokens.
    """

    def __init__(self, positions: Tensor, prefix: int) -> None:
        self.positions, self.prefix = positions, prefix
        self.sums: dict[int, dict[str, Tensor]] = {}
        self.count = 0

    def add(self, seen: Layer) -> None:
        """Add a layer's attention to one batch of examples."""
        call = seen.softmax
        if call is None:
            return
        heads, text = call.q.shape[1], self.positions.shape[1] == 1
        names = ("distance", "entropy", "sink", "nothing")
        sums = {name: torch.zeros(heads, dtype=torch.float64) for name in names}
        gram = torch.zeros(heads, heads, dtype=torch.float64)
        null = call.k.shape[2] - call.tokens
        for rows, whole in call.blocks(self.prefix):
            w = whole[..., null:]
            patches = w[..., self.prefix :]
            here = self.positions[rows.start - self.prefix : rows.stop - self.prefix]
            apart = (here[:, None] - self.positions).square().sum(-1).sqrt()
            far = (patches * apart).sum(-1) / patches.sum(-1).clamp(min=1e-30)
            later = max(0, 1 - rows.start) if text else 0  # the first token of a text has no choice
            start = w[:, :, later:, 0] if text else w[..., : self.prefix].sum(-1)
            values = (far, -torch.special.xlogy(w, w).sum(-1), start, 1 - w.sum(-1))
            for name, value in zip(names, values, strict=True):
                sums[name] += value.sum((0, 2), dtype=torch.float64).cpu()
            unit = torch.nn.functional.normalize(w[:, :, later:], dim=-1)
            gram += torch.einsum("bhrn,bgrn->hg", unit, unit).double().cpu()
        kept = self.sums.setdefault(seen.number, {})
        for name, value in {**sums, "similarity": gram}.items():
            kept[name] = kept[name] + value if name in kept else value
        if seen.number == min(self.sums):
            self.count += len(call.q)

    def value(self) -> dict[str, Any]:
        """Numbers by layer and head; raises Unfit where no layer has a distribution."""
        if not self.sums:
            raise Unfit(
                "This kernel's form is no softmax of dot products, which is all that is read here. How far its heads "
                "are apart is logged at validation by the callback HeadRedundancy, whatever the kernel."
            )
        tokens, text = len(self.positions), self.positions.shape[1] == 1
        several = self.count * max(tokens - 1, 1) if text else self.count * tokens
        found: dict[str, Any] = {"unit": "tokens" if text else "patches", "examples": self.count, "layers": []}
        for number, sums in sorted(self.sums.items()):
            share = {"distance": self.count * tokens, "entropy": self.count * tokens, "nothing": self.count * tokens}
            similarity = sums["similarity"] / several
            heads = len(similarity)
            entry: dict[str, Any] = {
                "layer": number,
                **{
                    name: (sums[name] / share.get(name, several)).tolist()
                    for name in ("distance", "entropy", "sink", "nothing")
                },
                "similarity": similarity.tolist(),
                "redundancy": None,
            }
            if heads > 1:
                entry["redundancy"] = float((similarity.sum() - similarity.trace()) / (heads * (heads - 1)))
            found["layers"].append(entry)
        told = [entry["redundancy"] for entry in found["layers"] if entry["redundancy"] is not None]
        found["redundancy"] = sum(told) / len(told) if told else None
        return found
