"""Cross-entropy over many tokens without ever holding all their logits.

The logits of [tokens, vocabulary] in float32 are the largest tensor of a language model (6.6 GB at 32k tokens and a
vocabulary of 50k). Chunks of tokens are read out one after the other and, in training, again in backward.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""A target that does not count."""


def chunks(hidden: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`hidden` [batch, tokens, dim] and `targets` [batch, tokens] as pairs of at most `size` tokens."""
    yield from zip(hidden.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)


def summed(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Sum of the cross-entropies of some tokens, in float32."""
    return functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")


def cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module, size: int) -> Tensor:
    """Mean cross-entropy in nats per token.

    Args:
        hidden: [batch, tokens, dim].
        targets: [batch, tokens]; -100 does not count.
        head: Reads logits [tokens, vocabulary] out of [tokens, dim].
        size: Tokens read out at once.
    """
    count = (targets != IGNORED).sum().clamp(min=1)
    if targets.numel() <= size:
        return summed(hidden.flatten(0, 1), targets.flatten(), head) / count
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, target in chunks(hidden, targets, size):
        if torch.is_grad_enabled():
            total = total + checkpoint(summed, part, target, head, use_reentrant=False)
        else:
            total = total + summed(part, target, head)
    return total / count
