"""What a task is: a network that is built when the data are known, optimized, saved and resumed.

What a recipe leaves open (vocabulary, classes, image size) comes from the data and is then written into the checkpoint.
Optimizer and schedule are injected. A checkpoint also holds the states of every process's random generators, so that a
resumed run repeats the dropout of an uninterrupted one.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import zoo
from zoo import checkpoints
from zoo.adapter import Adapter
from zoo.checkpoints import adapted
from zoo.checkpoints.stored import Stored
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.position import Exact
from zoo.schedules import Schedule
from zoo.trunk import Trunk


class UnknownError(ZooError):
    """Something that the data will tell has not been told yet."""


class Task(LightningModule):
    """What the tasks share: building the network, optimizing it, saving what it is.

    Args:
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings, encodings, kernels.
        schedule: Factor on the learning rate over the steps (default: constant).
        weights: Checkpoint whose weights the run starts from, with a fresh optimizer at step 0.
        compile: Run the network under torch.compile.
        adapter: What is trained in the place of all weights (default: all weights).
    """

    network: nn.Module | None

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        compile: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule, self.weights = optimizer, schedule, weights
        self.compiled, self.adapter = compile, adapter
        self.network = None
        self.about: dict[str, Any] = {}
        self.asked: dict[str, Any] | None = None
        """The model and data sections of recipe and flags, where there were any; kept in the checkpoint."""
        self.generators: list[dict[str, Any]] = []
        """States of the random generators to go on from, one a process."""
        self.skipping = False
        """Whether the step in progress is no number on some process: no optimizer is to use its gradients."""
        self.averaged: dict[str, Any] | None = None
        """By what the weights are averages, and of how many updates, while they are."""
        self.loaded_steps = 0
        """Steps that the continued run had made."""
        self.origin: dict[str, Any] = {}
        """Where the weights come from: the checkpoint that they started as, and what that had been extended from."""

    # What a subclass says.

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network, and the arguments that it was built from."""
        raise NotImplementedError

    def flops(self) -> int:
        """Floating-point operations of forward and backward for one token (or image)."""
        raise NotImplementedError

    # Building.

    def rehearse(self, processes: int = 1) -> None:
        """Build the network without memory or data, so that a mistake in its numbers is told before anything long.

        Args:
            processes: That the run will have.
        """
        try:
            with torch.device("meta"):
                network, _ = self.build()
                if self.adapter is not None:
                    self.adapter.inject(cast(Decoder, network))
        except (UnknownError, NotImplementedError, RuntimeError):
            return  # the data will tell, or a plugin cannot be built without memory

    @property
    def trunk(self) -> Trunk:
        """The part of the network that has the slots."""
        return cast(Trunk, cast(nn.Module, self.network).trunk)

    def known(self, name: str, given: Any) -> Any:
        """`given`, or what the data say where a recipe leaves it open."""
        if given is not None:
            return given
        source = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        value = getattr(source, name, None)
        if value is None:
            raise UnknownError(f"{type(self).__name__} needs `{name}`: set it, or train on data that tell it.")
        return value

    def configure_model(self) -> None:
        if self.network is not None:
            return
        network, arguments = self.build()
        self.network = network
        slots = {
            name: checkpoints.describe(getattr(self.trunk, name), arguments.get(name), group)
            for name, group in checkpoints.SLOTS.items()
        }
        node = {
            "class_path": f"{type(network).__module__}.{type(network).__qualname__}",
            "init_args": {**arguments, **slots},
        }
        self.about = {
            "format": checkpoints.FORMAT,
            "zoo": zoo.__version__,
            "task": type(self).__name__,
            "network": node,
            "plugins": checkpoints.owners(node),
        }
        if self.weights is not None:
            source = checkpoints.read(self.weights)
            checkpoints.fill(network, source.weights, self.weights)
            self.origin = {"parent": str(self.weights), **kept(source.about, node)}
        if self.adapter is not None:
            self.adapter.inject(cast(Decoder, network))
        if self.compiled:
            self.trunk.compile()  # what every step calls; the network's own forward is for people

    def verify(self) -> None:
        """Ask the kernel again, now that device and precision are known, before the first batch."""
        kind = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
        precision = str(self.trainer.precision).split("-")[0]
        self.trunk.check(
            device=self.device.type,
            dtype=kind.get(precision, torch.float32),
            training=self.trainer.training,
            mask=self.masks(),
            extent=self.extent(),
        )

    def masks(self) -> frozenset[str]:
        """Names of the mask's conditions."""
        return frozenset()

    def extent(self) -> int:
        """Tokens of one example."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        self.verify()
        every, passes = self.trainer.val_check_interval, self.trainer.accumulate_grad_batches
        if isinstance(every, int) and every % passes:
            rank_zero_only(print)(
                f"zoo: a validation every {every} batches falls between those of a step, which has {passes}. A run "
                "that goes on from there begins that step anew, and so is not the uninterrupted one.   "
                f"Try:  --trainer.val_check_interval {-(-every // passes) * passes}",
                file=sys.stderr,
            )

    def made_steps(self) -> bool:
        """Whether this run has made a step; raises ZooError where steps were asked for and none could be made."""
        trainer = cast(Any, self.trainer)
        if trainer.global_step > self.loaded_steps:
            return True
        steps, epochs = trainer.global_step, trainer.fit_loop.epoch_progress.current.processed
        if 0 <= trainer.max_steps <= steps or 0 <= (-1 if trainer.max_epochs is None else trainer.max_epochs) <= epochs:
            return False  # none was asked for, or all have been made before
        batch, limit = getattr(getattr(trainer, "datamodule", None), "batch", None), trainer.limit_train_batches
        raise ZooError(
            "No step was made: an epoch of this run has no batch"
            + (f" of {batch}" if batch is not None else "")
            + (f", as limit_train_batches is {limit}" if limit != 1.0 else "")
            + ". Nothing was saved.   Try:  a smaller --data.batch, more data, or --trainer.limit_train_batches 1.0"
        )

    def on_fit_end(self) -> None:
        self.made_steps()

    def check_weights(self, *others: Tensor) -> None:
        """Raise ZooError, on all processes together, where a weight or a moment of the optimizer is no number.

        Args:
            *others: Further tensors of the checkpoint.
        """
        wrong = torch.zeros(2, device=self.device)
        wrong[0] = not are_finite([*map(find_local, self.parameters()), *others], self.buffers())
        wrong[1] = not are_finite(list_moments(self.trainer.optimizers))
        wrong = self.trainer.strategy.reduce(wrong, reduce_op="sum")
        if not bool(wrong.any()):
            return
        what = "weights are not finite" if wrong[0] > 0 else "moments of the optimizer are not finite"
        half = str(self.trainer.precision) == "16-true"
        cure = (
            "--model.optimizer.eps 1e-4 (a smaller one is 0 in float16), --trainer.precision bf16-true, or "
            "--trainer.precision 16-mixed"
            if half
            else "a smaller learning rate, or --trainer.gradient_clip_val 1"
        )
        raise ZooError(
            f"The {what} after step {self.trainer.global_step}, so they are not saved or published. What was saved "
            f"before is untouched.   Try:  {cure}"
        )

    def finite(self, loss: Tensor) -> None:
        """Stop with a sentence where a loss is no number and its step was not skipped: nothing after it would be."""
        if not self.skipping and not bool(loss.isfinite()):
            raise ZooError(
                f"The loss is {float(loss)} at step {self.trainer.global_step}. Nothing was saved since the last "
                "checkpoint.   Try:  a smaller learning rate, or --trainer.gradient_clip_val 1"
            )

    def on_validation_start(self) -> None:
        if not self.trainer.training:
            self.verify()

    def on_test_start(self) -> None:
        self.verify()

    # Optimizing.

    def groups(self) -> list[dict[str, Any]]:
        """Parameters in two groups: matrices, which decay, and all others, which do not."""
        spared = {id(getattr(self.network, "prefix", None))}  # class and register tokens are embeddings too
        for module in self.modules():
            if isinstance(module, Exact | nn.Embedding):
                spared |= {id(parameter) for parameter in module.parameters()}
        wanted = [p for p in self.parameters() if p.requires_grad]
        decays = [p for p in wanted if p.ndim >= 2 and id(p) not in spared]
        rest = [p for p in wanted if p.ndim < 2 or id(p) in spared]
        groups: list[dict[str, Any]] = [{"params": decays}, {"params": rest, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer(cast(Iterable[nn.Parameter], self.groups()))
        except (ValueError, TypeError) as error:
            raise ZooError(f"The optimizer does not take its settings: {error}.") from None
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            # A fused optimizer can divide by a scale, for which Lightning refuses to clip beside it, scale or none.
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ZooError(
                f"The schedule {type(self.schedule).__name__} spreads over all steps, and how many there will be is "
                "not known (a stream has no length).   Try:  --trainer.max_steps N"
            )
        schedule, total = self.schedule, int(steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Saving and resuming.

    def description(self) -> dict[str, Any]:
        """What a checkpoint of this moment says of itself."""
        # Whole passes, counted from the steps: Lightning's own number depends on whether the run was stopped between
        # its last step and the end of that epoch.
        steps, batches = self.trainer.global_step, self.trainer.num_training_batches
        each = max(1, math.ceil(batches / self.trainer.accumulate_grad_batches)) if math.isfinite(batches) else None
        averaged = {"averaged": self.averaged} if self.averaged is not None else {}
        trained = {"steps": steps, "epochs": steps // each if each else 0, **averaged, **self.manner()}
        about = {**self.about, **self.origin, "asked": self.asked, "trained": trained}
        if "extended" in about:
            about["extended"] = tuned(about["extended"], **self.tuning())
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is not None and not isinstance(tokenizer, str):
            about["tokenizer"] = tokenizer.describe()
        digest = getattr(getattr(self.trainer, "datamodule", None), "digest", None)
        if isinstance(digest, str):  # so that a measurement knows whether what it takes for held out is
            about["corpus"] = digest
        identity = getattr(getattr(self.trainer, "datamodule", None), "identity", None)
        if isinstance(identity, Mapping):  # with which the data of a run that continues are compared
            about["data_identity"] = dict(identity)
        return about

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """All processes come here, whichever of them writes."""
        self.check_weights(*(checkpoint["state_dict"].values() if "current_model_state" in checkpoint else ()))
        checkpoint["zoo"] = self.description()
        if "current_model_state" in checkpoint:  # by Lightning's WeightAveraging, which has put its average beside it
            updates = int(checkpoint["averaging_state"]["n_averaged"])
            if updates:
                checkpoint["zoo"]["trained"]["averaged"] = {"by": find_averager(self.trainer), "updates": updates}
            else:  # still the weights of the start
                checkpoint["state_dict"] = checkpoint["current_model_state"]
        checkpoint["generators"] = gathered(drawn(self.device), self.trainer.world_size)

    def tuning(self) -> dict[str, Any]:
        """How an extended model is trained further, in words and numbers for its description."""
        return {"steps": self.trainer.global_step, **self.manner()}

    def manner(self) -> dict[str, Any]:
        """What was trained, where that is not all of the network."""
        return {"adapter": self.adapter.described()} if self.adapter is not None else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("generators") or []
        self.generators = [states] if isinstance(states, dict) else states  # one for all, in older checkpoints
        about = checkpoint.get("zoo", {})  # its parent may be gone by now
        if self.adapter is None and adapted.apart(checkpoint.get("state_dict", {})):  # what is only measured
            stored = {name: Stored.of(weight) for name, weight in checkpoint["state_dict"].items()}
            whole = adapted.summed(stored, about, "the checkpoint")
            checkpoint["state_dict"] = {name: each.tensor() for name, each in whole.items()}
        self.loaded_steps = checkpoint.get("global_step", 0)
        raw, fitting = (
            checkpoint.get("current_model_state"),
            self._trainer is not None and self._trainer.state.fn == "fit",
        )
        if raw is not None and fitting and not find_averager(self.trainer):
            by = ((about.get("trained") or {}).get("averaged") or {}).get("by", "a callback")
            rank_zero_only(print)(
                f"zoo: the checkpoint holds weights that {by} has averaged, and this run has no such callback: it goes "
                "on from the weights that were trained, and does not average them.   "
                f"To go on averaging:  --trainer.callbacks+={by}",
                file=sys.stderr,
            )
            checkpoint["state_dict"] = raw
        self.origin = {key: about[key] for key in ("parent", "extended") if key in about}
        if "extended" in about:
            *before, last = about["extended"]["chain"]
            last = {**last, "tuned": last.get("tuned", [])[:-1]}  # the last of them is the run that goes on
            self.origin["extended"] = {**about["extended"], "chain": [*before, last]}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.skipping = False
        if not self.generators:
            return
        # Only now: set-up and sanity checks have drawn what an uninterrupted run did not.
        then, now = len(self.generators), self.trainer.world_size
        if then != now and self.draws():
            rank_zero_only(print)(
                f"zoo: {then} random generators go on in {now} process{'es' * (now > 1)}: from here on other channels "
                "are dropped, or other positions drawn, than without the interruption.",
                file=sys.stderr,
            )
        restore(self.generators[self.trainer.global_rank % then], self.device)
        self.generators = []

    def draws(self) -> bool:
        """Whether a training step draws random numbers."""
        return any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())


def find_averager(trainer: Any) -> str:
    """The name of Lightning's callback that averages weights in a run; empty where there is none."""
    return next((type(each).__name__ for each in trainer.callbacks if isinstance(each, WeightAveraging)), "")


def find_local(weight: Tensor) -> Tensor:
    """The part of a weight that this process has, under FSDP and ZeRO's stage 3."""
    weight = getattr(weight, "ds_tensor", weight)
    return weight.to_local() if isinstance(weight, DTensor) else weight


def are_finite(weights: Iterable[Tensor], buffers: Iterable[Tensor] = ()) -> bool:
    """Whether no weight is infinite or no number, and no buffer is no number (a mask may well be infinite)."""
    bad = [~each.detach().isfinite().all() for each in weights if each.is_floating_point() and each.numel()]
    bad += [each.detach().isnan().any() for each in buffers if each.is_floating_point() and each.numel()]
    device = bad[0].device if bad else torch.device("cpu")
    return not bad or not bool(torch.stack([each.to(device) for each in bad]).any())


def list_moments(optimizers: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that optimizers keep beside weights, as far as this process has them; counters are left out."""
    for optimizer in optimizers:
        state = getattr(optimizer, "state", None) or getattr(getattr(optimizer, "optimizer", None), "state", {})
        for kept in state.values():
            for value in kept.values() if isinstance(kept, Mapping) else ():
                if isinstance(value, Tensor) and value.ndim:
                    yield find_local(value)


def drawn(device: torch.device) -> dict[str, Any]:
    """States of this process's random generators."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def restore(states: Mapping[str, Any], device: torch.device) -> None:
    """Have this process's random generators go on from there."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and device.type == "cuda":
        # Older checkpoints have the states of all devices of the first process.
        torch.cuda.set_rng_state(states["cuda"][(device.index or 0) % len(states["cuda"])].cpu(), device)
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))


def gathered(mine: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """What every process has, in their order."""
    if world == 1 or not torch.distributed.is_initialized():
        return [mine]
    every: list[dict[str, Any]] = [{} for _ in range(world)]
    torch.distributed.all_gather_object(every, mine)
    return every


def kept(about: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint that has been extended says of that, where a network of this description still is so."""
    there, here = about["network"]["init_args"], node["init_args"]
    extended = about.get("extended")
    same = extended and (there.get("length"), there.get("reach")) == (here.get("length"), here.get("reach"))
    return {"extended": extended} if same else {}


def tuned(extended: Mapping[str, Any], **how: Any) -> dict[str, Any]:
    """The provenance of an extended model with one more run that trained it: each link lists those that followed."""
    *before, last = extended["chain"]
    return {**extended, "chain": [*before, {**last, "tuned": [*last.get("tuned", []), how]}]}
