"""FoPE: each rotated pair of channels follows a Fourier series of the kept frequencies instead of one wave.

Two definitions exist that read no checkpoints of each other. "production" is the one that inference engines serve: one
square module for the whole model, a matrix per key head. "paper" is the authors' training code: a module per layer, a
matrix per query head, at most head_dim / 4 series. What they share stands here once; the argument `dialect` picks the
four places where they differ (`survivors`, the number of series, whose heads, which draws).

On a grid each axis is a FoPE of half the width: the rows' is the module itself, the columns' a second one within it.

An extension moves the waves that are kept and never chooses them: which they are is decided by the waves as they were
trained. So matrices fit before and after, and it is the authors' order too ("yarn_after").
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo.position import Encoding, Geometry, Rotation, unrounded
from zoo_positions.waves import Waves, angles, spectrum

log = logging.getLogger(__name__)


def survivors(base: float, width: int, floor: int, dialect: str) -> int:
    """How many waves complete a turn within `floor` positions; a wave of exactly one turn counts in the paper only."""
    waves, lowest = spectrum(base, width), 2 * math.pi / floor if floor > 0 else math.inf
    return int((waves >= lowest if dialect == "paper" else waves > lowest).sum())


def anchors(waves: int, series: int) -> list[int]:
    """The wave that each series starts from: its own where the matrix is square, else every ceil(waves / series)-th.

    There may be fewer anchors than series; the series without one start as noise.
    """
    return list(range(0, waves, -(-waves // series)))[:series]


class FoPE(Waves):
    """RoPE whose waves are mixed by fixed random matrices near the identity, and whose slowest pairs stand still.

    Source: Hua et al. 2024, arXiv:2412.17739; "production" as in Intern-S1-Pro, arXiv:2603.25040.
    With r = int(fraction head_dim) rotated channels, D of RoPE's waves w_i = base^(-2i / r) are kept: those that
    complete a turn within `floor` positions. Series j < d of head n at position p is

        C = sum_i cos(p w_i) cos_coef[n, i, j]        S = sum_i sin(p w_i) sin_coef[n, i, j]

    and channels (x, y) = (j, j + r / 2) become (x C - y S, y C + x S). The remaining r / 2 - d pairs have no position.
    cos_coef and sin_coef, float32 [heads, D, d], start as the identity plus noise. Series depend on the position
    itself, so with noise attention does change when all positions shift together.

                         "production"                    "paper"
        module           one for the whole model         one per layer
        heads            key heads                       query heads, equal to key heads
        d                D                               min(D, r // 4)
        kept             w > 2 pi / floor                w >= 2 pi / floor

    In the paper dialect d < D anchors series j at wave j ceil(D / d); series that find no wave are dead: noise about
    zero, for ever if the matrices are frozen. A warning counts them. The noise of a Xavier `init` has the standard
    deviation gain sqrt(2 / (d (D + heads))), since the references apply Xavier to the three-dimensional tensor: 0.02
    for a gain of 0.3.

    On a grid, which is our own extension and no published model's, the first half of the pairs follows the row and the
    second half the column, as in RoPE's axial form. Each half is all of the above with r / 2 for r, its own D, d and
    matrices, and as `floor` the number of rows or columns, not of patches. A grid needs 7 of either.

    Raises ZooError for three axes, rotated channels that are no multiple of two per axis, grouped heads in the paper
    dialect, and arguments that contradict each other.

    Args:
        base: Of the waves, as in RoPE.
        dialect: "production": one module, a matrix per key head, as inference engines serve it; "paper": a module per
            layer, a matrix per query head, at most r / 4 series, as the authors trained it.
        fraction: Part of the head's channels that is rotated, as in RoPE; every reference rotates all.
        pairing: Pairs are channels (t, t + r/2) for "half", as in every reference, (2t, 2t + 1) for "interleaved".
        floor: A wave is kept if it completes a turn within so many positions; default: the length of first training.
            On a grid a number for both axes, or [rows, columns].
        num_inv_freq: D itself, which `floor` then does not change; default: counted. Checkpoints store both. On a grid
            a number for both axes, or [rows, columns].
        gain: Strength of the noise: Xavier's gain, or the standard deviation for eye_norm. Default: 0.3 with an
            identity, 1 without, as in the authors' code.
        init: Start of the matrices: the identity (eye), noise (norm: normal, uniform), or their sum.
        trainable: Train the matrices; every reference keeps them frozen.
        padding: Pairs without a series get cos = sin = 1 (diagonal: turned by 45 degrees and counted twice in the
            logit, as in every reference), or cos = 1 and sin = 0 (identity: passed, as the paper's formula says).
        normalize: Divide each series by the sum of its coefficients: the paper's pseudo-code, no released model.
        ignore_zero: Leave the waves under the floor out. False keeps them as constants of the series, with d = D =
            r / 2 and no padding; paper dialect only.
        extension: How it reads further than it was trained, a plugin such as YaRN (default: not at all). It moves the
            kept waves; its attention factor multiplies cos and sin, those of pairs without a series too.
    """

    kept: int
    """Waves that are kept, along the rows."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: float = 10000.0,
        dialect: Literal["production", "paper"] = "production",
        fraction: float = 1.0,
        pairing: Literal["half", "interleaved"] = "half",
        floor: int | list[int] | None = None,
        num_inv_freq: int | list[int] | None = None,
        gain: float | None = None,
        init: Literal[
            "eye", "eye_norm", "eye_xavier_norm", "eye_xavier_uniform", "xavier_norm", "xavier_uniform"
        ] = "eye_xavier_norm",
        trainable: bool = False,
        padding: Literal["diagonal", "identity"] = "diagonal",
        normalize: bool = False,
        ignore_zero: bool = True,
        extension: Callable[[Series], WaveExtension] | None = None,
    ) -> None:
        paper, eye, noise = dialect == "paper", init.startswith("eye"), init != "eye"
        if not 0 < fraction <= 1:
            raise ZooError(f"FoPE cannot rotate a fraction {fraction} of a head. Give more than 0 and at most 1.")
        rotated, axes = int(fraction * geometry.head_dim), geometry.axes
        width = rotated // axes
        pairs = width // 2
        part = f", of which {rotated} channels are rotated (fraction {fraction})" if fraction < 1 else ""
        if axes > 2:
            raise ZooError(f"FoPE tells one axis or two, and this model has {axes}. Try:  --model.position RoPE")
        if not rotated or rotated % (2 * axes):
            needs = "an even head_dim" if axes == 1 else "as many for rows as for columns, a head_dim of 4, 8, 12 ..."
            raise ZooError(f"FoPE turns pairs of channels and needs {needs}; here it is {geometry.head_dim}{part}.")
        if paper and geometry.heads != geometry.kv_heads:
            raise ZooError(
                "FoPE's paper dialect has a matrix per query head and applies it to the keys, which grouped heads rule "
                f"out (heads {geometry.heads}, kv_heads {geometry.kv_heads}). Set kv_heads to {geometry.heads}, or use "
                "the other:  --model.position.dialect production"
            )
        if not (paper or ignore_zero):
            raise ZooError(
                "FoPE's production dialect has no waves of frequency 0. Leave ignore_zero at true, or use the other:  "
                "--model.position.dialect paper"
            )
        if gain is not None and (gain < 0 or (gain > 0 and not noise)):
            raise ZooError(
                f"FoPE cannot use the gain {gain} with the init {init}: it is the strength of the noise, 0 or more, "
                "and eye has no noise. Leave it out, or try:  --model.position.init eye_xavier_norm"
            )
        floors, counts = each("floor", floor, axes), each("num_inv_freq", num_inv_freq, axes)
        least = geometry.length[0] if floors[0] is None else floors[0]
        kept = survivors(base, width, least, dialect) if counts[0] is None else counts[0]
        if not 1 <= kept <= pairs:
            raise ZooError(
                f"FoPE cannot keep {kept} of the {pairs} waves of {width} channels (base {base}, floor {least}). "
                "Raise --model.position.floor (7 keeps the first wave), or set "
                f"--model.position.num_inv_freq between 1 and {pairs}"
            )
        still = 0 if ignore_zero else pairs - kept
        super().__init__(geometry, base=base, width=width, kept=kept, still=still, extension=extension)
        waves = kept + still
        series = min(waves, width // 4) if paper and ignore_zero else waves
        if series < 1:
            raise ZooError(
                f"FoPE's paper dialect needs a head_dim of {4 * axes} or more; this model's is {geometry.head_dim}"
                f"{part}."
            )
        dead = series - len(anchors(waves, series)) if eye else 0
        if normalize and dead and not (noise and gain != 0):
            raise ZooError(
                f"FoPE cannot normalize {dead} series that are zero ({waves} waves, {series} series, no noise). Leave "
                "normalize at false, or use:  --model.position.dialect production"
            )
        if dead:
            warn(
                f"FoPE: {dead} of {series} columns are dead in the paper dialect: {waves} waves are kept, so column j "
                f"starts at wave {-(-waves // series)} j, and the last {dead} find none and start as noise about zero. "
                "The authors' code does the same; the production dialect has no dead columns."
            )
        self.dialect, self.floor, self.init = dialect, least, init
        self.fraction, self.pairing = fraction, pairing
        self.gain = gain if gain is not None else 0.3 if eye else 1.0
        self.padding, self.normalize = padding, normalize
        self.per_layer = paper
        shape = (geometry.heads if paper else geometry.kv_heads, waves, series)
        # Parameters even where frozen, so that whatever synchronises ranks synchronises these draws.
        self.sin_coef = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=trainable)
        self.cos_coef = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=trainable)
        self.columns: FoPE | None = None
        self.reset_parameters()
        if axes == 2:
            self.columns = FoPE(
                replace(geometry, head_dim=width, length=geometry.length[1:]),
                base=base,
                dialect=dialect,
                floor=floors[1],
                num_inv_freq=counts[1],
                gain=gain,
                init=init,
                trainable=trainable,
                padding=padding,
                normalize=normalize,
                ignore_zero=ignore_zero,
                extension=extension,
            )

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether no series mixes waves: each follows one, its sine as its cosine, as with an identity and no noise."""
        single = bool(((self.cos_coef != 0).sum(-2) <= 1).all()) and torch.equal(self.cos_coef, self.sin_coef)
        return single and (self.columns is None or self.columns.relative)

    def pinned(self) -> dict[str, Any]:
        if self.columns is None:
            return {"floor": self.floor, "num_inv_freq": self.kept}
        return {"floor": [self.floor, self.columns.floor], "num_inv_freq": [self.kept, self.columns.kept]}

    def extended(self, kind: torch.dtype, extent: int) -> tuple[Tensor, float]:
        waves, factor = super().extended(kind, extent)
        return waves[:1], factor  # the columns keep their own

    def identity(self) -> Tensor:
        """The matrix without noise, [waves, series]."""
        _, waves, series = self.sin_coef.shape
        eye = torch.zeros(waves, series, dtype=torch.float32, device="cpu")
        for column, row in enumerate(anchors(waves, series)):
            eye[row, column] = 1.0
        return eye

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the matrices anew: the sines' first, then the cosines', as the references do."""
        if self.dialect == "paper":  # the authors' code draws both once in vain; their seeds give our matrices
            torch.randn_like(self.sin_coef), torch.randn_like(self.cos_coef)
        for coef in (self.sin_coef, self.cos_coef):
            if self.init == "eye":
                coef.zero_()
            elif self.init == "eye_norm":
                coef.normal_(std=self.gain)
            elif self.init.endswith("xavier_norm"):
                nn.init.xavier_normal_(coef, self.gain)
            else:
                nn.init.xavier_uniform_(coef, self.gain)
            if self.init.startswith("eye"):
                coef.add_(self.identity().to(coef))
        if self.columns is not None:
            self.columns.reset_parameters()

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        cos, sin = self.tables(queries[..., :1], extent)
        waves, factor = self.request(extent)
        if self.columns is not None:
            cos, sin = (
                torch.cat(halves, -1)
                for halves in zip((cos, sin), self.columns.tables(queries[..., 1:], extent), strict=True)
            )
            waves = pad_sequence([waves[0], self.columns.request(extent)[0][0]], batch_first=True)
        rotation = Rotation(
            cos,
            sin,
            waves,
            factor,
            isometric=False,
            interleaved=self.pairing == "interleaved",
            prefix=self.geometry.prefix,
        )
        return Encoding(rotation=rotation)

    def tables(self, positions: Tensor, extent: int) -> tuple[Tensor, Tensor]:
        """cos and sin, [1 or batch, heads, tokens, pairs], at the positions [..., tokens, 1] along this axis."""
        frequencies, factor = self.request(extent)
        angle = angles(positions, frequencies, extent)
        angle = angle if angle.ndim == 3 else angle[None]
        waves = torch.stack((angle.cos(), angle.sin()))  # [2, batch, tokens, waves]
        coefs = torch.stack((self.cos_coef, self.sin_coef))  # [2, heads, waves, series]
        if self.normalize:
            coefs = coefs / coefs.sum(-2, keepdim=True)
        # The references multiply in float32. Lightning advises set_float32_matmul_precision("high"), which makes that
        # TF32 or bfloat16; a float64 product stays what it is, and costs little, being 2 * waves * series per token.
        # Only mps, which has no float64, needs autocast to be off.
        wide = torch.float32 if angle.device.type == "mps" else torch.float64
        with unrounded(angle):
            table = waves.to(wide).flatten(1, 2) @ coefs.to(wide).transpose(1, 2).flatten(2)
        table = table.to(frequencies.dtype).view(2, *angle.shape[:2], *coefs.shape[1::2]).transpose(2, 3)
        rest = self.width // 2 - coefs.shape[-1]
        cos = functional.pad(table[0], (0, rest), value=1.0)
        sin = functional.pad(table[1], (0, rest), value=1.0 if self.padding == "diagonal" else 0.0)
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def each(name: str, value: int | list[int] | None, axes: int) -> list[int | None]:
    """A number for each axis, or a sentence where there are more or fewer."""
    if not isinstance(value, list | tuple):
        return [value] * axes
    if len(value) != axes:
        raise ZooError(f"FoPE takes one {name}, or one for each of {axes} axes; got {value}.")
    return [*value]


@cache
def warn(line: str) -> None:
    """Log a warning once, however many layers repeat it."""
    log.warning(line)
