"""Where DeepSpeed 0.19 has to be helped: steps to drop, single numbers, plugins, another number of processes.

Each is a few lines around one of its methods. All of them were found by runs that failed or, worse, ran on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.checkpoints import zero
from zoo.kernel import Kernel
from zoo.position import PositionEncoding


@contextmanager
def dropping(optimizer: Any) -> Iterator[None]:
    """Have DeepSpeed's step do what it does where a float16 gradient has overflowed: drop it, and change nothing."""

    def found(partition_gradients: bool = True) -> None:
        optimizer.overflow = True

    def cleared(update_scale: bool = True) -> bool:
        optimizer.overflow = True
        optimizer._overflow_clean_up(optimizer.loss_scale)
        if kept := optimizer.persistent_parameters:  # which have just been let go, and are gathered after a real step
            kept[0].all_gather(kept)
        return True

    looks = getattr(optimizer, "check_grad_overflow", None)
    optimizer.check_grad_overflow, optimizer.check_overflow = True, found  # stages 1 and 2
    optimizer._overflow_check_and_loss_scale_update = cleared  # stage 3
    try:
        yield
    finally:
        del optimizer.check_overflow, optimizer._overflow_check_and_loss_scale_update
        optimizer.check_grad_overflow = looks


@contextmanager
def vectors(model: nn.Module) -> Iterator[None]:
    """Have DeepSpeed send single numbers, such as FIRE's, as vectors of one: as bytes it can send nothing else."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init

    send, claim = DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param

    def sent(engine: Any) -> None:  # by stages 1 and 2
        scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for parameter in scalars:
            parameter.data = parameter.data.view(1)
        send(engine)
        for parameter in scalars:
            parameter.data = parameter.data.view(())

    def claimed(init: Any, parameter: nn.Parameter) -> None:  # by stage 3, which has then noted the shape
        claim(init, parameter)
        if parameter.ndim == 0:
            parameter.data = parameter.data.view(1)

    DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param = sent, claimed
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param = send, claim


def hold(engine: Any) -> None:
    """Keep the weights of encodings and kernels, which are few, on every process.

    Others are there while their layer's `forward` runs. An encoding may read those of a layer without calling it.
    """
    plugins = (module for module in engine.module.modules() if isinstance(module, PositionEncoding | Kernel))
    kept: list[Any] = list({id(p): p for plugin in plugins for p in plugin.parameters()}.values())
    if not kept:
        return
    known = {id(parameter) for parameter in engine.optimizer.persistent_parameters}
    for parameter in kept:
        parameter.ds_persist = parameter.is_external_param = True  # gathered after each step; let go by no layer
    engine.optimizer.persistent_parameters += [parameter for parameter in kept if id(parameter) not in known]
    kept[0].all_gather(kept)


@contextmanager
def weights_only_loads() -> Iterator[None]:
    """Have DeepSpeed's calls of torch.load admit tensors, containers and its own few classes, and nothing else.

    It says `weights_only=False` itself, so a file could run code that was exchanged after it had been looked at.
    """
    paths = [name.rpartition(".") for _, name in zero.ALLOWED]
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([getattr(import_module(module), name) for module, _, name in paths]):
            yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable by which torch.load overrides what its callers say."""
CONVERT = """
import sys
from importlib import import_module
import torch
torch.serialization.add_safe_globals(
    [getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in sys.argv.pop(1).split()]
)
from deepspeed.checkpoint.ds_to_universal import main, parse_arguments
cat = torch.cat
torch.cat = lambda parts, **named: cat([part.reshape(-1) if part.ndim == 0 else part for part in parts], **named)
main(parse_arguments())
"""
"""DeepSpeed's converter, which knows no weight that is a single number."""


def universal(place: Path, whole: Path) -> str:
    """Convert a save to DeepSpeed's universal format; what went wrong, if anything did."""
    words = ["--input_folder", str(place), "--output_folder", str(whole), "--inject_missing_state"]
    words += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command = [sys.executable, "-c", CONVERT, " ".join(name for _, name in zero.ALLOWED), *words]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", FORCE: "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    if done.returncode == 0:
        (whole.parent / "latest").write_text(whole.name)
        return ""
    return (done.stderr.strip().splitlines() or ["no reason was given"])[-1]


@torch.no_grad()
def refill(module: nn.Module, place: Path, stage: int) -> None:
    """Set what no optimizer has to what was saved: DeepSpeed's universal format leaves out frozen weights and buffers.

    Args:
        module: What is trained.
        place: What was saved.
        stage: Of ZeRO.
    """
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    here = module.state_dict(keep_vars=True)
    for name, stored in zero.unoptimized(place, stage).items():
        whole = [here[name]] if hasattr(here[name], "ds_id") else []
        with GatheredParameters(whole, modifier_rank=0, enabled=bool(whole)):
            if not whole or torch.distributed.get_rank() == 0:
                here[name].copy_(stored.tensor().view_as(here[name]))


def mend(optimizer: Any, place: Path) -> None:
    """Set right what DeepSpeed reads from its universal format at stage 3.

    It gives every group the numbers of the first, weight decay included, and all of them one count of steps, which each
    then counts up.

    Args:
        optimizer: The one that DeepSpeed's wraps.
        place: What was saved.
    """
    for group, stored in zip(optimizer.param_groups, zero.groups(place), strict=True):
        group.update(stored)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
