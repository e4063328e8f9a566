"""Conversions of trained rotary encodings: to FoPE, and to none at all.

Neither touches a weight of the model. The decision here: a conversion starts from what the weights know. FoPE's
lossless start is the rotation of training, bit for bit, on every pair that keeps its wave, and none on the others; the
authors' start, random matrices and pairs turned by 45 degrees, is there to be compared with. Waves are judged by the
length of first training, which alone tells whether the weights have seen all angles of a wave.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from zoo.errors import ZooError
from zoo.extension import Conversion
from zoo.position import Geometry, PositionEncoding
from zoo_positions.rope import fope
from zoo_positions.rope.prope import pRoPE
from zoo_positions.rope.rope import RoPE


def checked(method: str, factor: float) -> float:
    """The factor, or a sentence where it is none."""
    if not 1 <= factor < math.inf:
        raise ZooError(f"{method} reads `factor` times as far as in training, 1 or more; got {factor}.")
    return factor


class FoPE(Conversion):
    """Slow waves, which did not complete a turn in training, are dropped, and the others become FoPE's series.

    Source: Hua et al. 2024, arXiv:2412.17739, section 5.3. RoPE, partial or interleaved, and pRoPE become FoPE with
    the same base and pairs. A "lossless" start has the identity for matrices and passes the pairs without a wave (cos =
    1, sin = 0): pairs that keep their wave turn as before, to the last bit, and without clipping nothing changes at
    all. The "official" start is the authors': identity plus noise, drawn from a fixed seed, and pairs without a wave
    turned by 45 degrees and counted twice.

    In the paper dialect the official start has the authors' cap of r / 4 series for r rotated channels, with their
    anchors (series j starts from wave j ceil(D / d) of RoPE's wave j). Under that cap no start is lossless, so the
    lossless one has their series of constants instead (`ignore_zero: false`): r / 2 series, of which those without a
    wave stand still.

    A FoPE is expanded: its floor becomes the target, waves above it are added, and the trained matrices keep their
    place and their noise. New rows and columns are the identity without noise for "lossless", so that the old series
    are what they were, and the authors' fresh draws for "official". Padding and dialect stay. Under the cap of the
    paper dialect a wave beyond the last series has no series of its own, and starts with weight 0 if lossless.

    Raises ZooError for a factor below 1, where no wave would be kept or none added, and for arguments that contradict
    each other or the encoding.

    Args:
        factor: How many times further than at first training. Only an expansion and `yarn_after` depend on it.
        dialect: Of the result, as in the encoding: production (the default) or paper. A FoPE keeps its own.
        start: "lossless": as the model was trained, as far as waves are kept; "official": the authors' random start.
        clip: Drop waves under the floor. False keeps every wave that turns.
        floor: A wave is kept if it completes a turn within so many positions; default: the length of first training,
            and to expand a FoPE the target. On a grid a number for both axes, or [rows, columns].
        gain: Strength of the noise of an official start (default: FoPE's own, 0.3).
        trainable: Train the matrices when the result is fine-tuned (default: no; a FoPE stays as it is).
        yarn_after: Interpolate the kept waves by YaRN, without its attention factor, as the authors do.
    """

    converts = "RoPE", "pRoPE", "FoPE"
    advice = "pairs that lost or gained a wave, if there are any, are new to these weights: fine-tune"

    def __init__(
        self,
        *,
        factor: float,
        dialect: Literal["production", "paper"] | None = None,
        start: Literal["lossless", "official"] = "lossless",
        clip: bool = True,
        floor: int | list[int] | None = None,
        gain: float | None = None,
        trainable: bool | None = None,
        yarn_after: bool = False,
    ) -> None:
        self.factor, self.dialect, self.start = checked("FoPE", factor), dialect, start
        self.clip, self.floor, self.gain, self.trainable, self.yarn_after = clip, floor, gain, trainable, yarn_after
        if gain is not None and start == "lossless":
            raise ZooError("FoPE's lossless start has no noise, and so no gain.   Try:  --start official")
        if floor is not None and not clip:
            raise ZooError("FoPE drops no wave with clip false, and so has no floor. Leave one of the two out.")
        if start == "official":
            self.advice = "random matrices are new to these weights: fine-tune (the authors take 1e9 tokens)"

    def rewrite(self, node: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
        own = copy.deepcopy(dict(node.get("init_args") or {}))
        kind = {"RoPE": RoPE, "pRoPE": pRoPE, "FoPE": fope.FoPE}[node["class_path"]]
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            old = kind(geometry, **own)
        told = own | self.expanded(old, own) if isinstance(old, fope.FoPE) else self.started(old)
        if self.trainable is not None:
            told["trainable"] = self.trainable
        if self.yarn_after:
            told["extension"] = {"class_path": "YaRN", "init_args": {"factor": self.factor, "attention": 1.0}}
        return {"class_path": "FoPE", "init_args": told}

    def started(self, old: RoPE) -> dict[str, Any]:
        """Arguments of the FoPE that takes the place of RoPE or pRoPE."""
        geometry, dialect = old.geometry, self.dialect or "production"
        if dialect == "paper" and geometry.heads != geometry.kv_heads:
            raise ZooError(
                "FoPE's paper dialect has a matrix per query head and applies it to the keys, which grouped heads rule "
                f"out (heads {geometry.heads}, kv_heads {geometry.kv_heads}).   Try:  --dialect production"
            )
        turning = old.width // 2 if old.kept is None else old.kept
        floors, counts = self.counted(old, dialect, list(geometry.length), [turning] * geometry.axes)
        counts = [min(count, turning) for count in counts]
        if min(counts) < 1:
            raise ZooError(
                f"FoPE would keep no wave: {turning} of {old.width // 2} turn, and none of them completes a turn "
                f"within {min(floors)} positions."
                + ("   Try:  --clip false" if turning else " This encoding is none already.")
            )
        told = {
            "base": old.base,
            "dialect": dialect,
            "fraction": 1.0 if isinstance(old, pRoPE) else old.fraction,
            "pairing": old.pairing,
            "floor": stated(floors),
            "num_inv_freq": stated(counts),
        }
        if self.start == "official":
            return told | {"init": "eye_xavier_norm", "gain": self.gain, "padding": "diagonal"}
        return told | {"init": "eye", "padding": "identity", "ignore_zero": dialect != "paper"}

    def expanded(self, old: fope.FoPE, own: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a FoPE that change when it is expanded."""
        if self.dialect not in (None, old.dialect):
            raise ZooError(
                f"FoPE's dialects read no matrices of each other, and this model has the {old.dialect} one.   "
                f"Try:  --dialect {old.dialect}"
            )
        parts = axes(old)
        before, most = [part.kept for part in parts], [old.width // 2] * len(parts)
        floors, counts = self.counted(old, old.dialect, [round(self.factor * n) for n in old.geometry.length], most)
        counts = [max(pair) for pair in zip(counts, before, strict=True)]
        if counts == before and not self.yarn_after:
            raise ZooError(
                f"FoPE has no wave to add: it keeps {stated(before)} of {old.width // 2}, and no other completes a "
                f"turn within {stated(floors)} positions.   Try:  --method YaRN, or --clip false"
            )
        told: dict[str, Any] = {"floor": stated(floors), "num_inv_freq": stated(counts)}
        if self.start == "official":
            told["init"] = old.init if old.init != "eye" else "eye_xavier_norm"
            told["gain"] = own.get("gain") if self.gain is None else self.gain
        return told

    def counted(self, old: RoPE | fope.FoPE, dialect: str, floors: list[int], most: list[int]) -> tuple[list[int], ...]:
        """The floor of each axis, and how many waves complete a turn within it; without clipping `most` of them."""
        if self.floor is not None:
            floors = [floor for floor in fope.each("floor", self.floor, len(floors)) if floor is not None]
        if not self.clip:
            return floors, most
        return floors, [fope.survivors(old.base, old.width, floor, dialect) for floor in floors]

    def migrate(self, old: PositionEncoding, new: PositionEncoding) -> None:
        if not isinstance(old, fope.FoPE):
            return  # the matrices are what `rewrite` has them start as
        assert isinstance(new, fope.FoPE)
        for trained, grown in zip(axes(old), axes(new), strict=True):
            for name in ("sin_coef", "cos_coef"):
                found, coef = getattr(trained, name), getattr(grown, name)
                if self.start == "lossless":
                    coef.copy_(torch.eye(*coef.shape[1:]).expand_as(coef))
                # Constants in the place of dropped waves (`ignore_zero` false) become waves where those are kept now.
                rows, columns = (
                    torch.tensor([at for at in range(size) if not trained.kept <= at < grown.kept])
                    for size in found.shape[1:]
                )
                coef[:, rows[:, None], columns] = found[:, rows[:, None], columns]


def axes(encoding: fope.FoPE) -> list[fope.FoPE]:
    """The FoPE of each axis."""
    return [encoding] if encoding.columns is None else [encoding, encoding.columns]


def stated(numbers: list[int]) -> int | list[int]:
    """A number, or one for each of several axes."""
    return numbers[0] if len(numbers) == 1 else numbers


class DroPE(Conversion):
    """Positions are dropped from a trained model, which is then trained on for a while at its own length.

    Source: Gelberg et al. 2025, arXiv:2512.12167 (DroPE). No weight changes, and nothing turns any more: causal
    attention alone is left to tell order, as in NoPE. Without recalibration the model reads badly. The authors go on
    training at the length of first training, about 1e10 tokens for Llama 2 7B; no long texts are needed.

    For longer requests the logits may be multiplied by 1 + temperature ln(factor). The paper tunes this for each model
    and length, and no value is known to be good for others, so that the default is 0: off. It is for recalibrated
    models: apply DroPE again, to the NoPE that is one.

    Raises ZooError for models that are not causal, where dropping positions would drop all order, for a factor below
    1, and for a negative temperature.

    Args:
        factor: How many times further than at first training; only the temperature depends on it.
        temperature: How much the logits grow with the logarithm of the factor.
    """

    converts = "RoPE", "pRoPE", "xPos", "FoPE", "NoPE"
    advice = "positions are gone: recalibrate by training on at the original length before you use it"

    def __init__(self, *, factor: float, temperature: float = 0.0) -> None:
        self.factor, self.temperature = checked("DroPE", factor), temperature
        if not 0 <= temperature < math.inf:
            raise ZooError(f"DroPE multiplies logits by 1 + temperature ln(factor), 1 or more; got {temperature}.")

    def rewrite(self, node: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
        if not geometry.causal:
            raise ZooError(
                "DroPE leaves order to causal attention, and this model is not causal: without positions it would read "
                "a bag of tokens."
            )
        return {"class_path": "NoPE", "init_args": {"scale": 1 + self.temperature * math.log(self.factor)}}
