"""Cross-entropy over many tokens without ever holding all their logits.

The logits of [tokens, vocabulary] in float32 are the largest tensor of a language model (6.6 GB at 32k tokens and a
vocabulary of 50k). Chunks of tokens are read out one after the other and, in training, again in backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""A target that does not count."""


def chunks(hidden: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`hidden` [batch, tokens, dim] and `targets` [batch, tokens] as pairs of at most `size` tokens."""
    yield from zip(hidden.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)


def surprises(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each token, in float32; logits [..., vocabulary] give way to probabilities."""
    index = targets.clamp(min=0).unsqueeze(-1)
    right, most = logits.gather(-1, index), logits.amax(-1, keepdim=True)
    if logits.device.type == "cpu":
        torch.softmax(logits, -1, out=logits)
    else:  # where nobody has seen the fused kernel overwrite what it reads
        logits.copy_(logits.softmax(-1))
    # The largest probability is 1 / sum(exp(logits - most)) and no less than 1 / vocabulary: its logarithm is exact
    # where that of the target's would be that of 0.
    return (most - logits.amax(-1, keepdim=True).log() - right).squeeze(-1)


class Surprise(torch.autograd.Function):
    """Sum of -log softmax(logits)[target], in float32: the logits give way to their own gradient, in place.

    torch's cross-entropy keeps the logits, their log-softmax and the gradient of both, each [tokens, vocabulary].
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        seen = (targets != IGNORED).unsqueeze(-1)
        loss = surprises(logits, targets).unsqueeze(-1)
        index = targets.clamp(min=0).unsqueeze(-1)
        logits.scatter_(-1, index, logits.gather(-1, index) - 1)
        ctx.save_for_backward(logits, seen)
        return torch.where(seen, loss, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, seen = ctx.saved_tensors
        return logits.mul_(seen * gradients[0]), None  # a second backward would be an error, not a wrong number


def summed(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Sum of the cross-entropies of some tokens, in float32; what `head` gives is overwritten."""
    return Surprise.apply(head(hidden).float(), targets)


def cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module, size: int, count: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats per token.

    Args:
        hidden: [batch, tokens, dim].
        targets: [batch, tokens]; -100 does not count.
        head: Reads logits [tokens, vocabulary] out of [tokens, dim], into memory of their own.
        size: Tokens read out at once.
        count: What the sum is divided by (default: the targets that count).
    """
    count = (targets != IGNORED).sum().clamp(min=1) if count is None else count
    if targets.numel() <= size:
        return summed(hidden.flatten(0, 1), targets.flatten(), head) / count
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, target in chunks(hidden, targets, size):
        if torch.is_grad_enabled():
            total = total + checkpoint(summed, part, target, head, use_reentrant=False)
        else:
            total = total + summed(part, target, head)
    return total / count
