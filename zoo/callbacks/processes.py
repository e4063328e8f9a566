"""How the processes of a run end together: one of them speaks for all."""

from __future__ import annotations

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer


def follows(trainer: Trainer) -> bool:
    """Whether another process has started this one, and tells how the run ended.

    Lightning kills that one where it sees this one fail, so a process that follows ends well when all end together.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank != 0
