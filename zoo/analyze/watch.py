"""Watching a network read: what each block took, turned, scored and gave, one layer at a time, without changing it.

Hooks are set for the time of a forward pass and taken away after it. The network computes what it always computes, with
its own kernel; a layer is handed over as soon as its block is done, and nothing of it is kept, so that memory does not
grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from zoo.bias import Bias
from zoo.kernel import Kernel, Mask, grouped
from zoo.layers import Block
from zoo.position import Encoding, Rotation
from zoo.trunk import Trunk

ROOM = 2**22
"""Logits of one block of rows, all heads together."""


@dataclass(frozen=True)
class Call:
    """What a kernel was asked: the arguments of its `forward`, without values.

    Args:
        q: [batch, heads, queries, width].
        k: [batch, kv_heads, keys, width].
        bias: Added to the logits.
        mask: What is seen.
        scale: Multiplies the dot products.
        tokens: Tokens, prefix included; what stands before them among queries and keys are null tokens.
    """

    q: Tensor
    k: Tensor
    bias: Bias | None
    mask: Mask
    scale: float
    tokens: int

    @property
    def spread(self) -> Tensor:
        """Keys, [batch, heads, keys, width], repeated for the query heads that share them."""
        return self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], 1)

    def visible(self, rows: slice) -> Tensor | None:
        """What some rows see, [batch or 1, 1, rows, keys]."""
        return self.mask.block(rows, slice(0, self.k.shape[2]), self.q.device)

    def logits(self, rows: slice) -> Tensor:
        """Dot products of some rows times the scale, before the bias, [batch, heads, rows, keys], in float32."""
        q, k = self.q[:, :, rows].float(), self.k.float()
        return grouped(q, k.mT) * self.scale

    def weights(self, rows: slice) -> Tensor:
        """The softmax's weights of some rows, as `zoo.kernel.attend` defines them; rows that see nothing are 0."""
        logits, visible = self.logits(rows), self.visible(rows)
        if self.bias is not None:
            logits = self.bias.onto(logits, self.q[:, :, rows].float(), self.k.float(), visible, self.scale, rows)
        if visible is None:
            return logits.softmax(-1)
        return logits.masked_fill(~visible, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~visible, 0.0)

    def blocks(self, start: int = 0, room: int = ROOM) -> Iterator[tuple[slice, Tensor]]:
        """Rows from `start` on, prefix counted and null tokens not, with their weights on all keys."""
        null = self.q.shape[2] - self.tokens
        height = max(1, room // (self.q.shape[1] * self.k.shape[2]))
        for first in range(start, self.tokens, height):
            rows = slice(first, min(first + height, self.tokens))
            yield rows, self.weights(slice(rows.start + null, rows.stop + null))


@dataclass
class Layer:
    """What was seen of a block.

    Args:
        number: Of the layer, from 0.
        before: The stream that the block takes, [batch, tokens, dim], prefix included.
        encoding: What was said about positions.
        attended: What the attention layer adds to the stream.
        fed: What the feed-forward layer adds.
        after: The stream that the block gives.
        plain: Queries and keys before their rotation, where there is one.
        turned: The same after it.
        asked: What its kernel was asked.
        softmax: The same of the kernel that computes a softmax of dot products: this one, or one inside it.
    """

    number: int
    before: Tensor
    encoding: Encoding
    attended: Tensor | None = None
    fed: Tensor | None = None
    after: Tensor | None = None
    plain: tuple[Tensor, Tensor] | None = None
    turned: tuple[Tensor, Tensor] | None = None
    asked: Call | None = None
    softmax: Call | None = None


@dataclass(eq=False)
class Tap:
    """A rotation that also tells what went in and what came out."""

    rotation: Rotation
    seen: Layer

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.plain = q, k
        self.seen.turned = self.rotation(q, k)
        return self.seen.turned


def softmax(kernel: Kernel) -> Kernel | None:
    """The kernel that computes a softmax of dot products: the kernel itself, or one that it hands its work to."""
    parts = (part for part in kernel.modules() if isinstance(part, Kernel))
    return next((part for part in parts if part.form == "softmax"), None)


@contextmanager
def watched(trunk: Trunk, visit: Callable[[Layer], None]) -> Iterator[None]:
    """Have `visit` called with each layer of each forward pass."""
    handles: list[RemovableHandle] = []
    for number, block in enumerate(trunk.blocks):
        handles += hooks(number, cast(Block, block), visit)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooks(number: int, block: Block, visit: Callable[[Layer], None]) -> list[RemovableHandle]:
    """Set the hooks of one block."""
    now: list[Layer] = []

    def enter(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, encoding, *rest = arguments
        now[:] = [Layer(number, x, encoding)]
        if encoding.rotation is not None:
            encoding = replace(encoding, rotation=Tap(encoding.rotation, now[0]))
        return x, encoding, *rest

    def leave(_: Any, __: Any, x: Tensor) -> None:
        now[0].after = x
        visit(now.pop())

    def writes(name: str) -> Callable[..., None]:
        def keep(_: Any, __: Any, x: Tensor) -> None:
            setattr(now[0], name, x)

        return keep

    def asks(name: str) -> Callable[..., None]:
        def keep(_: Any, arguments: tuple[Any, ...], known: dict[str, Any]) -> None:
            q, k = arguments[:2]
            bias, mask, scale = known.get("bias"), known.get("mask") or Mask(), known.get("scale", 1.0)
            setattr(now[0], name, Call(q, k, bias, mask, scale, now[0].before.shape[1]))

        return keep

    own = block.attention, block.feed_forward
    attention, feed = (block.norm1, block.norm2) if block.norm_at == "after" else own
    kernel = block.attention.kernel
    set_ = [
        block.register_forward_pre_hook(enter),
        attention.register_forward_hook(writes("attended")),
        feed.register_forward_hook(writes("fed")),
        kernel.register_forward_pre_hook(asks("asked"), with_kwargs=True),
        block.register_forward_hook(leave),
    ]
    inner = softmax(kernel)
    if inner is not None:
        set_.append(inner.register_forward_pre_hook(asks("softmax"), with_kwargs=True))
    return set_
