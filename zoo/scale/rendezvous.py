"""How the processes of a run find each other, and what is said when one of them does not come.

The process group would wait half an hour and then end in a trace of sockets. So the processes meet before it is made,
at the same address: the first one listens there, each says that it has come, and each sees how many have. The group
that is made afterwards uses the same listener. How long it waits for a collective operation is another setting: a
process may well wait for half an hour while the first one writes or measures something.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.distributed import DistError, DistNetworkError, TCPStore

from zoo.errors import ZooError

KEY = "zoo/arrived"


def meet(environment: ClusterEnvironment, patience: float) -> TCPStore | None:
    """Wait until all processes have come; ZooError where one does not. What is returned is held until the group stands.

    Args:
        environment: Knows the address, and which of how many processes this is.
        patience: Seconds.
    """
    rank, world = environment.global_rank(), environment.world_size()
    if world < 2 or distributed.is_initialized():
        return None
    address, port = environment.main_address, environment.main_port
    here, given = f"{address}:{port}", timedelta(seconds=patience)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun listens, for all of its attempts
    first, key = rank == 0 and not agent, f"{KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    come = 0
    try:
        store = TCPStore(address, port, world, first, given, wait_for_workers=False, multi_tenant=True)
        end = time.monotonic() + patience
        come = store.add(key, 1)
        while come < world and time.monotonic() < end:
            time.sleep(0.02)
            come = store.add(key, 0)
    except (DistError, RuntimeError, ValueError) as error:
        if come:  # the first process has given up a moment before
            raise ZooError(absent(come, world, here, patience)) from None
        reason = str(error).strip().partition("\n")[0][:160]
        if first and isinstance(error, DistNetworkError):
            raise ZooError(
                f"The first of {world} processes cannot listen at {here} ({reason}).   Try:  another port, by "
                "MASTER_PORT in the environment of all processes, and an address of this machine, by MASTER_ADDR"
            ) from None
        raise ZooError(
            f"Process {rank} of {world} finds no first process at {here} ({reason}).   Try:  the same MASTER_ADDR and "
            "MASTER_PORT on all machines, a port that no firewall closes, and all processes started within "
            f"{patience:g} s (the strategy's setting patience)"
        ) from None
    if come < world:
        raise ZooError(absent(come, world, here, patience))
    return store


def absent(come: int, world: int, here: str, patience: float) -> str:
    """What is said where some have come, and not all."""
    return (
        f"{come} of {world} processes have come to {here} within {patience:g} s.   Try:  see whether the others were "
        "started, and with the same MASTER_ADDR, MASTER_PORT, --trainer.num_nodes and --trainer.devices; or give them "
        "longer, by the strategy's setting patience"
    )


class Rendezvous:
    """For strategies, before Lightning's class: its processes `meet` before their group is made."""

    patience: float = 600
    """Seconds that the processes wait for each other at the start."""

    def setup_environment(self) -> None:
        """Meet, then set up as the strategy does."""
        strategy: Any = self
        strategy.set_world_ranks()
        held = meet(strategy.cluster_environment, self.patience)
        super().setup_environment()  # type: ignore[misc]
        del held


class DDP(Rendezvous, DDPStrategy):
    """Lightning's DDP, whose processes say so when one of them does not come.

    Args:
        patience: Seconds that the processes wait for each other at the start.
        **ddp: Lightning's settings.
    """

    def __init__(self, patience: float = 600, **ddp: Any) -> None:
        super().__init__(**ddp)
        self.patience = patience
