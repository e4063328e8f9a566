"""From one process to many: strategies that recipes name, and a sequence shared by several processes."""

from zoo.scale.fsdp import FSDP
from zoo.scale.rendezvous import DDP
from zoo.scale.zero import ZeRO

__all__ = ["DDP", "FSDP", "ZeRO"]
