"""FSDP by PyTorch's `fully_shard`, on GPUs and, to rehearse a run before it is paid for, on CPU processes over gloo.

Matrices are cut among the processes, and gathered block by block when they are needed. Everything else stays whole in
each process: norms, biases and whatever position encodings and kernels own are small, are read outside of a block's
forward too, may be single numbers, and stay float32. Their gradients are averaged after each backward.

A checkpoint is the ordinary one, a whole `.ckpt` in which nothing says how many processes wrote it. So it is written
whole or not at all, every command reads it, and a run goes on with another number of processes, or with another
strategy. It is put together matrix by matrix, on the first process's host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.optim import Optimizer

from zoo.errors import ZooError
from zoo.kernel import Kernel
from zoo.position import PositionEncoding
from zoo.scale.rendezvous import Rendezvous
from zoo.trunk import Trunk


class FSDP(Rendezvous, ModelParallelStrategy):
    """Weights, gradients and Adam's moments, divided among processes (Zhao et al. 2023, arXiv:2304.11277; FSDP2).

    On a CPU each process stands for a GPU. Of a compiled model every block is compiled by itself. Raises ZooError for a
    precision other than 32-true and bf16-mixed, and for torch.compile together with activation checkpointing.

    Args:
        reshard_after_forward: Give a block's matrices away again after its forward pass, and gather them a second time
            for backward; otherwise they stay from the first to the last.
        patience: Seconds that the processes wait for each other at the start.
        timeout: Seconds after which a process that does not answer is given up.
    """

    def __init__(self, reshard_after_forward: bool = True, patience: float = 600, timeout: float = 1800) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout))
        self.patience = patience
        self.reshard_after_forward = reshard_after_forward
        self.whole: list[nn.Parameter] = []
        """What every process has all of."""

    # Set-up.

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # each process draws the whole model, so that a run starts from the weights of one process

    def setup(self, trainer: Trainer) -> None:
        task: Any = self.lightning_module
        if (name := self.precision_plugin.precision) not in ("32-true", "bf16-mixed"):
            raise ZooError(
                f"FSDP trains in 32-true or bf16-mixed, and --trainer.precision is {name}: weights stay float32, and "
                "position encodings with them.   Try:  --trainer.precision bf16-mixed"
            )
        if getattr(task, "compiled", False) and task.trunk.checkpointing:
            raise ZooError(
                "FSDP compiles block by block, and a block that is computed a second time may run as another graph "
                "than the first time: --model.compile and --model.checkpointing exclude each other here.   "
                "Try:  --model.compile false"
            )
        self.whole = divide(task.network, task.trunk, self.device_mesh["data_parallel"], self.reshard_after_forward)
        if getattr(task, "compiled", False):
            # The hooks that gather matrices stand around blocks, and a graph of the trunk would break at each.
            task.trunk._compiled_call_impl = None
            for block in task.trunk.blocks:
                block.forward = torch.compile(block.forward)
        super().setup(trainer)

    # Training.

    def post_backward(self, closure_loss: Tensor) -> None:
        average(parameter.grad for parameter in self.whole if parameter.grad is not None)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Any, model: LightningModule | nn.Module | None = None, **kwargs: Any
    ) -> Any:
        with implicit_replication():  # clipping and the optimizer take both kinds of parameters in one list
            return super().optimizer_step(optimizer, closure, model, **kwargs)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if isinstance(tensor, DTensor):  # as what is computed from gradients is
            tensor = tensor.full_tensor()
        return super().reduce(tensor, group, reduce_op)

    # Saving and resuming: what Lightning does for one process, with shares gathered and cut.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gathered(cast(LightningModule, self.lightning_module).state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return gathered(optimizer.state_dict(), self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        task = cast(LightningModule, self.lightning_module)
        here = task.state_dict()
        shares = {name: share(value, here.get(name)) for name, value in checkpoint["state_dict"].items()}
        task.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {name: share(value, parameters[number]) for name, value in moments.items()}
                for number, moments in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def divide(network: nn.Module, trunk: Trunk, mesh: DeviceMesh, reshard: bool) -> list[nn.Parameter]:
    """Cut a network's matrices among the processes of a mesh; the parameters that are left whole."""
    whole = list(entire(network))
    for block in trunk.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, ignored_params=set(whole))
    # The rest is one group, embedding and read-out in it, which may be one matrix: gathered when a forward begins, and
    # kept until backward ends, since the read-out is called by itself, chunk by chunk.
    fully_shard(network, mesh=mesh, reshard_after_forward=False, ignored_params=set(whole))
    for name in ("hidden", "read"):
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)
    return whole


def entire(network: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that are no matrices, and those of plugins."""
    owned = set[nn.Parameter]()
    for module in network.modules():
        if isinstance(module, PositionEncoding | Kernel):
            owned |= set(module.parameters())
    yield from (parameter for parameter in network.parameters() if parameter.ndim != 2 or parameter in owned)


@torch.no_grad()
def average(gradients: Iterable[Tensor]) -> None:
    """Make each gradient the mean of those of all processes, in place, by one exchange for each type of number."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(gradient.dtype, []).append(gradient)
    for parts in kinds.values():
        row = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(row)
        row /= distributed.get_world_size()
        for part, mean in zip(parts, row.split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))


def gathered(state: Any, keep: bool) -> Any:
    """A state with its shares put together on the host, in this process or in others."""
    if isinstance(state, Mapping):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, DTensor):
        complete = state.full_tensor()  # which takes all processes
        return complete.cpu() if keep else None
    return state


def share(value: Any, like: Any) -> Any:
    """This process's part of a tensor that is `like` a divided one, and everything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # A copy, since a part would keep the whole of it alive.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()
