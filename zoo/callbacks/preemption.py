"""SIGTERM ends a run between two steps, with a checkpoint from which it goes on as if nothing had happened.

A scheduler that takes a machine back says so with SIGTERM, to one process or to all. Whoever hears it says so to the
others at the end of the step, so that all of them stop after the same one. Lightning's own handler makes a collective
call from within the signal, which may fall between those of a backward pass; it is replaced by one that sets a flag.
What it does afterwards (leave the loops, end the loggers) is used as it is. SIGUSR1, SLURM's requeueing, stays
Lightning's.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from zoo.callbacks.processes import follows

STATUS = 128 + signal.SIGTERM
"""What a shell calls the end by a signal."""


class Preemption(Callback):
    """Finishes the step, saves `last.ckpt`, and ends with status 143 when the process is told to terminate.

    A validation that is due at that step is finished too, after the checkpoint has been saved a first time.

    Args:
        again: The command that continues a run from a checkpoint (default: only the checkpoint is named).
    """

    def __init__(self, again: Callable[[Path], str] | None = None) -> None:
        self.again = again
        self.told, self.agreed = False, False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen(trainer)

    def listen(self, trainer: Trainer) -> None:
        """Take the signal over; Lightning gives it back at the end."""

        def heard(*_: Any) -> None:
            launcher = trainer.strategy.launcher
            if not self.told and launcher is not None:
                launcher.kill(signal.SIGTERM)  # type: ignore[attr-defined]
            self.told = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heard)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        if self.agreed:
            return leave(trainer)  # the validation that was due did not take place: there was nothing to validate on
        if loop._should_accumulate():
            return
        told = torch.tensor(float(self.told), device=trainer.strategy.root_device)
        self.agreed = bool(trainer.strategy.reduce(told, reduce_op="sum") > 0)
        if not self.agreed:
            return
        if loop.epoch_loop._should_check_val_fx(cast(_DataFetcher, loop._data_fetcher)):
            save(trainer)  # there may not be time for all of it
        else:
            leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.agreed:
            leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = 0 if follows(trainer) else STATUS
        if not self.agreed:
            return
        step, path = trainer.global_step, save(trainer)
        if trainer.is_global_zero:
            kept = f"Saved: {path}" if path else "Nothing was saved, for this run keeps no checkpoints"
            more = f"   Go on:  {self.again(path)}" if path and self.again else ""
            print(f"\nzoo: told to terminate, and stopped after {step} steps. {kept}{more}", file=sys.stderr)


def leave(trainer: Trainer) -> None:
    """Have Lightning leave its loops at the end of this step."""
    trainer._signal_connector.received_sigterm = True


def save(trainer: Trainer) -> Path | None:
    """Save the last checkpoint, on all processes; its place, if there is one."""
    keeper = trainer.checkpoint_callback
    if not isinstance(keeper, ModelCheckpoint) or not keeper.dirpath:
        return None
    path = Path(keeper.dirpath) / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    return path
