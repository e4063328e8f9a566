"""Calls of a kernel for the exam: every rung of the ladder, every mask, any lengths and widths, from a fixed seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.bias import LADDER, Bias, Dense, Logits, Pointwise, Slopes, Toeplitz
from zoo.decoder import restart
from zoo.kernel import Mask, Request
from zoo.position import Geometry

MASKS = "none", "causal", "window", "sinks", "document", "padding", "window both ways", "document both ways", "all"
RUNGS: tuple[type[Bias] | None, ...] = (None, *LADDER)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a kernel; the batch is 2.

    Args:
        rung: Of the bias.
        mask: One of MASKS.
        queries: Query tokens; with fewer queries than keys they are the last ones, as in cached decoding.
        keys: Key tokens.
        heads: Query heads.
        kv_heads: Key heads.
        width: Of queries and keys.
        value_dim: Of values.
        prefix: Prefix tokens among queries and keys.
        scale: Of the logits.
        hidden: Padding of the first row.
    """

    rung: type[Bias] | None = None
    mask: str = "causal"
    queries: int = 20
    keys: int = 20
    heads: int = 4
    kv_heads: int = 2
    width: int = 16
    value_dim: int = 16
    prefix: int = 0
    scale: float = 0.3
    hidden: int = 7

    def __str__(self) -> str:
        bias = f"a {self.rung.__name__} bias" if self.rung else "no bias"
        shape = f"{self.queries} queries, {self.keys} keys, {self.heads} heads on {self.kv_heads}"
        return f"{bias}, mask '{self.mask}', {shape}" + (f", {self.prefix} prefix tokens" if self.prefix else "")

    def make_mask(self, device: str) -> Mask:
        """The mask; padding hides everything from the first rows of batch row 0."""
        both, kinds = "both" in self.mask or self.mask == "none", self.mask.replace("all", "sinks document padding")
        return Mask(
            causal=not both,
            offset=self.keys - self.queries,
            window=5 if "window" in kinds or "sinks" in kinds else None,
            documents=self.documents().to(device) if "document" in kinds else None,
            padding=torch.tensor([self.hidden, 0], device=device) if "padding" in kinds else None,
            sinks=2 if "sinks" in kinds else 0,
        )

    def documents(self) -> Tensor:
        """Three documents a row, cut elsewhere in each."""
        cuts = torch.tensor([[8, 15], [11, 12]]) * self.keys // 20
        return (torch.arange(self.keys) >= cuts.unsqueeze(-1)).sum(1)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Of queries and keys, as the decoder and the vision transformer count them."""
        index = torch.arange(self.keys)
        if self.mask.startswith("document"):
            keys = restart(self.documents())
        elif self.mask == "padding":
            keys = (index - torch.tensor([[self.hidden], [0]])).clamp(min=0)
        else:
            keys = index[: self.keys - self.prefix]
        return keys[..., self.keys - self.queries :].float(), keys.float()

    def leaves(self) -> dict[str, Tensor]:
        """Queries, keys and values, strided as a model hands them over, and what the bias learns; float64."""
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = {
            "q": draw(2, self.queries, self.heads, self.width).transpose(1, 2),
            "k": draw(2, self.keys, self.kv_heads, self.width).transpose(1, 2),
            "v": draw(2, self.keys, self.kv_heads, self.value_dim).transpose(1, 2),
        }
        rows, columns = self.queries - self.prefix, self.keys - self.prefix
        if self.rung in (Slopes, Logits):
            found["bias"] = draw(self.heads).exp() / 4
        elif self.rung is Toeplitz:
            found["bias"] = draw(self.heads, 2 * self.keys - 1)
        elif self.rung is Pointwise:
            found |= {"bias": draw(2, self.heads, rows, 1), "bias of keys": draw(2, self.heads, columns)}
        elif self.rung is Dense:
            found["bias"] = draw(2, self.heads, rows, columns)
        return found

    def geometry(self) -> Geometry:
        """Of the model that would make the call."""
        sizes: dict[str, Any] = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.width}
        return Geometry(dim=self.heads * self.width, length=(self.keys,), prefix=self.prefix, **sizes)

    def request(self, device: str, dtype: torch.dtype, training: bool) -> Request:
        """What the call asks of a kernel."""
        return Request(
            rung=self.rung,
            mask=self.make_mask("cpu").kinds,
            head_dim=self.width,
            value_dim=self.value_dim,
            device=device,
            dtype=dtype,
            training=training,
            learned=training and self.rung is not None,
            size=self.heads * self.queries * self.keys,
        )

    def make_bias(self, leaves: dict[str, Tensor]) -> Bias | None:
        """The bias on some leaves, computed from them as an encoding would."""
        if self.rung is None:
            return None
        learned = leaves["bias"] * 1
        queries, keys = (part.to(learned.device) for part in self.positions())
        if self.rung is Slopes:
            return Slopes(learned, queries, keys, prefix=self.prefix)
        if self.rung is Toeplitz:
            return Toeplitz(learned, queries, keys, lowest=1 - self.keys, prefix=self.prefix)
        if self.rung is Dense:
            return Dense(learned, prefix=self.prefix)
        if self.rung is Logits:
            return Logits(mapped, (learned,), heads=self.heads)
        gates = (learned[..., 0], leaves["bias of keys"] * 1)
        sizes: dict[str, int] = {"heads": self.heads, "queries": queries.shape[-1], "keys": keys.shape[-1], "batch": 2}
        return Pointwise(gated, gates, prefix=self.prefix, **sizes)


def gated(b: Tensor, h: Tensor, i: Tensor, j: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A bias that differs in every index, with one look-up a tensor."""
    return rows[b, h, i] * columns[b, h, j]


def mapped(
    logits: Tensor, q: Tensor, k: Tensor, h: Tensor, i: Tensor, visible: Tensor | None, scale: float, gain: Tensor
) -> Tensor:
    """A map of the logits that reads all that it is given, as CoPE does."""
    seen = logits.sigmoid() if visible is None else logits.sigmoid() * visible
    own = q.square().sum(-1, keepdim=True) * scale * (1 + i.view(-1, 1) / 100)
    return logits + gain.to(logits.dtype)[h] * (own.tanh() - seen.cumsum(-1) / 4)
