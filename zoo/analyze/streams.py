"""What happens to waves along the text: the frequency content of the stream before and after each block.

FoPE's paper (Hua et al. 2024, arXiv:2412.17739) argues that linear maps and activations move and add frequencies, so
that a channel carries more waves than the one that RoPE multiplies it with ("spectrum damage"). Here that is looked at
from outside: how the power of the hidden states is shared out among frequencies along the token axis, and how much each
block changes that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.analyze.watch import Layer

SITES = ("before", "attended", "fed", "after")
"""The stream before the block, what attention adds to it, what the feed-forward layer adds, the stream after it."""


def frequencies(grid: tuple[int, ...]) -> Tensor:
    """The length of each frequency vector of `fftn` over the grid, in cycles per token (patch), flat."""
    axes = [torch.fft.fftfreq(length, dtype=torch.float64) for length in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt().flatten()


def power(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """|fft|^2 along the tokens of x [batch, tokens, dim] less their mean, summed over batch and channels, flat."""
    x = x.float() - x.float().mean(1, keepdim=True)
    x = x.unflatten(1, grid)
    return torch.fft.fftn(x, dim=tuple(range(1, 1 + len(grid)))).abs().square().sum((0, -1)).flatten().double().cpu()


class Streams:
    """Share of power by frequency at each site of each block, without the mean over tokens.

        band       1, 2, 3 to 4, 5 to 8, ... cycles in an example: octaves of frequency, up to half a cycle per token,
                   each by its mean frequency in cycles per token (patch), on a grid the length of the frequency vector
        share      of the power in a band, summed over channels; the bands of a site add up to 1
        even       the share of a band if all frequencies had the same power, as in noise
        centroid   mean frequency, weighted by power
        change     half the sum over bands of |share after - share before|: 0 if the block leaves the spectrum as it
                   is, 1 if it moves all of it

    Args:
        grid: Tokens along each axis, at least 2 in all.
        prefix: Prefix tokens, left out.
    """

    def __init__(self, grid: tuple[int, ...], prefix: int) -> None:
        self.grid, self.prefix = grid, prefix
        self.sums: dict[int, dict[str, Tensor]] = {}
        self.frequencies = frequencies(grid)
        lowest = 1 / max(grid)
        band = (torch.log2(self.frequencies.clamp(min=lowest) / lowest) - 1e-9).ceil().long()
        band[self.frequencies == 0] = -1
        self.used, self.band = torch.unique(band, return_inverse=True)

    def add(self, seen: Layer) -> None:
        """Add a layer's streams on one batch of examples."""
        kept = self.sums.setdefault(seen.number, {})
        for site in SITES:
            found = power(getattr(seen, site)[:, self.prefix :], self.grid)
            kept[site] = kept[site] + found if site in kept else found

    def banded(self, values: Tensor) -> Tensor:
        """Sums over the bands; the mean over tokens is left out."""
        return torch.zeros(len(self.used), dtype=torch.float64).scatter_add_(0, self.band, values)[1:]

    def value(self) -> dict[str, Any] | None:
        """Numbers by layer and site; None where there are no two tokens to change between."""
        if math.prod(self.grid) < 2:
            return None
        members = self.banded(torch.ones_like(self.frequencies))
        layers = []
        for number, kept in sorted(self.sums.items()):
            entry: dict[str, Any] = {"layer": number}
            shares = {}
            for site in SITES:
                total = kept[site].sum() - kept[site][0]
                shares[site] = self.banded(kept[site]) / total.clamp(min=1e-300)
                centre = float((kept[site][1:] * self.frequencies[1:]).sum() / total.clamp(min=1e-300))
                entry[site] = {"share": shares[site].tolist(), "centroid": centre}
            entry["change"] = float((shares["after"] - shares["before"]).abs().sum() / 2)
            layers.append(entry)
        return {
            "unit": "cycles per " + ("token" if len(self.grid) == 1 else "patch"),
            "bands": (self.banded(self.frequencies) / members).tolist(),
            "even": (members / members.sum()).tolist(),
            "layers": layers,
        }
