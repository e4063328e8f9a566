"""Lightning's .ckpt: written whole or not at all, read without running anything in it.

A file is written beside its final name and renamed. It is read with `weights_only=True`, which admits tensors, numbers,
strings and containers; a file that needs more is refused before it could be opened otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints import adapted, archive
from zoo.checkpoints.description import Checkpoint
from zoo.checkpoints.stored import Listing, Stored, Weights
from zoo.errors import ZooError

PREFIX = "network."
"""What a task calls its network."""
KEPT = ("epoch", "global_step", "pytorch-lightning_version")
"""What a checkpoint without the state of an optimizer says of its run."""


def load(path: str | Path, **options: Any) -> dict[str, Any]:
    """The whole file as containers of tensors, memory-mapped; a sentence where that cannot be."""
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"There is no checkpoint at {path}.")
    return checked(archive.load(path, map_location="cpu", mmap=True, **options), path)


def checked(content: Any, path: Path) -> dict[str, Any]:
    """The content, if it is that of a training checkpoint."""
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ZooError(f"{path} is not a training checkpoint: it has no state_dict.")
    for name, weight in content["state_dict"].items():
        if not isinstance(weight, torch.Tensor) or weight.layout is not torch.strided or weight.is_quantized:
            raise ZooError(
                f"{path} is damaged: its weight {str(name)[:80]} is {archive.kind_of(weight)}, and weights are dense "
                "tensors."
            )
    return content


def told(content: Mapping[str, Any], path: Path, kind: str = "Lightning") -> dict[str, Any]:
    """The description in a content; a sentence where there is none."""
    if not isinstance(content.get("zoo"), dict):
        raise ZooError(f"{path} is a {kind} checkpoint of another program: it does not say which zoo model it holds.")
    return content["zoo"]


def own(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a task's weights that are its network's, by their names there."""
    return {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}


def read(path: Path) -> Checkpoint:
    """The network of a training checkpoint."""
    content = load(path)
    if adapted.apart(content["state_dict"]):
        found = listed(path)
        return Checkpoint(path, found.about, Weights(found.weights))
    return Checkpoint(path, told(content, path), own(content["state_dict"]))


def listed(path: Path) -> Listing:
    """What a training checkpoint holds; its weights stay on the disk."""
    found = archive.Archive(path)
    content = checked(found.content, path)
    about = told(content, path)
    weights = {name: found.stored(value) for name, value in own(content["state_dict"]).items()}
    return Listing(path, about, adapted.summed(weights, about, path), kept(content))


def kept(content: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a run where its optimizer does not."""
    return {key: content[key] for key in KEPT if key in content}


def write(path: Path, about: Mapping[str, Any], weights: Mapping[str, Stored], run: Mapping[str, Any]) -> None:
    """Write a checkpoint without the state of an optimizer; no weight is ever whole in memory.

    Args:
        path: The file.
        about: The description.
        weights: The network's.
        run: What is kept of the run; where it is empty, what the description says.
    """
    trained = about.get("trained") or {}
    content = {
        "epoch": trained.get("epochs", 0),
        "global_step": trained.get("steps", 0),
        "pytorch-lightning_version": version("lightning"),
        **run,
        "state_dict": {f"{PREFIX}{name}": weight for name, weight in weights.items()},
        "zoo": dict(about),
    }
    archive.save(content, path)


def save(content: dict[str, Any], path: str | Path) -> None:
    """Write beside the final name, flush to disk, rename: at no moment does the name hold half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
