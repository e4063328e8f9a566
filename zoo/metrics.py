"""The loss of a language model over a whole validation, and its perplexity, which is exp of that loss.

Sums and counts are added up over chunks, batches and processes, so a batch with fewer targets weighs less. Both metrics
are updated with the same sums: `perplexity == exp(loss)` holds to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean negative log-likelihood in nats over all targets that count; no number where none does."""

    is_differentiable, higher_is_better, full_state_update = False, False, False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        """Add the sum over some targets, and how many they are."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The mean, in nats."""
        return self.total / self.count


class Perplexity(MeanLoss):
    """exp of the mean negative log-likelihood."""

    def compute(self) -> Tensor:
        """The perplexity, per token."""
        return super().compute().exp()
