"""Lightning's .ckpt: written whole or not at all, read without running anything in it.

A file is written beside its final name and renamed. It is read with `weights_only=True`, which admits tensors, numbers,
strings and containers; a file that needs more is refused before it could be opened otherwise.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.description import Checkpoint
from zoo.errors import ZooError

PREFIX = "network."
"""What a task calls its network."""


def load(path: str | Path, **options: Any) -> dict[str, Any]:
    """The whole file as containers of tensors, memory-mapped; a sentence where that cannot be."""
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"There is no checkpoint at {path}.")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True, **options)
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        culprit = next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else "")
        raise ZooError(
            f"{path} was not opened: it is damaged, is no checkpoint, or needs code beyond plain tensors and "
            f"containers ({culprit.strip()[:160]})."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ZooError(f"{path} is truncated or is not a checkpoint ({reason}).") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ZooError(f"{path} is not a training checkpoint: it has no state_dict.")
    return content


def read(path: Path) -> Checkpoint:
    """The network of a training checkpoint."""
    content = load(path)
    if "zoo" not in content:
        raise ZooError(
            f"{path} is a Lightning checkpoint of another program: it does not say which zoo model it holds."
        )
    weights = {
        name.removeprefix(PREFIX): value for name, value in content["state_dict"].items() if name.startswith(PREFIX)
    }
    return Checkpoint(path, content["zoo"], weights)


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
