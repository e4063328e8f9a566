"""Weights that a run with adapters left: each frozen matrix and what LoRA trained beside it are read as their sum.

Hu et al. 2021 (arXiv:2106.09685): W + alpha / rank B A. The names are those of peft, which is not needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.stored import Stored
from zoo.errors import ZooError
from zoo.hub.made import Made, rows

BASE = ".base_layer."
"""What peft puts into the name of a frozen weight."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""What it calls A [rank, inputs] and B [outputs, rank]."""


@dataclass(frozen=True)
class Sum(Made):
    """W + factor B A, some rows at a time, in float32 at least.

    Args:
        base: W.
        down: A.
        up: B.
        factor: On B A.
    """

    base: Stored
    down: Stored
    up: Stored
    factor: float

    def rows(self, wanted: range) -> Tensor:
        kind = torch.promote_types(self.dtype, torch.float32)
        base, up = (rows(each, wanted).tensor().to(kind) for each in (self.base, self.up))
        return base.addmm_(up, self.down.tensor().to(kind), alpha=self.factor).to(self.dtype)


def apart(weights: Mapping[str, Any]) -> bool:
    """Whether adapters lie beside their matrices."""
    return any(name.endswith(DOWN) for name in weights)


def summed(weights: Mapping[str, Stored], about: Mapping[str, Any], path: Path | str) -> dict[str, Stored]:
    """The weights by the names and of the shapes that they have without adapters, of which `about` tells the factor."""
    if not apart(weights):
        return dict(weights)
    try:
        told = about["trained"]["adapter"]
        factor, found = float(told["alpha"]) / int(told["rank"]), dict[str, Stored]()
        for name, stored in weights.items():
            root, base, kind = name.partition(BASE)
            if base and kind == "weight":
                down, up = weights[root + DOWN], weights[root + UP]
                if (up.shape[0], down.shape[1]) != stored.shape or up.shape[1:] != down.shape[:1]:
                    raise ValueError(f"the adapter of {root} does not fit its matrix")
                stored = Sum(stored.dtype, stored.shape, (), stored, down, up, factor)
            if not name.endswith((DOWN, UP)):
                found[f"{root}.{kind}" if base else name] = stored
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ZooError(f"{path} is damaged: its adapters are not whole: {type(error).__name__}: {error}.") from None
    return found
