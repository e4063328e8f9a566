"""The contract of attention kernels: masks, requests and refusals, Eager (the definition) and Auto (the choice).

A kernel computes a form: a score and a normaliser. Eager, SDPA, Tiled, Flex and Flash are implementations of one form,
softmax of the dot product, and Eager is its definition; a kernel of another form overrides `reference`. A kernel says
which rung of the bias ladder it carries and refuses, with reasons, what it cannot do; it never leaves a bias out.
Tensors are [batch, heads, tokens, width]. Masks speak of buffer indices, biases of positions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zoo import plugins
from zoo.bias import Bias, Logits, carries, rung
from zoo.errors import ZooError
from zoo.position import Geometry

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query may see, as a conjunction over buffer indices; a row that sees nothing gives 0.

    Args:
        causal: Keys after the query are hidden.
        offset: Buffer index of the first query among the keys (the tokens in the cache before it).
        window: Only keys nearer than this many tokens are seen.
        documents: [batch, keys] numbers; only keys of the query's own document are seen.
        padding: [batch] left padding; these keys are hidden.
        sinks: The first keys after the padding, which the window does not hide.
        memo: Where a kernel keeps what all layers share; nothing in it may want a gradient.
    """

    causal: bool = False
    offset: int = 0
    window: int | None = None
    documents: Tensor | None = None
    padding: Tensor | None = None
    sinks: int = 0
    memo: dict[object, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The conditions that are in force, by name."""
        said = {"causal": self.causal, "window": self.window, "document": self.documents, "padding": self.padding}
        return frozenset(kind for kind, value in said.items() if value is not None and value is not False)

    def value(self, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i sees key j in batch row b: elementwise, for FlexAttention and for `block` alike."""
        i = i + self.offset
        seen = i == i if not self.kinds else None
        if self.causal:
            seen = j <= i
        if self.window is not None:
            near = (i - j).abs() < self.window
            if self.sinks:
                near = near | (j < self.sinks + (self.padding[b] if self.padding is not None else 0))
            seen = near if seen is None else seen & near
        if self.documents is not None:
            same = self.documents[b, i] == self.documents[b, j]
            seen = same if seen is None else seen & same
        if self.padding is not None:
            real = j >= self.padding[b]
            seen = real if seen is None else seen & real
        assert seen is not None
        return seen

    def block(self, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
        """[batch or 1, 1, rows, columns] of bool, or None where all is seen."""
        if not self.kinds:
            return None
        batch = next((len(t) for t in (self.documents, self.padding) if t is not None), 1)
        b = torch.arange(batch, device=device).view(-1, 1, 1, 1)
        i = torch.arange(rows.start, rows.stop, device=device).view(-1, 1)
        return self.value(b, i, torch.arange(columns.start, columns.stop, device=device)).expand(batch, 1, -1, -1)

    def columns(self, rows: slice, keys: int) -> slice:
        """The keys outside which none of the rows sees anything, as far as causality and the window say."""
        start, stop = 0, rows.stop + self.offset if self.causal else keys
        if self.window is not None and not self.sinks:
            start = rows.start + self.offset - self.window + 1
            stop = min(stop, rows.stop + self.offset + self.window - 1)
        stop = min(stop, keys)
        return slice(min(max(start, 0), stop), stop)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, visible: Tensor | None, scale: float, rows: slice
) -> Tensor:
    """Softmax attention of some rows, by definition, in float32 or better; what Eager is and Tiled repeats.

    Args:
        q: [batch, heads, rows, width], the rows at hand.
        k: [batch, kv_heads, columns, width]; v likewise.
        bias: The whole bias; its block of these rows and columns is used.
        visible: [batch or 1, 1, rows, columns], or None.
        scale: Multiplies the dot products.
        rows: Which buffer rows q holds.
    """
    kind, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(exact), k.to(exact), v.to(exact)
    groups = k.shape[1]
    logits = q.unflatten(1, (groups, -1)) @ k.unsqueeze(2).transpose(-1, -2) * scale
    logits = logits.flatten(1, 2)
    if bias is not None:
        logits = bias.onto(logits, q, k, visible, scale, rows)
    if visible is not None:
        logits = logits.masked_fill(~visible, torch.finfo(exact).min)
    weights = logits.softmax(-1)
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)  # a row that sees nothing would average everything
    return (weights.unflatten(1, (groups, -1)) @ v.unsqueeze(2)).flatten(1, 2).to(kind)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a kernel is asked to do; the last five are unknown (None) while the model is being built.

    Args:
        rung: Rung of the bias, or None.
        mask: Names of the mask's conditions: causal, window, document, padding.
        rotation: Whether queries and keys are rotated.
        head_dim: Width of queries and keys.
        value_dim: Width of values.
        device: "cpu", "cuda", ...
        dtype: Of queries.
        training: Whether gradients are wanted.
        learned: Whether the bias itself wants gradients.
        size: Logits of one example: heads x queries x keys.
    """

    rung: type[Bias] | None = None
    mask: frozenset[str] = frozenset({"causal"})
    rotation: bool = False
    head_dim: int = 64
    value_dim: int = 64
    device: str | None = None
    dtype: torch.dtype | None = None
    training: bool | None = None
    learned: bool | None = None
    size: int | None = None


class Kernel(nn.Module):
    """Base class of all attention kernels; built per block, may own parameters.

    A subclass takes the geometry and its own numbers as keywords, all with defaults.
    """

    form: str = "softmax"
    """The function that it computes; kernels of one form may replace each other."""
    fuses: type[Bias] | None = None
    """The most general rung that it carries; None: no bias at all."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def refuses(self, request: Request) -> list[str]:
        """Reasons, as sentences, why it cannot serve the request; the rung is compared with `fuses` by others."""
        return []

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        """Attention of q [batch, heads, queries, width] over k, v [batch, kv_heads, keys, width]."""
        raise NotImplementedError

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        """The form by its definition, dense and in any precision: the oracle of the exam."""
        rows, columns = slice(0, q.shape[2]), slice(0, k.shape[2])
        visible = (mask or Mask()).block(rows, columns, q.device)
        with torch.autocast(q.device.type, enabled=False):  # it would round the logits that were asked for in float32
            return attend(q, k, v, bias, visible, scale, rows)

    def check(self, bias: Bias | None) -> None:
        """Refuse a bias above `fuses`, rather than leave it out; the first line of a kernel's `forward`."""
        asked, own = rung(bias), type(self).__name__
        if asked is not None and not carries(self.fuses, asked):
            most = f"biases up to {self.fuses.__name__}" if self.fuses else "no bias"
            raise ZooError(f"The kernel {own} cannot carry a {asked.__name__} bias; it carries {most}.")


class Eager(Kernel):
    """Softmax attention written out: the definition, on any device, in any precision, with O(N x N) memory.

    Source: Vaswani et al. 2017, arXiv:1706.03762: softmax(scale q k' + bias) v.
    """

    fuses = Logits

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        return self.reference(q, k, v, bias=bias, mask=mask, scale=scale)


DENSE = 2**25
"""Logits of one example (128 MiB in float32) up to which Auto lets a kernel hold the bias densely."""


class Auto(Kernel):
    """The fastest installed kernel of the softmax form that serves the request, chosen when the request is known.

    It logs its choice once and says why faster kernels were passed over. Order: without a bias SDPA; with one, on CUDA,
    Flex, then SDPA; elsewhere SDPA while the bias is small and fixed, else Tiled; Eager last.
    """

    fuses = Logits

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.kernels: dict[tuple[object, ...], Kernel] = {}
        """What was chosen, by all that a choice depends on."""

    @staticmethod
    def order(request: Request) -> tuple[str, ...]:
        """Names of kernels, the fastest first."""
        if request.rung is None and request.mask <= {"causal"}:
            return "SDPA", "Tiled", "Eager"
        if request.device == "cuda":
            return "Flex", "SDPA", "Tiled", "Eager"
        small = (request.size or 0) <= DENSE and not request.learned
        return ("SDPA", "Tiled", "Eager") if small else ("Tiled", "SDPA", "Eager")

    def choose(self, request: Request) -> Kernel:
        """The kernel for a request; a sentence where none serves it."""
        passed: list[str] = []
        for name in self.order(request):
            try:
                kernel = plugins.load("zoo.kernels", name)(self.geometry)
            except ZooError as error:
                passed.append(f"{name}: {error}")
                continue
            reasons = kernel.refuses(request)
            if not carries(kernel.fuses, request.rung):
                reasons = [f"does not carry a {request.rung.__name__} bias" if request.rung else "", *reasons]
            if not reasons:
                say(f"kernel: Auto chose {name} on {request.device}" + "".join(f"; not {line}" for line in passed))
                return kernel
            passed.append(f"{name} ({reasons[0].rstrip('.')})")
        raise ZooError("No installed kernel serves this model. " + " ".join(f"Not {line}." for line in passed))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        mask = mask or Mask()
        size, training = q.shape[1] * q.shape[2] * k.shape[2], torch.is_grad_enabled() and q.requires_grad
        learned = torch.is_grad_enabled() and bias is not None and any(t.requires_grad for t in bias.tensors)
        # A tuple is cheaper than a request, and this happens for every token.
        key = type(bias), mask.kinds, q.shape[-1], v.shape[-1], q.device, q.dtype, training, learned, size > DENSE
        if key not in self.kernels:
            request = Request(
                rung=rung(bias),
                mask=mask.kinds,
                head_dim=q.shape[-1],
                value_dim=v.shape[-1],
                device=q.device.type,
                dtype=q.dtype,
                training=training,
                learned=learned,
                size=size,
            )
            self.kernels[key] = self.choose(request)
        return self.kernels[key](q, k, v, bias=bias, mask=mask, scale=scale)


@cache
def say(line: str) -> None:
    """Log a line once, however many blocks and steps repeat it."""
    log.info(line)
