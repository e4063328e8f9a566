"""Checkpoints: one file a format (`lightning`, `folder`), one description of what is in them.

Reading never runs pickled code, and never leaves half a file behind.
"""

from __future__ import annotations

from pathlib import Path

from zoo.checkpoints import folder, lightning
from zoo.checkpoints.description import FORMAT, NESTED, SLOTS, Checkpoint, build, callable_of, describe, fill, owners
from zoo.errors import ZooError

__all__ = ["FORMAT", "NESTED", "SLOTS", "Checkpoint", "build", "callable_of", "describe", "fill", "owners", "read"]


def read(path: str | Path) -> Checkpoint:
    """A checkpoint of any known format; a sentence where the path holds none."""
    path = Path(path)
    if not path.exists():
        raise ZooError(f"There is no checkpoint at {path}.")
    found = folder.read(path) if path.is_dir() else lightning.read(path)
    if found.about.get("format", 0) > FORMAT:
        raise ZooError(
            f"{path} was written by a newer zoo (format {found.about['format']}). Try:  pip install -U positionzoo"
        )
    return found
