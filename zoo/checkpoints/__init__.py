"""Checkpoints: one file a format (`lightning`, `folder`, `zero`), one description of what is in them.

Reading never runs pickled code, and never leaves half a file behind. `read` gives weights, `listed` where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from zoo.checkpoints import folder, lightning, zero
from zoo.checkpoints.description import (
    FORMAT,
    NESTED,
    SLOTS,
    Checkpoint,
    build,
    callable_of,
    check_installed,
    check_network,
    describe,
    describe_averaging,
    fill,
    owners,
)
from zoo.checkpoints.stored import Listing, Weights
from zoo.errors import ZooError
from zoo.hub.files import check_links
from zoo.limits import check_schema, check_sizes, escape_description, reporting_damage

__all__ = [
    "FORMAT",
    "NESTED",
    "SLOTS",
    "Checkpoint",
    "Listing",
    "build",
    "callable_of",
    "check_installed",
    "checked",
    "describe",
    "describe_averaging",
    "fill",
    "listed",
    "owners",
    "read",
]

Found = TypeVar("Found", Checkpoint, Listing)


def read(path: str | Path) -> Checkpoint:
    """A checkpoint of any known format; a sentence where the path holds none."""
    with reporting_damage(path):
        found: Checkpoint = form(Path(path)).read(Path(path))
        return known(found)


def listed(path: str | Path) -> Listing:
    """A checkpoint of any known format, its weights left where they are; a sentence where the path holds none."""
    with reporting_damage(path):
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
    check_links(path)
    if zero.holds(path):
        return zero
    from zoo.hub import folder as hub

    return hub if hub.holds(path) else folder


def known(found: Found) -> Found:
    """`found`, with its description checked against its weights."""
    weights = found.weights.stored if isinstance(found.weights, Weights) else found.weights
    found.about = checked(found.about, [each.shape for each in weights.values()], found.path)
    return found


def checked(about: Any, shapes: Sequence[Sequence[int]], path: Path) -> dict[str, Any]:
    """The description of a checkpoint, its words without what steers a terminal.

    Args:
        about: As the file has it.
        shapes: Of the weights of its network.
        path: The file.

    Raises ZooError where a later version wrote it, where it has not the shape of a description, or where it declares
    more than the weights hold.
    """
    if not isinstance(about, dict):
        raise ZooError(f"{path} is damaged: its description is no mapping.")
    found: dict[str, Any] = escape_description(about, path)
    check_schema(found, path)
    if found.get("format", 0) > FORMAT:
        raise ZooError(
            f"{path} was written by a newer zoo (format {found['format']}). Try:  pip install -U positionzoo"
        )
    if "network" in found:
        check_sizes(found["network"], shapes, path)
        check_network(found, path)
    return found
