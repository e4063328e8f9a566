"""How redundant the heads of a model are, as curves over its training.

A recipe switches it on in one line of its trainer section:

    callbacks: [HeadRedundancy]

The first examples of a validation pass through the model once more, by the way of `zoo predict`, while hooks look at
the kernels; then the hooks are gone. The run goes on as it would have without it: nothing is drawn and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.analyze.distances import HeadDistances, choices, maps
from zoo.auto import Auto
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask
from zoo.layers import Block
from zoo.loss import IGNORED
from zoo.task import Task


class HeadRedundancy(Callback):
    """Logs at each validation how far apart the heads of a layer are, for any kernel, on text or images.

        val/head_distance            |o_g - o_h|, of what two heads give a token before the output projection
        val/head_distance_relative   that, divided by the mean |o_h|: comparable where values differ in size
        val/head_variation           1/2 sum |A_g - A_h| of two rows of attention: 0 where alike, 1 where disjoint

    Each is the mean over the model's layers; with `_std` behind it, the standard deviation over layers. The definitions
    are in `zoo.analyze.distances`. Distances are of the run's precision, maps are float32. A compiled model is run
    without its compiler for these examples. Models of one head, and processes that share out the heads of a sequence,
    are told that there is nothing to log.

    Args:
        batches: First batches of a validation that are looked at.
        examples: First examples of each of them, in each process.
    """

    def __init__(self, batches: int = 1, examples: int = 8) -> None:
        if min(batches, examples) < 1:
            raise ZooError(
                f"HeadRedundancy looks at 1 batch or more and 1 example or more of it; got {batches} and {examples}."
            )
        self.batches, self.examples = batches, examples
        self.metric: HeadDistances | None = None
        """None where there is nothing to measure."""
        self.told = False
        """Whether that has been said."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Task):
            raise ZooError(
                f"HeadRedundancy measures the kernels of zoo's models, and this is a {type(pl_module).__name__}. "
                "Leave it out of trainer.callbacks."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = cast(Task, pl_module)
        geometry = task.trunk.geometry
        reason = None
        if geometry.heads < 2:
            reason = "the model has one head, which nothing can be redundant with"
        elif getattr(task, "sequence_parallel", 1) > 1:
            reason = "each process has some of the heads, and never meets the others"
        if reason is not None and not trainer.sanity_checking:
            if not self.told:
                rank_zero_info(f"Head redundancy is left out: {reason}.")
            self.told = True
        self.metric = None if reason else HeadDistances(geometry.layers).to(task.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.metric is None or batch_idx >= self.batches or trainer.sanity_checking:
            return
        some = {name: tensor[: self.examples] for name, tensor in batch.items()}
        # What is there for other processes' sake passes too, as they wait for it, but does not count.
        real = some["labels"] != IGNORED if "labels" in some else (some["documents"] >= 0).all(-1)
        with watching(cast(Task, pl_module), self.metric, real), torch.compiler.set_stance("force_eager"):
            trainer.strategy.predict_step(some, 0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric is None or trainer.sanity_checking:
            return
        found = self.metric.compute()
        for name, label in zip(self.metric.names, ("distance", "distance_relative", "variation"), strict=True):
            for end in ("", "_std"):
                pl_module.log(f"val/head_{label}{end}", found[f"{name}{end}"].float(), sync_dist=True)
        self.metric = None


@contextmanager
def watching(task: Task, metric: HeadDistances, real: Tensor) -> Iterator[None]:
    """Have each call of each block's kernel add to the metric.

    Args:
        task: The task whose network is watched.
        metric: What is added to.
        real: The examples that count, [batch].
    """
    handles = []
    # What Auto chooses for these calls is forgotten: a compiled model would take it for a change, and compile anew.
    chosen = [(auto.kernels, dict(auto.kernels)) for auto in task.trunk.modules() if isinstance(auto, Auto)]
    for number, block in enumerate(task.trunk.blocks):
        kernel = cast(Block, block).attention.kernel
        handles.append(kernel.register_forward_pre_hook(look(number, metric, real), with_kwargs=True))
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for kernels, before in chosen:
            kernels.clear()
            kernels.update(before)


def look(layer: int, metric: HeadDistances, real: Tensor) -> Any:
    """A hook that runs before the call of a kernel, while strategies that share out its parameters hold all of them."""

    def hook(module: Any, tensors: tuple[Tensor, ...], known: dict[str, Any]) -> None:
        if not real.any():
            return
        kernel, (q, k, v) = cast(Kernel, module), tensors
        bias, mask, scale = known.get("bias"), known.get("mask") or Mask(), known.get("scale", 1.0)
        output = kernel.forward(q, k, v, bias=bias, mask=mask, scale=scale)  # not the module, whose hook this is
        columns = maps(kernel, q, k, bias=bias, mask=mask, scale=scale, columns=v.shape[-1])
        choice = choices(mask, q.shape[2], k.shape[2], q.device).expand(len(q), -1)
        metric.update(output[real], (block[real] for block in columns), choice[real], layer)

    return hook
