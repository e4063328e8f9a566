"""How fast a run goes, what share of the machine's arithmetic it uses, and how much memory."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache
from typing import Any, cast

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.task import Task
from zoo.tasks import LanguageModel


@cache
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second at best: the data sheet's on a GPU, measured on a CPU (float32 product)."""
    if device.type == "cuda":
        return float(get_available_flops(device, dtype) or 0)
    a, b, best = torch.ones(1024, 1024), torch.ones(1024, 1024), float("inf")  # drawing would disturb dropout
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def memory(device: torch.device) -> float:
    """The most memory that this process has had, in GiB: allocated on a CUDA device, resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux


class Throughput(Callback):
    """Logs tokens (or images) per second, model-FLOPs utilisation and memory in GiB.

    The first two are over all devices and without evaluation's time; memory is the most that the first process has had,
    of its device's on CUDA, as the system counts it on a CPU.

    Args:
        every: Steps between two readings.
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self.items, self.start = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.items, self.start = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.items, self.start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        task = cast(Task, pl_module)
        text = isinstance(task, LanguageModel)
        self.items += batch["tokens"][:, 1:].numel() if text else len(batch["labels"])
        if (batch_idx + 1) % self.every:
            return
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)
        readers = trainer.world_size // getattr(task, "sequence_parallel", 1)  # who share sequences read the same
        rate = self.items * readers / max(time.perf_counter() - self.start, 1e-9)
        half = str(trainer.precision).startswith(("bf16", "16"))
        best = peak(task.device, torch.bfloat16 if half else torch.float32) * trainer.world_size
        task.log("tokens/s" if text else "images/s", rate, prog_bar=True)
        if best:
            task.log("mfu", rate * task.flops() / best, prog_bar=True)
        task.log("memory", memory(task.device), prog_bar=True)
        self.items, self.start = 0, time.perf_counter()
