"""PoPE: what a token is sets the sizes of its channels, where it stands sets their angles, and neither sets both.

Every channel is a wave of its own: softplus makes a size of it, the position an angle, and a query meets a key by the
cosine of the difference of their angles. As cosine and sine, that is a plain dot product of heads twice as wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo.position import Encoding, Geometry, Rotation
from zoo_positions.waves import Waves, angles, table


@dataclass(eq=False, kw_only=True)
class Polar(Rotation):
    """Channels as sizes at angles: channel c of x becomes softplus(x_c) (cos, sin), all cosines before all sines.

    `cos` and `sin` are of the angles, [batch or 1, 1, tokens, channels], prefix tokens included.

    Args:
        phase: Added to the angles of keys, [key heads, 1, channels].
    """

    phase: Tensor
    isometric: bool = False

    def width(self, head_dim: int) -> int:
        return head_dim + self.cos.shape[-1]

    def apply(self, x: Tensor, phase: Tensor | None = None) -> Tensor:
        """`x` [batch, heads, tokens, width] with `phase` added to its angles; channels beyond those of `cos` pass."""
        channels = self.cos.shape[-1]
        exact = x.to(torch.promote_types(x.dtype, self.cos.dtype))
        size = functional.softplus(exact[..., :channels])
        if phase is None:
            parts = size * self.cos, size * self.sin
        else:
            # By the rule for sums of angles: added to an angle of some thousands a phase would lose its last digits.
            real, imaginary = size * phase.cos(), size * phase.sin()
            parts = real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos
        return torch.cat((*parts, exact[..., channels:]), -1).to(x.dtype)

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.apply(q), self.apply(k, self.phase)


class PoPE(Waves):
    """Channels of queries and keys are sizes at angles: content sets the size, the position the angle.

    Source: Gopalakrishnan et al. 2025, arXiv:2509.10534; partial and on a grid as in PoPE-pytorch. With d = head_dim,
    key head h, a query at t and a key at s, the logit is

        1 / sqrt(d)  sum_c softplus(q_c) softplus(k_c) cos((t - s) w_c - phase[h, c])        w_c = base^(-c / d)

    with d waves, twice as many as RoPE has. Queries and keys come out 2 d wide, values stay d wide. The phases, float32
    [key heads, d], are held within [-2 pi, 0] where they are used; one that training leads out of it stays at the edge
    and gets no gradient there, as in the references; zero is an edge, so that about half of those that start there soon
    stay there. Grouped query heads share the phases of their key head (x-transformers has phases for query heads;
    without groups both are the same). A prefix stands at position 0. On a grid the first half of the channels follows
    the row, the second the column, each with a spectrum of its own.

    Raises ZooError where the channels cannot be shared out between the axes.

    Args:
        base: The slowest wave is nearly 2 pi base positions long.
        fraction: Part of the head's channels that have a wave, the leading ones; w_c is taken over these. The others
            pass as they are, without softplus.
        phases: Start of the phases: zero, or uniform within [-2 pi, 0].
        per_layer: Phases of each layer's own; otherwise all layers share them, as in x-transformers.
        extension: How it reads further than it was trained, a plugin such as Linear (default: not at all).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        phases: Literal["zero", "uniform"] = "zero",
        per_layer: bool = True,
        extension: Callable[[Series], WaveExtension] | None = None,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ZooError(f"PoPE cannot give a fraction {fraction} of a head waves. Give more than 0 and at most 1.")
        channels, axes = int(fraction * geometry.head_dim), geometry.axes
        if channels < axes or channels % axes:
            raise ZooError(
                f"PoPE cannot share {channels} channels of a head (fraction {fraction}, head_dim {geometry.head_dim}) "
                f"out between {axes} axes: it needs a multiple of {axes}. Change head_dim or --model.position.fraction"
            )
        # a wave a channel, where RoPE has one a pair
        super().__init__(geometry, base=base, width=2 * channels // axes, extension=extension)
        self.fraction, self.phases, self.per_layer = fraction, phases, per_layer
        self.phase = nn.Parameter(torch.empty(geometry.kv_heads, channels, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the phases back to their start."""
        if self.phases == "zero":
            self.phase.zero_()
        else:
            self.phase.uniform_(-2 * math.pi, 0.0)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        at = functional.pad(queries, (0, 0, self.geometry.prefix, 0))
        frequencies, factor = self.request(extent)
        angle = angles(at, frequencies, extent)
        angle = angle[None, None] if angle.ndim == 2 else angle.unsqueeze(1)
        rotation = Polar(
            table(angle.cos(), frequencies, factor),
            table(angle.sin(), frequencies, factor),
            frequencies,
            factor,
            phase=self.phase.clamp(-2 * math.pi, 0.0).unsqueeze(1),
        )
        return Encoding(rotation=rotation)
