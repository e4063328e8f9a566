"""Lightning's weight averaging, made to fit zoo's networks, checkpoints and release.

`WeightAveraging` (and `EMAWeightAveraging`) keeps a second model, the average. In a checkpoint the average is
`state_dict`, which all commands read, and the weights that are trained are `current_model_state`, from which a run goes
on. What differs from Lightning here, and why:

- The network is trained on to its very end with its own weights. Lightning overwrites them with the average when
  training ends, so that the last checkpoint would have lost them. `Release` publishes the average nevertheless.
- Buffers are copied, not averaged: those of encodings are exact constants, of which an average in floating point is
  another number, and of an integer it may be the next lower one.
- Before its first update an average is the model of the start, which no checkpoint should hold in the place of weights
  that have been trained: until then it is the trained weights.
- `StochasticWeightAveraging` copies a module before zoo has built its network, and would average nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer import call

from zoo.errors import ZooError
from zoo.task import Task

Averages = (WeightAveraging, StochasticWeightAveraging)


class Averaging(Callback):
    """Prepares the weight averaging of a run, where it has one; first of all callbacks."""

    @staticmethod
    def order(callbacks: Sequence[Callback]) -> list[Callback]:
        """The callbacks with those that average last, so that what the others measure in a validation is the average.

        They restore the trained weights at the end of a validation.
        """
        return sorted(callbacks, key=lambda callback: isinstance(callback, Averages))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks = [callback for callback in list_callbacks(trainer) if isinstance(callback, Averages)]
        if stage != "fit" or not callbacks:
            return
        name = type(callbacks[0]).__name__
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise ZooError(
                f"{name} keeps a second model, and {type(trainer.strategy).__name__} gives each process but a share of "
                "the first.   Try:  --trainer.strategy zoo.scale.DDP, or leave the callback out"
            )
        if len(callbacks) > 1:
            raise ZooError("Two callbacks average the weights, and a checkpoint has place for one average. Leave one.")
        call._call_configure_model(trainer)  # as Lightning will, on the run's device and in its precision
        if isinstance(callback := callbacks[0], WeightAveraging):
            callback._use_buffers = False
            setattr(callback, "_copy_average_to_current", lambda module: None)  # noqa: B010 - of this one callback

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in list_callbacks(trainer):
            if isinstance(callback, StochasticWeightAveraging) and callback.n_averaged:
                last = trainer.current_epoch - 1 == callback.swa_end
                if last or callback._max_epochs == -1:  # the callback writes the average into the model next
                    cast(Task, pl_module).averaged = describe_average(callback, int(callback.n_averaged))


def list_callbacks(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer."""
    return cast(Any, trainer).callbacks


def find_average(trainer: Trainer) -> WeightAveraging | None:
    """The callback that keeps an average which has been updated at least once, if the run has one."""
    for callback in list_callbacks(trainer):
        if isinstance(callback, WeightAveraging) and (model := callback._average_model) is not None:
            return callback if int(model.n_averaged) else None
    return None


def describe_average(callback: Callback, updates: int) -> dict[str, Any]:
    """What a checkpoint says of the average that its weights are."""
    return {"by": type(callback).__name__, "updates": updates}


@contextmanager
def use_average(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Give the module the averaged weights, where the run averages, and its own back afterwards."""
    callback = find_average(trainer)
    if callback is None:
        yield
        return
    callback._swap_models(module)
    cast(Task, module).averaged = describe_average(callback, int(cast(Any, callback._average_model).n_averaged))
    try:
        yield
    finally:
        callback._swap_models(module)
        cast(Task, module).averaged = None
