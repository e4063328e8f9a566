"""The contract of attention kernels: masks, requests and refusals, and Eager, which defines attention.

A kernel computes a form: a score and a normaliser. Eager, SDPA, Tiled, Flex and Flash are implementations of one form,
softmax of the dot product, and Eager is its definition; a kernel of another form overrides `reference`. A kernel says
which rung of the bias ladder it carries and refuses, with reasons, what it cannot do; it never leaves a bias out.
Tensors are [batch, heads, tokens, width]. Masks speak of buffer indices, biases of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.bias import Bias, Logits, carries, rung
from zoo.errors import ZooError
from zoo.position import Exact, Geometry


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
        null: Keys before all others, and as many queries, that are no tokens: the keys are seen by every query.
        memo: Where a kernel keeps what all layers share; nothing in it may want a gradient.
    """

    causal: bool = False
    offset: int = 0
    window: int | None = None
    documents: Tensor | None = None
    padding: Tensor | None = None
    sinks: int = 0
    null: int = 0
    memo: dict[object, Any] = field(default_factory=dict, repr=False)

    @property
    def kinds(self) -> frozenset[str]:
        """The conditions that are in force, by name."""
        said = {"causal": self.causal, "window": self.window, "document": self.documents, "padding": self.padding}
        return frozenset(kind for kind, value in said.items() if value is not None and value is not False)

    def value(self, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i sees key j in batch row b: elementwise, for FlexAttention and for `block` alike."""
        i, j = i + self.offset - self.null, j - self.null
        seen = i == i if not self.kinds else None
        if self.causal:
            seen = j <= i
        if self.window is not None:
            near = (i - j).abs() < self.window
            if self.sinks:
                near = near | (j < self.sinks + (self.padding[b] if self.padding is not None else 0))
            seen = near if seen is None else seen & near
        if self.documents is not None:
            n, m = (x.clamp(min=0) for x in (i, j)) if self.null else (i, j)
            same = self.documents[b, n] == self.documents[b, m]
            seen = same if seen is None else seen & same
        if self.padding is not None:
            real = j >= self.padding[b]
            seen = real if seen is None else seen & real
        assert seen is not None
        return seen | (j < 0) if self.null else seen

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
        if self.window is not None and not self.sinks and not self.null:
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
    if bias is not None and bias.anew:
        logits = q.new_zeros(()).expand(*q.shape[:3], k.shape[2])
    else:
        logits = grouped(q, k.mT) * scale
    if bias is not None:
        logits = bias.onto(logits, q, k, visible, scale, rows)
    if visible is not None:
        logits = logits.masked_fill(~visible, torch.finfo(exact).min)
    weights = logits.softmax(-1)
    if visible is not None and not sighted(visible):
        weights = weights.masked_fill(~visible, 0.0)  # a row that sees nothing would average everything
    return grouped(weights, v).to(kind)


def sighted(visible: Tensor) -> bool:
    """Whether every row is known to see something; unknown where asking would wait for a device, or break a graph."""
    return visible.device.type == "cpu" and not torch.compiler.is_compiling() and bool(visible.any(-1).all())


def grouped(x: Tensor, y: Tensor) -> Tensor:
    """Each head's matrix times that of its group, [batch, heads, rows, columns].

    The rows of a group's heads are multiplied as one matrix, so that nothing of the group is copied for each head.

    Args:
        x: [batch, heads, rows, width].
        y: [batch, kv_heads, width, columns].
    """
    rows = x.reshape(x.shape[0], y.shape[1], -1, x.shape[-1])
    return (rows @ y).view(*x.shape[:3], y.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a kernel is asked to do; the last five are unknown (None) while the model is being built.

    Args:
        rung: Rung of the bias, or None.
        mask: Names of the mask's conditions: causal, window, document, padding.
        rotation: Whether queries and keys are rotated.
        isometric: Whether that keeps their norms.
        rotated: Channels of them that are rotated, in pairs; None: unknown.
        interleaved: Whether these pairs are neighbouring channels, or halves.
        scaled: Whether each query has a factor of its own on its logits.
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
    isometric: bool = True
    rotated: int | None = None
    interleaved: bool = False
    scaled: bool = False
    head_dim: int = 64
    value_dim: int = 64
    device: str | None = None
    dtype: torch.dtype | None = None
    training: bool | None = None
    learned: bool | None = None
    size: int | None = None


class Kernel(Exact):
    """Base class of all attention kernels; built per block, may own parameters.

    A subclass takes the geometry and its own numbers as keywords, all with defaults. Its parameters stay float32 when a
    model is cast to half precision.
    """

    form: str = "softmax"
    """The function that it computes; kernels of one form may replace each other."""
    fuses: type[Bias] | None = None
    """The most general rung that it carries; None: no bias at all."""
    share: slice = slice(None)
    """The heads that a call is about, where processes have shared them out; `geometry` is that of all heads."""
    divisible: bool = False
    """Whether it reads what it has for each head, such as parameters, through `share`; without any it need not say."""

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
