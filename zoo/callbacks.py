"""What a run tells while it goes and leaves behind when it ends: throughput, a sample, a folder to publish."""

from __future__ import annotations

import logging
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.decoder import Decoder
from zoo.generate import stream
from zoo.lengths import short
from zoo.task import Task
from zoo.tasks import LanguageModel

log = logging.getLogger(__name__)


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


class Throughput(Callback):
    """Logs tokens (or images) per second and model-FLOPs utilisation, over all devices, without evaluation's time.

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
        task.finite(trainer.callback_metrics["train/loss"])
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)
        readers = trainer.world_size // getattr(task, "sequence_parallel", 1)
        rate = self.items * readers / max(time.perf_counter() - self.start, 1e-9)
        half = str(trainer.precision).startswith(("bf16", "16"))
        best = peak(task.device, torch.bfloat16 if half else torch.float32) * trainer.world_size
        task.log("tokens/s" if text else "images/s", rate, prog_bar=True)
        if best:
            task.log("mfu", rate * task.flops() / best, prog_bar=True)
        self.items, self.start = 0, time.perf_counter()


class Release(Callback):
    """Leaves `model/` beside the logs when a run ends: config, safetensors, tokenizer and card, ready to publish.

    A language model also shows a sample of what it writes.

    Args:
        prompt: What the sample starts from.
        tokens: Tokens of the sample; 0 for none.
    """

    def __init__(self, prompt: str = "def ", tokens: int = 100) -> None:
        self.prompt, self.tokens = prompt, tokens

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "train/loss" in trainer.callback_metrics:
            cast(Task, pl_module).finite(trainer.callback_metrics["train/loss"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keeper = trainer.checkpoint_callback
        if getattr(trainer, "fast_dev_run", False):
            return
        if isinstance(keeper, ModelCheckpoint) and keeper.dirpath:
            # The last step is kept even where no validation fell on it.
            trainer.save_checkpoint(Path(keeper.dirpath) / "last.ckpt", weights_only=False)
        self.release(trainer, pl_module, trainer.log_dir)  # which all processes ask each other for

    @rank_zero_only
    def release(self, trainer: Trainer, pl_module: LightningModule, place: str | None) -> None:
        """Write the folder, and say where everything is."""
        task = cast(Task, pl_module)
        if place is None or not task.about:
            return
        keeper = trainer.checkpoint_callback
        saved = Path(keeper.dirpath) / "last.ckpt" if isinstance(keeper, ModelCheckpoint) and keeper.dirpath else None
        if divided(task):
            if saved is None:
                return
            task.network = checkpoints.read(saved).network()  # this process has but a share of the one that trained
        content: dict[str, Any] = {}
        task.on_save_checkpoint(content)
        path = Path(place) / "model"
        figures = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(("val", "train"))
        }
        weights = cast(torch.nn.Module, task.network).state_dict()
        folder.write(path, content["zoo"], weights, card(content["zoo"], figures, task, trainer))
        lines = [f"{name} {value:.4g}" for name, value in figures.items()]
        print(f"\n{', '.join(lines)}\n")
        if isinstance(task, LanguageModel) and self.tokens:
            print(f"A sample, from {self.prompt!r} on:\n\n{self.sample(task, trainer)}\n")
        text = isinstance(task, LanguageModel)
        following = f"zoo generate {path} --prompt {self.prompt!r}" if text else f"zoo test --ckpt_path {saved}"
        print(f"Checkpoint: {saved or 'none'}\nTo publish: {path}\nNext:       {following}")

    def sample(self, task: LanguageModel, trainer: Trainer) -> str:
        """The prompt and what the model adds to it."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        network = cast(Decoder, task.network).eval()
        prompt = torch.tensor([tokenizer.encode(self.prompt)], device=task.device)
        count = min(self.tokens, max(task.length - prompt.shape[1], 1))
        new = [int(ids) for ids in stream(network, prompt, count, seed=0, end=tokenizer.end)]
        return self.prompt + tokenizer.decode([i for i in new if i != tokenizer.end])


def divided(task: Task) -> bool:
    """Whether each process holds a share of the weights (ZeRO's stage 3, FSDP)."""
    return any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in task.parameters())


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


def card(about: dict[str, Any], figures: dict[str, float], task: Task, trainer: Trainer) -> str:
    """The README of a published folder."""
    network = about["network"]["init_args"]
    size = sum(parameter.numel() for parameter in cast(torch.nn.Module, task.network).parameters())
    data = getattr(getattr(trainer, "datamodule", None), "summary", "")
    use = 'zoo generate PATH --prompt "def "' if "length" in network else "zoo fit --model.weights PATH"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    trained, kind = about["trained"], about["network"]["class_path"].rpartition(".")[2]
    chain = (about.get("extended") or {}).get("chain") or []
    further = f", extended to {short(chain[-1]['to'])} by {chain[-1]['method']}" if chain else ""
    return f"""# A zoo checkpoint: {kind} with {network["position"]["class_path"]}{further}

{size / 1e6:.2f} M parameters, trained for {trained["steps"]} steps with zoo {about["zoo"]}
(torch {torch.__version__.partition("+")[0]}, Python {platform.python_version()}, on {task.device.type.upper()}).
{data}

| measured at the end of training | |
|---|---|
{rows}

`config.yaml` says what the model is and how it was trained, `model.safetensors` holds its weights. To use it:
`{use}`
"""
