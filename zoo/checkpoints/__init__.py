"""Checkpoints: one file a format (`lightning`, `folder`, `zero`), one description of what is in them.

Reading never runs pickled code, and never leaves half a file behind. `read` gives weights, `listed` where they lie.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TypeVar

from zoo.checkpoints import folder, lightning, zero
from zoo.checkpoints.description import (
    FORMAT,
    NESTED,
    SLOTS,
    Checkpoint,
    build,
    callable_of,
    describe,
    fill,
    owners,
    sound,
)
from zoo.checkpoints.stored import Listing
from zoo.errors import ZooError

__all__ = [
    "FORMAT",
    "NESTED",
    "SLOTS",
    "Checkpoint",
    "Listing",
    "build",
    "callable_of",
    "describe",
    "fill",
    "listed",
    "owners",
    "read",
]

Found = TypeVar("Found", Checkpoint, Listing)


def read(path: str | Path) -> Checkpoint:
    """A checkpoint of any known format; a sentence where the path holds none."""
    found: Checkpoint = form(Path(path)).read(Path(path))
    return known(found)


def listed(path: str | Path) -> Listing:
    """A checkpoint of any known format, its weights left where they are; a sentence where the path holds none."""
    found: Listing = form(Path(path)).listed(Path(path))
    return known(found)


def form(path: Path) -> ModuleType:
    """The module that knows the format of what is at a path."""
    if not path.exists():
        raise ZooError(f"There is no checkpoint at {path}.")
    if not path.is_dir():
        if path.suffix != ".gguf":
            return lightning
        from zoo.hub import gguf

        return gguf
    if zero.holds(path):
        return zero
    from zoo.hub import folder as hub

    return hub if hub.holds(path) else folder


def known(found: Found) -> Found:
    """`found`, unless a later version wrote it or its description has not the shape of one."""
    sound(found.about, found.path)
    if found.about.get("format", 0) > FORMAT:
        raise ZooError(
            f"{found.path} was written by a newer zoo (format {found.about['format']}). "
            "Try:  pip install -U positionzoo"
        )
    return found
