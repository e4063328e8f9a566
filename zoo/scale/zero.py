"""ZeRO by DeepSpeed, on GPUs and, to rehearse a run before it is paid for, on CPU processes over gloo.

Lightning's strategy does the work. What differs, and why:

- Weights stay float32, and bf16-mixed is autocast as everywhere in zoo. Lightning would have DeepSpeed cast the model,
  position encodings included.
- Every process builds the whole model on its host and gives its share away afterwards. Under `zero.Init` weights are
  drawn in pieces and in bfloat16, and those that a model sets after its layers were made are lost. So a run starts from
  the weights that one process would start from, at the price of 4 bytes a parameter on the host for each process.
- A checkpoint is whole or absent: each save has a folder of its own, and the file `latest` names it once all processes
  have written theirs. A process that is killed while it saves leaves the save before usable.
- A run continues on another number of processes: see `reshape`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.optim import AdamW, Optimizer

from zoo.checkpoints import zero
from zoo.errors import ZooError
from zoo.scale.quirks import dropping, hold, mend, refill, universal, vectors, weights_only_loads
from zoo.scale.rendezvous import meet

KEPT_BY_DEEPSPEED = ("state_dict", "optimizer_states")
"""Parts of Lightning's checkpoint that DeepSpeed writes itself, in pieces."""


class Float32(DeepSpeedPrecision):
    """Weights and inputs as they are: where bfloat16 is wanted, autocast chooses it operation by operation."""

    def convert_input(self, data: Any) -> Any:
        return data

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        engine = model.trainer.model
        # DeepSpeed counts batches on through epochs and, after a resume, from 0; the trainer says when a step is due.
        engine.set_gradient_accumulation_boundary(not model.trainer.fit_loop._should_accumulate())
        closure()
        self._after_closure(model, optimizer)
        with dropping(engine.optimizer) if model.skipping else nullcontext():
            return engine.step(**kwargs)


class ZeRO(DeepSpeedStrategy):
    """The states of training, divided among processes (Rajbhandari et al. 2019, arXiv:1910.02054).

    On a CPU each process stands for a GPU. Needs the extra `deepspeed`.

    Raises ZooError without DeepSpeed, for a precision other than 32-true and bf16-mixed, and for what stage and
    feature exclude.

    Args:
        stage: What is divided: 1, Adam's moments and the float32 weights; 2, gradients too; 3, the weights themselves.
        offload: What is kept in the host's memory: nothing, the optimizer's part, or the weights too (stage 3).
        bucket: Numbers that are sent at once.
        patience: Seconds that the processes wait for each other at the start.
        timeout: Seconds after which a process that does not answer is given up.
        config: Further settings of DeepSpeed, by the names of its JSON file; they win.
    """

    drops = True
    """Gradients are out of others' reach: a step that is to be skipped is dropped here."""

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload: Literal["none", "optimizer", "weights"] = "none",
        bucket: int = 50_000_000,
        patience: float = 600,
        timeout: float = 1800,
        config: dict[str, Any] | None = None,
    ) -> None:
        if find_spec("deepspeed") is None:
            raise ZooError("ZeRO is DeepSpeed's, which is not installed.   Try:  pip install 'positionzoo[deepspeed]'")
        if offload == "weights" and stage != 3:
            raise ZooError(f"Weights leave the device at stage 3 only, and this is stage {stage}.   Try:  stage 3")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        zero_optimization: dict[str, Any] = {
            "stage": stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
        if offload != "none":
            zero_optimization["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if offload == "weights":
            zero_optimization["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        given: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # of which only DeepSpeed's own log makes something
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero_optimization,
        }
        self.stage, self.offload, self.patience = stage, offload, patience
        super().__init__(config=merged(given, config or {}), timeout=timedelta(seconds=timeout))

    # Set-up.

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        name = getattr(plugin, "precision", "32-true")
        if plugin is not None and name not in ("32-true", "bf16-mixed"):
            raise ZooError(
                f"ZeRO trains in 32-true or bf16-mixed, and --trainer.precision is {name}: weights stay float32, and "
                "position encodings with them.   Try:  --trainer.precision bf16-mixed"
            )
        self._precision_plugin = Float32("bf16-mixed" if name == "bf16-mixed" else "32-true") if plugin else None

    @property
    def cpu(self) -> bool:
        """Whether this is a rehearsal on CPU processes."""
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank) if self.cpu else super().root_device

    def setup_environment(self) -> None:
        self.set_world_ranks()
        held = meet(cast(ClusterEnvironment, self.cluster_environment), self.patience)
        if self.cpu:
            import deepspeed
            from deepspeed.accelerator import set_accelerator
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

            set_accelerator(CPU_Accelerator())
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile for minutes; gloo will do
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()
        del held

    def setup_distributed(self) -> None:
        if not self.cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def model_sharded_context(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    def _format_config(self) -> None:
        precise = self.precision_plugin.precision
        assert isinstance(self.config, dict)
        self.config["torch_autocast"] = {"enabled": precise == "bf16-mixed", "dtype": "bfloat16"}
        self.config["bf16"] = {"enabled": False}  # Lightning leaves a section alone that is there
        super()._format_config()

    def setup(self, trainer: Trainer) -> None:
        task: Any = self.lightning_module
        if getattr(task, "compiled", False) and self.stage == 3:
            raise ZooError(
                "torch.compile and ZeRO's stage 3 exclude each other: weights come and go in hooks that a compiled "
                "model does not call.   Try:  --model.compile false, or stage 2"
            )
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise ZooError(
                "DeepSpeed clips a gradient by its norm, and --trainer.gradient_clip_algorithm is value.   "
                "Try:  --trainer.gradient_clip_algorithm norm"
            )
        super().setup(trainer)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> Any:
        if self.offload != "none" and type(optimizer) is AdamW and not self.cpu:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            # The same arithmetic by vector instructions on the host. It takes the groups themselves, so that what the
            # schedule writes into them arrives.
            optimizer = DeepSpeedCPUAdam(optimizer.param_groups, adamw_mode=True)
            rank_zero_only(print)("zoo: DeepSpeedCPUAdam takes AdamW's place where the optimizer is offloaded")
        with vectors(model):
            engine, optimizer = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        if self.stage == 3:
            hold(engine)
        return engine, optimizer

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        with vectors(model):
            super()._initialize_deepspeed_inference(model)
        if self.stage == 3:
            hold(self.deepspeed_engine)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """DeepSpeed adds gradients up by itself, and at the end of an epoch steps with what there is, as others do."""
        trainer = cast(LightningModule, self.lightning_module).trainer
        return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()

    # Saving.

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a save of its own, then name it: at no moment is the last whole one gone."""
        place = Path(self.broadcast(str(filepath)))
        aside = place.with_name(f".{place.name}.part")
        if self.is_global_zero and place.is_file():  # that a run without ZeRO has left
            place.replace(aside)
        tag = self.broadcast(fresh(place, checkpoint.get("global_step", 0)) if self.is_global_zero else "")
        own = {key: value for key, value in checkpoint.items() if key not in KEPT_BY_DEEPSPEED}
        self.deepspeed_engine.save_checkpoint(str(place), client_state=own, tag=tag, save_latest=False)
        self.barrier()  # all have written
        if self.is_global_zero:
            commit(place, tag)
            aside.unlink(missing_ok=True)
        self.barrier()

    # Loading.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """What is only measured has its weights before they are divided."""
        return cast(LightningModule, self.lightning_module).trainer.state.fn == TrainerFn.FITTING

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        place, fitting = Path(checkpoint_path), self.lightning_module.trainer.state.fn == TrainerFn.FITTING  # type: ignore[union-attr]
        if not (place.is_dir() and zero.holds(place)):
            if fitting:
                raise ZooError(
                    f"{place} is not what a ZeRO run left, so a ZeRO run cannot continue it.   "
                    f"Try:  --model.weights {place}, or leave the overlay out"
                )
            return super(DDPStrategy, self).load_checkpoint(place, weights_only)
        zero.checked(place)  # DeepSpeed opens the files without looking
        if not fitting:
            return zero.content(place)
        stage, processes = zero.cut_by(place)
        if stage != self.stage:
            raise ZooError(
                f"{place} was written at stage {stage}, and a run at stage {self.stage} cannot continue it.   "
                f"Try:  stage {stage}, or --model.weights {place}"
            )
        return self.restore(place) if processes == self.world_size else self.reshape(place, processes)

    def restore(self, place: Path) -> dict[str, Any]:
        """Have DeepSpeed take up a save; what the run said of itself."""
        with weights_only_loads():
            told = self.deepspeed_engine.load_checkpoint(
                str(place), tag=zero.step(place).name, load_lr_scheduler_states=False
            )[1]
        if told is None:
            raise ZooError(f"DeepSpeed could not load {place}.")
        return told

    def reshape(self, place: Path, processes: int) -> dict[str, Any]:
        """Take up what another number of processes saved, by DeepSpeed's universal format, written for the occasion.

        Every weight and moment is put together in a file of its own, of which each process reads its share.
        """
        tag = zero.step(place).name
        whole = Path(self.broadcast(str(place.with_name(f".{place.name}.{os.getpid()}.part"))))
        try:
            why = ""
            if self.is_global_zero:
                print(
                    f"zoo: {place} is of {processes} processes; it is cut anew for {self.world_size}", file=sys.stderr
                )
                why = universal(place / tag, whole / tag)
            if why := self.broadcast(why):
                raise ZooError(f"{place} could not be cut anew: {why}")
            config = self.deepspeed_engine._config
            config.load_universal_checkpoint = True
            try:
                told = self.restore(whole)
            finally:
                config.load_universal_checkpoint = False
            mend(self.deepspeed_engine.optimizer.optimizer, place)
            refill(self.deepspeed_engine.module, place, self.stage)
            if self.stage == 3:
                hold(self.deepspeed_engine)
            return told
        finally:
            self.barrier()
            if self.is_global_zero:
                shutil.rmtree(whole, ignore_errors=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        if "state_dict" not in checkpoint:
            return  # DeepSpeed has loaded the weights with the rest
        cast(LightningModule, self.lightning_module).load_state_dict(checkpoint["state_dict"], strict=strict)


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both say something, the second wins."""
    both = dict(ours)
    for key, value in theirs.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def fresh(place: Path, step: int) -> str:
    """A name for a save that nothing has yet: what an unfinished one left must not be taken for a part of it."""
    names = (f"step{step}" + (f"-{number}" if number else "") for number in range(1_000_000))
    return next(name for name in names if not (place / name).exists())


def commit(place: Path, tag: str) -> None:
    """Make a save the one that is read, and remove those before."""
    for file in (place / tag).iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    beside = place / ".latest.part"
    beside.write_text(tag)
    os.replace(beside, place / "latest")
    for other in place.iterdir():
        if other.is_dir() and other.name != tag:
            shutil.rmtree(other, ignore_errors=True)
