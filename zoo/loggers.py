"""Where the figures of a run go: TensorBoard and a table, side by side in one folder."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only


def both(root: str | Path) -> list[loggers.Logger]:
    """TensorBoard's events and `metrics.csv`, in the next free folder under `lightning_logs`."""
    board = loggers.TensorBoardLogger(str(root), version=os.environ.get("SLURM_JOB_ID"))
    return [board, AppendingCSVLogger(str(root), version=board.version)]


class Appending(ExperimentWriter):
    """Lightning's table, but what an earlier part of the run has written stays."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        kept = path.read_bytes()
        path.write_bytes(kept[: kept.rfind(b"\n") + 1])  # of a run that was killed the last line may be torn
        with path.open(newline="") as file:
            self.metrics_keys = next(csv.reader(file), [])
        if not self.metrics_keys:
            path.unlink()

    def _check_log_dir_exists(self) -> None:
        """It may, and other files may be in it."""


class AppendingCSVLogger(loggers.CSVLogger):
    """Writes `metrics.csv`, and goes on in one that is there.

    Args:
        save_dir: The run's folder.
        name: Folder in it.
        version: Folder in that (default: the next free number).
        prefix: What the names of metrics begin with.
        flush_logs_every_n_steps: Readings between two writes to the disk.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 20,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = Appending(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Left to TensorBoard, which writes the same file; the run's own is config.yaml."""
