"""SIGTERM and Ctrl-C end a run between two steps, with a checkpoint from which it goes on as if it had never stopped.

A scheduler that takes a machine back says so with SIGTERM, to one process or to all. Whoever hears it says so to the
others at the end of the step, so that all of them stop after the same one. Lightning's own handler makes a collective
call from within the signal, which may fall between those of a backward pass; it is replaced by one that sets a flag.
What it does afterwards (leave the loops, end the loggers) is used as it is. SIGUSR1, SLURM's requeueing, stays
Lightning's. Ctrl-C reaches all processes of a terminal at once, those that load batches too, which leave it to the
one that trains; a second Ctrl-C ends everything where it is.
"""

from __future__ import annotations

import os
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

from zoo import lock
from zoo.callbacks.processes import follows

SIGNALS = {signal.SIGTERM: "told to terminate", signal.SIGINT: "interrupted"}
"""Signals that end a run after a step, and what is said of it; the status is 128 and the number, as shells have it."""

_fitting: set[int] = set()
"""This process, while it trains."""


def leave_interrupts_to_parent() -> None:
    """Have a process that was forked to load batches ignore Ctrl-C: it ends with the process that trains."""
    if os.getppid() in _fitting:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=leave_interrupts_to_parent)


class Preemption(Callback):
    """Finishes the step, saves `last.ckpt`, and ends with status 143 when the process is told to terminate.

    Ctrl-C does the same, with status 130; a second one stops at once. A validation that is due at that step is finished
    too, after the checkpoint has been saved a first time.

    Args:
        again: The command that continues a run from a checkpoint (default: only the checkpoint is named).
    """

    def __init__(self, again: Callable[[Path], str] | None = None) -> None:
        self.again = again
        self.told: set[signal.Signals] = set()
        """What this process has heard."""
        self.agreed: signal.Signals | None = None
        """What all processes stop for."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fitting.add(os.getpid())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _fitting.clear()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen(trainer)

    def listen(self, trainer: Trainer) -> None:
        """Take the signals over; Lightning gives them back at the end."""
        process = os.getpid()

        def terminated(*_: Any) -> None:
            launcher = trainer.strategy.launcher
            if os.getpid() == process and signal.SIGTERM not in self.told and launcher is not None:
                launcher.kill(signal.SIGTERM)  # type: ignore[attr-defined]
            self.told.add(signal.SIGTERM)

        def interrupted(*_: Any) -> None:
            if os.getpid() != process:
                return
            if signal.SIGINT in self.told:
                stop_at_once(trainer)
            self.told.add(signal.SIGINT)
            if trainer.is_global_zero:
                os.write(2, b"\nzoo: interrupted: the step is finished and saved; a second Ctrl-C stops at once\n")

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)
            signal.signal(signal.SIGINT, interrupted)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        if self.agreed:
            return leave(trainer)  # the validation that was due did not take place: there was nothing to validate on
        if loop._should_accumulate():
            return
        told = torch.tensor([float(each in self.told) for each in SIGNALS], device=trainer.strategy.root_device)
        counts = trainer.strategy.reduce(told, reduce_op="sum").tolist()  # type: ignore[union-attr]
        self.agreed = next((each for each, count in zip(SIGNALS, counts, strict=True) if count > 0), None)
        if self.agreed is None:
            return
        if loop.epoch_loop._should_check_val_fx(cast(_DataFetcher, loop._data_fetcher)):
            save(trainer)  # there may not be time for all of it
        else:
            leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.agreed:
            leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _fitting.clear()
        launcher = trainer.strategy.launcher
        if lock.is_disk_full(exception) and trainer.is_global_zero and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)  # type: ignore[union-attr]  # the others wait for what this one cannot save
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = 0 if follows(trainer) else 128 + (self.agreed or signal.SIGTERM)
        if self.agreed is None:
            return
        step, path = trainer.global_step, save(trainer)
        if trainer.is_global_zero:
            kept = f"Saved: {path}" if path else "Nothing was saved, for this run keeps no checkpoints"
            more = f"   Go on:  {self.again(path)}" if path and self.again else ""
            reason = SIGNALS[self.agreed]
            print(f"\nzoo: {reason}, and stopped after {step} steps. {kept}{more}", file=sys.stderr)


def stop_at_once(trainer: Trainer) -> None:
    """End this process and those that it has started, whatever they do; what was saved before stays."""
    if (launcher := trainer.strategy.launcher) is not None and hasattr(launcher, "kill"):
        launcher.kill(signal.SIGKILL)
    lock.abandon_writing()
    os.write(2, b"\nzoo: interrupted\n")
    os._exit(128 + signal.SIGINT)


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
