"""How attention responds to distance: the mean logit of a query with the key so many tokens back, and its waves.

With a rotation a logit is a sum of waves in the distance, sum_t |q_t| |k_t| cos(w_t d + phase): a Fourier series whose
frequencies w_t are not evenly spaced, and whose coefficients content chooses. (That is the reading of RoPE as a
non-uniform discrete Fourier transform in Hua et al. 2024, arXiv:2412.17739.) Averaged over a text it is a curve over
distance, measured here for all distances at once, as a correlation by fast Fourier transforms: time and memory are
linear in the length but for a logarithm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.analyze.watch import Layer
from zoo.position import Rotation

DRAWN = 512
"""Distances that are kept of a text, at most."""


def thin(count: int, most: int = DRAWN) -> list[int]:
    """0 .. count - 1, or where that is more than `most`, about so many of them: evenly spaced by logarithm, whole."""
    if count <= most:
        return list(range(count))
    steps = torch.logspace(0, torch.log10(torch.tensor(float(count))).item(), most, dtype=torch.float64) - 1
    return sorted({min(round(step), count - 1) for step in steps.tolist()})


def correlate(q: Tensor, k: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The mean of q_i . k_j over all i and j that are an offset apart.

    Args:
        q: [heads, tokens, width].
        k: Likewise.
        grid: Tokens along each axis; their product is `tokens`.

    Returns:
        [heads, *(2 n - 1 for n in grid)], float64; the offset p_i - p_j along an axis of n tokens runs from 1 - n on.
    """
    axes = tuple(range(len(grid)))
    size = [2 * length - 1 for length in grid]
    count = torch.ones(1, dtype=torch.float64)
    for length in grid:
        line = length - torch.arange(1 - length, length).abs()
        count = count.unsqueeze(-1) * line
    rows = []
    for a, b in zip(q, k, strict=True):  # a head at a time: the transforms take four times the memory of a head
        a, b = (x.double().cpu().unflatten(0, grid) for x in (a, b))
        product = torch.fft.fftn(a, size, axes) * torch.fft.fftn(b, size, axes).conj()
        rows.append(torch.fft.ifftn(product.sum(-1), size, axes).real)
    shift = [length - 1 for length in grid]
    return torch.stack(rows).roll(shift, [axis + 1 for axis in axes]) / count


def transform(curve: Tensor) -> Tensor:
    """Amplitude of each frequency in curves [..., distances]: k / distances cycles per token, k = 1 .. distances / 2.

    The curve less its mean, times a Hann window, so that a jump between its ends makes no waves; scaled so that a
    cosine of amplitude 1 gives a peak of 1.
    """
    window = torch.hann_window(curve.shape[-1], periodic=True, dtype=curve.dtype)
    flat = (curve - curve.mean(-1, keepdim=True)) * window
    return torch.fft.rfft(flat).abs()[..., 1:] * 2 / window.sum()


class Response:
    """The mean over all pairs of tokens, at each distance, of what their queries and keys put into a logit.

        measured     mean over i of scale q_i . k_(i - d), rotated, per head; for images over all patches that are
                     (dy, dx) apart. Biases are not in it; a kernel of another form than softmax scores otherwise.
        positions    the same if every token had the mean query and the mean key (before the rotation): what positions
                     alone do. For RoPE it is the sum over the waves of steady cos(w d + phase), in the words of
                     `zoo.analyze.waves`; what `measured` has beyond it is content that depends on distance.
        amplitude    Fourier transform of `measured` over the nearer half of the distances, where each is a mean over
                     at least half of the text (see `transform`)

    Args:
        grid: Tokens along each axis.
        prefix: Prefix tokens, left out.
    """

    def __init__(self, grid: tuple[int, ...], prefix: int) -> None:
        self.grid, self.prefix = grid, prefix
        self.sums: dict[int, Tensor] = {}
        self.means: dict[int, tuple[Tensor, Tensor]] = {}
        self.rotations: dict[int, tuple[Rotation, float]] = {}
        self.count = 0

    def add(self, seen: Layer) -> None:
        """Add a layer's queries and keys on one batch of examples."""
        call = seen.softmax or seen.asked
        assert call is not None
        number = seen.number
        q, k = (x[:, :, x.shape[2] - call.tokens + self.prefix :].float() for x in (call.q, call.spread))
        found = sum(correlate(a, b, self.grid) for a, b in zip(q, k, strict=True))
        assert isinstance(found, Tensor)
        self.sums[number] = self.sums.get(number, torch.zeros(())) + found * call.scale
        if seen.plain is not None and seen.encoding.rotation is not None and seen.asked is not None:
            a, b = (x[:, :, self.prefix :].float().mean(2, keepdim=True).sum(0, keepdim=True) for x in seen.plain)
            kept = self.means.get(number)
            self.means[number] = (a, b) if kept is None else (kept[0] + a, kept[1] + b)
            self.rotations[number] = seen.encoding.rotation, seen.asked.scale
        if number == min(self.sums):
            self.count += len(call.q)

    def positional(self, number: int) -> Tensor | None:
        """The response of mean query and mean key."""
        if number not in self.means:
            return None
        rotation, scale = self.rotations[number]
        tokens = self.prefix + torch.Size(self.grid).numel()
        q, k = (x / self.count for x in self.means[number])
        q, k = rotation(q.expand(-1, -1, tokens, -1), k.expand(-1, -1, tokens, -1))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return correlate(q[0, :, self.prefix :], k[0, :, self.prefix :], self.grid) * scale

    def value(self) -> dict[str, Any]:
        """Numbers by layer and head."""
        text = len(self.grid) == 1
        length = self.grid[0]
        kept = thin(length)
        half = max(length // 2, 2)
        found: dict[str, Any] = {"examples": self.count, "layers": []}
        if text:
            found |= {"distances": kept, "frequencies": [step / half for step in range(1, half // 2 + 1)]}
        else:
            found["offsets"] = [[1 - length, length - 1] for length in self.grid]
        for number, total in sorted(self.sums.items()):
            measured, alone = total / self.count, self.positional(number)
            entry: dict[str, Any] = {"layer": number}
            if text:
                measured = measured[:, length - 1 :]
                if length >= 4:
                    entry["amplitude"] = transform(measured[:, :half]).tolist()
                alone = None if alone is None else alone[:, length - 1 :][:, kept]
                measured = measured[:, kept]
            entry["measured"] = measured.tolist()
            entry["positions"] = None if alone is None else alone.tolist()
            found["layers"].append(entry)
        return found
