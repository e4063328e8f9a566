"""From one process to many: strategies that recipes name, and a sequence shared by several processes.

A strategy is imported when it is named: models read this package too, for their share of a sequence.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.scale.fsdp import FSDP
    from zoo.scale.rendezvous import DDP
    from zoo.scale.zero import ZeRO

__all__ = ["DDP", "FSDP", "ZeRO"]

PLACES = {"DDP": "rendezvous", "FSDP": "fsdp", "ZeRO": "zero"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
