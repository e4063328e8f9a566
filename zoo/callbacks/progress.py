"""What a person sees of a run: one bar for all of its steps, what was last measured, and when it will be over.

A terminal gets two lines that stay where they are. Where nobody watches, in a file or a pipe, a line is written now and
then: at most one a minute, and at most a hundred a run. The end is estimated from all steps since the start, with the
validations among them, since these will come again.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import progress
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

REFRESH = 0.25
"""Seconds between two looks at the metrics: each look waits for the device."""


class Lines(progress.Progress):
    """Bars, and under them a line of facts."""

    facts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.facts:
            yield Padding(Text(self.facts, style="bright_black"), (0, 0, 0, 11))


class Progress(ProgressBar):
    """A bar on a terminal, a few lines elsewhere.

    Args:
        every: Seconds between two lines where there is no terminal.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self.every, self.shown = every, True
        self.lines: Lines | None = None
        self.bars: dict[str, progress.TaskID] = {}
        self.begun, self.first, self.looked, self.written = 0.0, 0, 0.0, (0.0, 0)

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    # The bars.

    def open(self, name: str, total: float | None, completed: int = 0) -> None:
        """Show a bar, and the whole display if there is none yet."""
        console = Console()
        if not self.shown or not console.is_terminal:
            return
        if self.lines is None:
            self.lines = Lines(
                progress.TextColumn("[bold]{task.description:<10}"),
                progress.BarColumn(bar_width=None),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[end]}", style="cyan"),
                console=console,
                expand=True,
            )
            self.lines.start()
            follow()
        whole = total if total is not None and math.isfinite(total) else None
        self.bars[name] = self.lines.add_task(name, total=whole, completed=completed, end="")

    def move(self, name: str, completed: int, **fields: Any) -> None:
        """Set a bar to a place."""
        if self.lines is not None and name in self.bars:
            self.lines.update(self.bars[name], completed=completed, **fields)

    def close(self, name: str | None = None) -> None:
        """Take a bar away, or leave all of them as they are and give the terminal back."""
        if self.lines is None:
            return
        if name is not None:
            if name in self.bars:
                self.lines.remove_task(self.bars.pop(name))
            return
        self.lines.stop()
        follow()
        self.lines, self.bars = None, {}

    # Training.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun, self.first, self.looked = time.monotonic(), trainer.global_step, 0.0
        self.written = (self.begun, self.first)
        self.open("training", steps(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step, total = time.monotonic(), trainer.global_step, steps(trainer)
        if self.shown and (now - self.looked >= REFRESH or step == total):
            self.looked = now
            self.tell(trainer, now, step, total)

    def tell(self, trainer: Trainer, now: float, step: int, total: float | None) -> None:
        """Bring the display up to date, or write a line if it is time for one."""
        end = left(now - self.begun, step - self.first, (total or math.inf) - step)
        if self.lines is not None:
            self.lines.facts = facts(trainer.progress_bar_metrics)
            self.move("training", step, end=end)
        elif now - self.written[0] >= self.every and step - self.written[1] >= (total or 0) / 100:
            self.written = (now, step)
            whole = f"/{total:.0f}" if total else ""
            print(f"step {step}{whole}  {facts(trainer.progress_bar_metrics)}  {end}".rstrip(), flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    # Measuring.

    def begin(self, trainer: Trainer, name: str, batches: Any) -> None:
        """Show how far a measurement is."""
        if not trainer.sanity_checking:
            self.open(name, sum(batches) if isinstance(batches, list) else batches)

    def step(self, trainer: Trainer, name: str) -> None:
        """One batch of it is done."""
        if self.lines is not None and name in self.bars:
            self.lines.advance(self.bars[name])

    def end(self, trainer: Trainer, name: str) -> None:
        """A measurement is over; beside training its bar goes."""
        if trainer.state.fn == "fit":
            self.close(name)
        else:
            self.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(trainer, "validation", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.step(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end(trainer, "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(trainer, "test", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.step(trainer, "test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(trainer, "prediction", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.step(trainer, "prediction")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end(trainer, "prediction")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()


def follow() -> None:
    """Have log lines go where stderr now goes: above the bars, or straight to the terminal."""
    for name in ("", "lightning.pytorch", "lightning.fabric", "zoo"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler and handler.stream is not sys.stdout:
                if getattr(handler.stream, "closed", False):  # which cannot be flushed any more
                    handler.stream = sys.stderr
                handler.setStream(sys.stderr)


def steps(trainer: Trainer) -> float | None:
    """Optimizer steps of the whole run, where they are known."""
    if trainer.max_steps > 0 and trainer.max_epochs in (None, -1):
        return trainer.max_steps
    total = trainer.estimated_stepping_batches
    return total if math.isfinite(total) and total > 0 else None


def left(seconds: float, done: int, rest: float) -> str:
    """The time that is left, and when it will have passed: `0:12:40 left, until 14:05`."""
    if not done or not math.isfinite(rest):
        return ""
    remaining = timedelta(seconds=round(seconds / done * rest))
    if not remaining:
        return f"took {timedelta(seconds=round(seconds))}" if not rest else ""
    end = datetime.now() + remaining
    today = end.date() == datetime.now().date()
    return f"{remaining} left, until {end:{'%H:%M' if today else '%a %d %b %H:%M'}}"


def facts(metrics: dict[str, Any]) -> str:
    """What was measured, in a line: `loss 2.114 · 7.2k tokens/s · 29 % MFU · 0.9 GiB`."""
    return " · ".join(fact(name, float(value)) for name, value in metrics.items() if name != "v_num")


def fact(name: str, value: float) -> str:
    """One of them."""
    if name.endswith("/s"):
        for unit, size in (("M", 1e6), ("k", 1e3)):
            if value >= size:
                return f"{value / size:.3g}{unit} {name}"
        return f"{value:.3g} {name}"
    if name == "mfu":
        return f"{100 * value:.0f} % MFU"
    if name == "memory":
        return f"{value:.3g} GiB"
    return f"{name.removeprefix('train/')} {value:.4g}"
