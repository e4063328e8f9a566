"""What a run leaves when it ends: a folder to publish, with its card, and a sample of what the model writes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.tensor import DTensor

from zoo import checkpoints
from zoo.callbacks.averaging import use_average
from zoo.checkpoints import adapted, folder
from zoo.checkpoints.stored import Stored
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.generate import stream
from zoo.lengths import short
from zoo.task import Task
from zoo.tasks import LanguageModel


class Release(Callback):
    """Leaves `model/` beside the logs when a run ends: config, safetensors, tokenizer and card, ready to publish.

    A language model also shows a sample of what it writes.

    Args:
        prompt: What the sample starts from.
        tokens: Tokens of the sample; 0 for none.
        publish: Whether anything is left; otherwise only the last weights are looked at.
    """

    def __init__(self, prompt: str = "def ", tokens: int = 100, publish: bool = True) -> None:
        self.prompt, self.tokens, self.publish = prompt, tokens, publish
        self.folder = ""
        """Where the run has published its model; empty before."""
        self.interrupted = False
        """Whether the run that is continued had ended before it could publish."""

    def state_dict(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = state_dict.get("folder")
        self.interrupted = not folder or not Path(folder).is_dir()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cast(Task, pl_module).check_weights()
        if "train/loss" in trainer.callback_metrics:
            cast(Task, pl_module).finite(trainer.callback_metrics["train/loss"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keeper, task = trainer.checkpoint_callback, cast(Task, pl_module)
        if not task.made_steps() and not self.is_left_unpublished(trainer):
            rank_zero_only(print)(
                f"zoo: no step was left to make: {trainer.global_step} are done, and --trainer.max_steps is "
                f"{trainer.max_steps}, --trainer.max_epochs {trainer.max_epochs}. Nothing was saved or published.",
                file=sys.stderr,
            )
            return
        if getattr(trainer, "fast_dev_run", False):
            return
        task.check_weights()
        if not self.publish:
            return
        place = trainer.log_dir  # which all processes ask each other for
        self.folder = str((Path(place) / "model").absolute()) if place else ""
        if isinstance(keeper, ModelCheckpoint) and keeper.dirpath:
            # The last step is kept even where no validation fell on it.
            with keep_epoch_open(trainer):
                trainer.save_checkpoint(Path(keeper.dirpath) / "last.ckpt", weights_only=False)
        with use_average(trainer, pl_module):
            task.check_weights()
            self.release(trainer, pl_module, place)

    def is_left_unpublished(self, trainer: Trainer) -> bool:
        """Whether all steps had been made when the run was stopped, and only the model is still to be published."""
        epochs = cast(Any, trainer).fit_loop.epoch_progress.current.processed
        ended = trainer.global_step > 0 and (trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs)
        return bool(trainer.strategy.broadcast(ended and self.interrupted))

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
        about = task.description()
        path = Path(place) / "model"
        figures = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(("val", "train"))
        }
        state: dict[str, Any] = cast(torch.nn.Module, task.network).state_dict()
        if adapted.apart(state):
            stored = {name: Stored.of(weight) for name, weight in state.items()}
            state = {name: state.get(name, each) for name, each in adapted.summed(stored, about, path).items()}
        folder.write(path, about, state, card(about, figures, task, trainer))
        lines = [f"{name} {value:.4g}" for name, value in figures.items()]
        lines += [averaged] if (averaged := checkpoints.describe_averaging(about)) else []
        print(f"\n{', '.join(lines)}\n")
        following = f"zoo test --ckpt_path {saved}"
        if isinstance(task, LanguageModel):
            prompt = self.shorten_prompt(task, trainer)
            following = f"zoo generate {path} --prompt {prompt!r}"
            if self.tokens and prompt:
                try:
                    print(f"A sample, from {prompt!r} on:\n\n{self.sample(task, trainer)}\n")
                except ZooError as error:  # everything is written: a model that cannot read on is no failed run
                    print(f"No sample: {error}\n")
        print(f"Checkpoint: {saved or 'none'}\nTo publish: {path}\nNext:       {following}")

    def shorten_prompt(self, task: LanguageModel, trainer: Trainer) -> str:
        """The beginning of the prompt that a model of this length can read, with room for one token more."""
        tokenizer, prompt = trainer.datamodule.tokenizer, self.prompt  # type: ignore[attr-defined]
        most = max(1, cast(Decoder, task.network).reach - 1)
        while prompt and len(tokenizer.encode(prompt)) > most:
            prompt = prompt[:-1]
        return prompt

    def sample(self, task: LanguageModel, trainer: Trainer) -> str:
        """The prompt and what the model adds to it."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        network = cast(Decoder, task.network).eval()
        device = network.embedding.weight.device  # not always that of the run
        prompted = self.shorten_prompt(task, trainer)
        ids = tokenizer.encode(prompted)
        prompt = torch.tensor([ids], device=device)
        count = min(self.tokens, max(task.length - prompt.shape[1], 1))
        with torch.compiler.set_stance("force_eager"):  # a graph for each length would take longer than the sample
            new = [int(step) for step in stream(network, prompt, count, seed=0, end=tokenizer.end)]
        return prompted + tokenizer.decode_continuation(ids, [number for number in new if number != tokenizer.end])


@contextmanager
def keep_epoch_open(trainer: Trainer) -> Iterator[None]:
    """Count an epoch that `max_steps` has cut short as one in progress, which a run with more steps goes on with.

    Lightning counts it as a whole one, and would begin the next, with other batches than those of a run that was not
    cut.
    """
    loop = cast(Any, trainer).fit_loop
    counters = loop.epoch_progress.total, loop.epoch_progress.current
    cut = not loop.epoch_loop._num_ready_batches_reached() and counters[1].completed == counters[1].started > 0
    before = [(counter, counter.processed, counter.completed) for counter in counters] if cut else []
    for counter, processed, completed in before:
        counter.processed, counter.completed = processed - 1, completed - 1
    try:
        yield
    finally:
        for counter, processed, completed in before:
            counter.processed, counter.completed = processed, completed


def divided(task: Task) -> bool:
    """Whether each process holds a share of the weights (ZeRO's stage 3, FSDP)."""
    return any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in task.parameters())


def card(about: dict[str, Any], figures: dict[str, float], task: Task, trainer: Trainer) -> str:
    """The README of a published folder."""
    network = about["network"]["init_args"]
    size = sum(parameter.numel() for parameter in cast(torch.nn.Module, task.network).parameters())
    data = getattr(getattr(trainer, "datamodule", None), "summary", "")
    use = 'zoo generate PATH --prompt "def "' if "length" in network else "zoo fit --model.weights PATH"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    trained, kind = about["trained"], about["network"]["class_path"].rpartition(".")[2]
    adapter = f" by {trained['adapter']['method']}" if "adapter" in trained else ""
    chain = (about.get("extended") or {}).get("chain") or []
    if averaged := checkpoints.describe_averaging(about):
        adapter += f", {averaged},"
    further = f", extended to {short(chain[-1]['to'])} by {chain[-1]['method']}" if chain else ""
    return f"""# A zoo checkpoint: {kind} with {network["position"]["class_path"]}{further}

{size / 1e6:.2f} M parameters, trained for {trained["steps"]} steps{adapter} with zoo {about["zoo"]}
(torch {torch.__version__.partition("+")[0]}, Python {platform.python_version()}, on {task.device.type.upper()}).
{data}

| measured at the end of training | |
|---|---|
{rows}

`config.yaml` says what the model is and how it was trained, `model.safetensors` holds its weights. To use it:
`{use}`
"""
