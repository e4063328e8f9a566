"""What `zoo predict` leaves: a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file


class Predictions(BasePredictionWriter):
    """Writes what `zoo predict` computes to `predictions.safetensors`, in the order of the test split."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        name = "predictions" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}"
        place = Path(trainer.log_dir or ".") / f"{name}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file({"predictions": torch.cat(predictions).cpu().contiguous()}, place)
        print(f"Predictions: {place}")
