"""A step whose loss or gradient is no number is skipped by all processes together, kept for inspection, and counted.

The decision is one flag over all processes, made after the backward pass and before anything is updated. A skipped step
leaves weights and optimizer as they were: without gradients an optimizer neither decays nor moves anything. It still
counts as a step, so that the schedule and the order of the data stay those of the run. A strategy that keeps gradients
to itself (DeepSpeed) says that it `drops` them, for which it reads `Task.skipping` before it steps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zoo.callbacks.processes import follows
from zoo.errors import ZooError
from zoo.task import Task

Batch = dict[str, Tensor]


class NonFinite(Callback):
    """Skips steps that are no numbers, and stops when there are too many; logs `train/skipped` from the first on.

    The batches of a skipped step go to `skipped/` beside the logs, as safetensors.

    Args:
        consecutive: Skipped steps in a row that stop the run; 1 skips none.
        total: Skipped steps of a whole run that stop it.
    """

    def __init__(self, consecutive: int = 3, total: int = 30) -> None:
        if min(consecutive, total) < 1:
            raise ZooError(f"A run stops after 1 skipped step or more, and got {consecutive} in a row, {total} in all.")
        self.consecutive, self.total = consecutive, total
        self.row, self.skipped = 0, 0
        self.batch: Batch = {}
        self.seen: list[tuple[Tensor, Batch]] = []
        """Loss and batch of each pass that adds to this step's gradient."""

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.row, self.skipped = state_dict["row"], state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.seen.append((loss.detach(), self.batch))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # a strategy that accumulates by itself comes here with every batch
        task, seen, self.seen = cast(Task, pl_module), self.seen, []
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        finite = [loss.isfinite().all() for loss, _ in seen]
        if scaler is None:  # which looks at the gradient itself, and expects infinite ones
            gradients = [local(p.grad) for p in task.parameters() if p.grad is not None]
            finite += [torch.nn.utils.get_total_norm(gradients).isfinite()] if gradients else []
        bad = trainer.strategy.reduce((~torch.stack(finite).all()).float(), reduce_op="sum")
        task.skipping = bool(bad > 0)
        if not task.skipping:
            self.row = 0
        else:
            self.row, self.skipped = self.row + 1, self.skipped + 1
            if not getattr(trainer.strategy, "drops", False):
                optimizer.zero_grad(set_to_none=True)
            scale = trainer.accumulate_grad_batches / (scaler.get_scale() if scaler else 1)
            self.tell(trainer, [(float(loss) * scale, batch) for loss, batch in seen])
        if self.skipped:
            task.log("train/skipped", float(self.skipped))

    def tell(self, trainer: Trainer, seen: list[tuple[float, Batch]]) -> None:
        """Keep the batches, say what was skipped, and stop where it is too much. All processes come here."""
        cast(Task, trainer.lightning_module).check_weights()  # after which no loss is a number, and no step helps
        step, rank = trainer.global_step, trainer.global_rank
        losses: list[list[float]] = [[loss for loss, _ in seen]]
        if trainer.world_size > 1:
            losses = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(losses, [loss for loss, _ in seen])
        bad = {r: [loss for loss in each if not finite(loss)] for r, each in enumerate(losses)}
        bad = {r: each for r, each in bad.items() if each}
        folder = Path(trainer.log_dir or ".") / "skipped"
        # Where every loss is a number it was the gradient, and any process may have spoilt it.
        suspects = [(loss, batch) for loss, batch in seen if not (bad and finite(loss))]
        if suspects:
            folder.mkdir(parents=True, exist_ok=True)
            told = {"step": str(step), "rank": str(rank), "loss": ", ".join(str(loss) for loss, _ in suspects)}
            whole = {key: torch.cat([batch[key] for _, batch in suspects]).cpu() for key in suspects[0][1]}
            save_file(whole, folder / f"step-{step}-rank-{rank}.safetensors", told)
        reason = (
            "the loss is " + " and ".join(f"{each[0]} in process {r}" for r, each in bad.items())
            if bad
            else "every loss is finite, but the gradient is not"
        )
        which = [*bad] or [*range(trainer.world_size)]
        names = f"step-{step}-rank-{which[0] if len(which) == 1 else '*'}.safetensors"
        if rank == 0:
            print(f"zoo: step {step} is skipped: {reason}. Its batch: {folder / names}", file=sys.stderr)
        if self.row < self.consecutive and self.skipped < self.total:
            return
        count = f"{self.row} in a row" if self.row >= self.consecutive else f"{self.skipped} in all"
        if follows(trainer):
            sys.exit(0)
        raise ZooError(
            f"The run stops at step {step}, after too many steps whose loss or gradient is no number: {count}. "
            f"None of them changed a weight. Their batches are in {folder}.   "
            "Try:  a smaller learning rate, --trainer.gradient_clip_val 1, or, to skip more of them, "
            f"--trainer.callbacks+=NonFinite --trainer.callbacks.consecutive {2 * self.consecutive}"
        )


def local(gradient: Tensor) -> Tensor:
    """The part of a gradient that this process has; the flag is one over all of them."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def finite(number: float) -> bool:
    """Whether it is neither infinite nor no number at all."""
    return abs(number) < float("inf")
