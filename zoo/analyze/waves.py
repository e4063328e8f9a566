"""The waves of a rotation: how long they are, which of them training never saw whole, and how much heads use them.

All is read off the encoding as data. Its cosines and sines at many positions are decomposed into the frequencies that
it names, by least squares. For RoPE that finds one wave for each pair of channels; for an encoding that mixes waves, as
FoPE does, it finds the matrix of coefficients, without knowing the class that made them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.analyze.watch import Layer
from zoo.errors import ZooError
from zoo.position import PositionEncoding, Rotation

SPAN = 32
"""Lengths of training over which waves are told apart: neighbours differ by some turns there."""
MOST = 8_192
"""Positions that are looked at, at most."""
FEW = 1024
"""Positions that tell whether a pair follows one wave."""
CLOSE = 5e-3
"""How far the cosine of a float32 angle may be from the exact one, there."""


def sample(position: PositionEncoding, axis: int, count: int, extent: int) -> Rotation | None:
    """The rotation at `count` positions along one axis, the others at 0."""
    tensors = [*position.buffers(), *position.parameters()]
    positions = torch.zeros(count, position.geometry.axes, device=tensors[0].device if tensors else None)
    positions[:, axis] = torch.arange(count)
    return position(positions, positions, extent).rotation


def describe(frequency: float, length: int) -> dict[str, Any]:
    """A wave of so many radians per position, in a model trained on `length` positions.

    wavelength 2 pi / frequency, in positions; rotations length / wavelength; undertrained where that is less than one
    full turn, so that some of its angles never occurred in training. A wave of frequency 0 stands still; it has no
    wavelength (None) and nothing to be trained.
    """
    still = frequency == 0
    rotations = length * abs(frequency) / (2 * math.pi)
    return {
        "frequency": frequency,
        "wavelength": None if still else 2 * math.pi / abs(frequency),
        "rotations": rotations,
        "undertrained": not still and rotations < 1,
    }


def bases(rotation: Rotation, axis: int, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(table, basis) of the cosines and of the sines along an axis, float64.

    Tables are [heads, positions, pairs], without the rotation's factor; a basis, [positions, waves + 1], holds each
    wave of the axis and a constant. A wave of frequency 0 is that constant, and its own column is 0.
    """
    waves = rotation.frequencies[axis].detach().double().cpu()
    angle = torch.arange(count, dtype=torch.float64)[:, None] * waves
    one = torch.ones(count, 1, dtype=torch.float64)
    cos, sin = (
        table[0, :, -count:].detach().double().cpu() / rotation.factor for table in (rotation.cos, rotation.sin)
    )
    return (cos, torch.cat((angle.cos() * (waves != 0), one), 1)), (sin, torch.cat((angle.sin(), one), 1))


def single(rotation: Rotation, axis: int, count: int) -> list[int | None]:
    """For each pair the number of the one wave that its tables follow, -1 where they stand still, None for neither."""
    (cos, waves), (sin, others) = bases(rotation, axis, count)
    others = torch.cat((others[:, :-1], torch.zeros(count, 1, dtype=torch.float64)), 1)  # stands still: 1 and 0
    found: list[int | None] = []
    for pair in range(cos.shape[-1]):
        error = torch.zeros(waves.shape[1], dtype=torch.float64)
        for table, basis in ((cos, waves), (sin, others)):
            for row in table[..., pair]:
                error = torch.maximum(error, (row[:, None] - basis).abs().amax(0))
        error[:-1][rotation.frequencies[axis].cpu() == 0] = math.inf
        least, wave = error.min(0)
        found.append(None if least > CLOSE else -1 if int(wave) == len(error) - 1 else int(wave))
    return found


def decompose(rotation: Rotation, axis: int, count: int) -> tuple[Tensor, Tensor, float]:
    """Coefficients of the cosines and the sines, each [heads, waves + 1, pairs], and the largest error of the fit.

    cos[h, p, t] = sum_w cos(p f_w) C[h, w, t] + C[h, -1, t] and likewise for the sines,
    with the frequencies f of this axis; the last row belongs to what does not depend on the position.
    """
    found, error = [], 0.0
    for table, basis in bases(rotation, axis, count):
        flat = table.transpose(0, 1).flatten(1)
        fit = torch.linalg.lstsq(basis, flat, rcond=1e-6, driver="gelsd").solution
        error = max(error, float((basis @ fit - flat).abs().max()))
        found.append(fit.unflatten(1, table.shape[::2]).transpose(0, 1))
    return found[0], found[1], error


def survey(position: PositionEncoding, extent: int) -> dict[str, Any] | None:
    """The waves of an encoding, and which of them each pair of channels follows; None without a rotation.

    `axes` holds the waves of each axis, fastest first as the encoding names them, `pairs` for each pair the axis and
    the number of the wave that it follows (None: it does not turn). `mixed` says whether tables are sums of several
    waves; then `coefficients` holds the matrices of `decompose` for each axis, with the `error` of their fit, and a
    pair counts as following the wave that it contains most of. Where each pair turns in a direction of its own on a
    grid, `vectors` [heads][pairs] holds radians per row and per column instead.

    Args:
        position: The encoding.
        extent: Declared length of the request, for encodings whose waves depend on it.
    """
    lengths = position.geometry.length
    counts = [min(max(SPAN * length, 512), MOST) for length in lengths]
    rotation = sample(position, 0, 2, extent)
    if rotation is None:
        return None
    heads, pairs = rotation.cos.shape[1], rotation.cos.shape[-1]
    found: dict[str, Any] = {"trained": list(lengths), "factor": rotation.factor, "mixed": False, "error": 0.0}
    if len(lengths) == 2 and rotation.frequencies.shape[1] == heads * pairs:
        vectors = rotation.frequencies.detach().double().cpu().view(2, heads, pairs)
        return {**found, "vectors": vectors.permute(1, 2, 0).tolist()}
    found["axes"] = [
        [describe(float(f), length) for f in rotation.frequencies[axis].tolist()] for axis, length in enumerate(lengths)
    ]
    found["pairs"] = [None] * pairs
    mixed = []
    for axis, count in enumerate(counts):
        long = sample(position, axis, count, extent)
        assert long is not None
        follows = single(sample(position, axis, min(count, FEW), extent) or long, axis, min(count, FEW))
        if found["mixed"] or None in follows:
            found["mixed"] = True
            cos, sin, error = decompose(long, axis, count)
            found["error"] = max(found["error"], error)
            mixed.append({"cos": cos.tolist(), "sin": sin.tolist()})
            strength = ((cos.square() + sin.square()) / 2).mean(0).sqrt()
            follows = [wave if wave < len(strength) - 1 else -1 for wave in strength.argmax(0).tolist()]
        for pair, wave in enumerate(follows):
            if wave != -1:
                found["pairs"][pair] = {"axis": axis, "wave": wave}
    if mixed:
        found["coefficients"] = mixed
    return found


def halves(x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """First and second channel of each pair of x [batch, heads, tokens, width], and the channels in no pair."""
    width = 2 * rotation.cos.shape[-1]
    body, rest = x[..., :width], x[..., width:]
    if rotation.interleaved:
        return body[..., 0::2], body[..., 1::2], rest
    first, second = body.chunk(2, -1)
    return first, second, rest


def content(seen: Layer, prefix: int) -> tuple[Tensor, Tensor, float] | None:
    """Queries and keys whose pairs hold content and no position, without a prefix, and the factor of their product.

    They are those before the rotation, times what the rotation multiplies both by. A rotation that makes a pair of each
    channel (PoPE) has no pairs before it; then they are those after it, of which only lengths may be used.
    """
    rotation = seen.encoding.rotation
    if rotation is None or seen.plain is None or seen.turned is None or seen.asked is None:
        return None
    same = seen.plain[0].shape[-1] == seen.turned[0].shape[-1]
    (q, k), factor = (seen.plain, rotation.factor**2) if same else (seen.turned, 1.0)
    q, k = (x[:, :, prefix:].float() for x in (q, k))
    return q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), factor * seen.asked.scale


class Energy:
    """How much of a logit each wave can carry: the learned energy of queries and keys per pair of channels.

    energy[h, t] = scale factor^2 mean_i |q_i,t| mean_j |k_j,t|, over the tokens of the examples, where |q_i,t| is the
    length of pair t of query i in head h. The product of a query and a key in pair t is at most |q_t| |k_t|, whatever
    their distance; so this is the mean over all pairs of tokens of the largest share in a logit that the wave could
    have. `still` is the same of the channels in no pair, which have no position. Scale is that of the logits, factor
    the rotation's own ("attention factor" of YaRN).

    steady[h, t] is the same of mean query and mean key, scale factor^2 |mean q_t| |mean k_t|, with the phase of their
    product: what is left for the wave when content averages out (see `zoo.analyze.response`). A factor that an encoding
    gives to each query (log-n scaling) is not in either.

    Args:
        prefix: Prefix tokens, left out.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.sums: dict[int, list[Tensor]] = {}
        self.factors: dict[int, float] = {}
        self.pairwise: dict[int, bool] = {}
        self.count = 0

    def add(self, seen: Layer) -> None:
        """Add a layer's queries and keys on one batch of examples."""
        found, rotation = content(seen, self.prefix), seen.encoding.rotation
        if found is None or rotation is None:
            return
        q, k, self.factors[seen.number] = found
        self.pairwise[seen.number] = seen.plain is not None and q.shape[-1] == seen.plain[0].shape[-1]
        sums = []
        for x in (q, k):
            first, second, rest = halves(x, rotation)
            for part in (torch.hypot(first, second), rest.norm(dim=-1), first, second):
                sums.append(part.mean(2).sum(0).double().cpu())
        kept = self.sums.get(seen.number)
        self.sums[seen.number] = sums if kept is None else [a + b for a, b in zip(kept, sums, strict=True)]
        if seen.number == min(self.sums):
            self.count += len(q)

    def value(self) -> list[dict[str, Any]]:
        """Numbers by layer: energy, amplitude and phase [heads][pairs], still [heads]."""
        layers = []
        for number, sums in sorted(self.sums.items()):
            q, q_still, q1, q2, k, k_still, k1, k2 = (x / self.count for x in sums)
            factor = self.factors[number]
            entry = {
                "layer": number,
                "energy": (factor * q * k).tolist(),
                "still": (factor * q_still * k_still).tolist(),
            }
            if self.pairwise[number]:
                steady = factor * torch.complex(q1, q2) * torch.complex(k1, -k2)
                entry |= {"steady": steady.abs().tolist(), "phase": steady.angle().tolist()}
            layers.append(entry)
        return layers


def untrained(spectrum: dict[str, Any], heads: int) -> list[list[bool]]:
    """Whether each pair of each head [heads][pairs] follows a wave that did not complete a turn in training."""
    if "vectors" in spectrum:
        trained = spectrum["trained"]
        rows = [
            [any(f) and max(abs(f[axis]) * trained[axis] for axis in (0, 1)) < 2 * math.pi for f in head]
            for head in spectrum["vectors"]
        ]
        return [rows[head * len(rows) // heads] for head in range(heads)]
    axes, pairs = spectrum["axes"], spectrum["pairs"]
    return [[pair is not None and axes[pair["axis"]][pair["wave"]]["undertrained"] for pair in pairs]] * heads


class Spectrum:
    """The waves of each layer's encoding and the energy that its heads put on them, as one document.

    `encodings` holds what `survey` says, once for each encoding module; `layers` what `Energy` says, with the number
    of the encoding and `undertrained`, the share of each head's energy on waves that completed less than one turn
    within the length of first training.

    Args:
        positions: The encodings, one for all layers or one a layer.
        extent: Of the requests that are watched.
        prefix: Prefix tokens, left out.
    """

    def __init__(self, positions: list[PositionEncoding], extent: int, prefix: int) -> None:
        self.positions, self.extent, self.energy = positions, extent, Energy(prefix)
        self.add = self.energy.add

    def value(self) -> dict[str, Any] | None:
        """The document; None where nothing is rotated."""
        layers = self.energy.value()
        if not layers:
            return None
        if any(position.content for position in self.positions):
            raise ZooError("This rotation depends on the content, so that its waves are not those of a text alone.")
        encodings = [survey(position, self.extent) for position in self.positions]
        for entry in layers:
            entry["encoding"] = entry["layer"] if len(encodings) > 1 else 0
            energy = torch.tensor(entry["energy"])
            spectrum = encodings[entry["encoding"]]
            assert spectrum is not None
            off = torch.tensor(untrained(spectrum, len(energy)))
            total = energy.sum(-1) + torch.tensor(entry["still"])
            entry["undertrained"] = ((energy * off).sum(-1) / total.clamp(min=1e-30)).tolist()
        return {"encodings": encodings, "layers": layers}
