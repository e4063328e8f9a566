"""Checkpoints: one file a format (`lightning`, `folder`, `zero`), one description of what is in them.

Reading never runs pickled code, and never leaves half a file behind. `read` gives weights, `listed` where they lie.
"""

from __future__ import annotations

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
    describe,
    fill,
    owners,
    sound,
)
from zoo.checkpoints.stored import Listing
from zoo.errors import ZooError, escape_controls
from zoo.hub.files import check_links

__all__ = [
    "FORMAT",
    "NESTED",
    "SLOTS",
    "Checkpoint",
    "Listing",
    "build",
    "callable_of",
    "check_installed",
    "describe",
    "fill",
    "listed",
    "owners",
    "read",
]

DEEPEST = 32
"""Levels of a description."""
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
    check_links(path)
    if zero.holds(path):
        return zero
    from zoo.hub import folder as hub

    return hub if hub.holds(path) else folder


def escaped(about: Any, path: Path, depth: int = 0) -> Any:
    """A description whose words hold nothing that steers a terminal; the text of a tokenizer stays as it is."""
    if depth > DEEPEST:
        raise ZooError(f"{path} is damaged: its description is nested more than {DEEPEST} levels deep.")
    if isinstance(about, str):
        return escape_controls(about)
    if isinstance(about, list | tuple):
        return [escaped(each, path, depth + 1) for each in about]
    if not isinstance(about, dict):
        return about
    found = {escaped(key, path, depth + 1): escaped(value, path, depth + 1) for key, value in about.items()}
    if depth == 0 and isinstance(about.get("tokenizer"), dict):
        found["tokenizer"] = about["tokenizer"] | {"name": escape_controls(str(about["tokenizer"].get("name", "")))}
    return found


def known(found: Found) -> Found:
    """`found`, unless a later version wrote it or its description has not the shape of one."""
    found.about = escaped(found.about, found.path)
    sound(found.about, found.path)
    if found.about.get("format", 0) > FORMAT:
        raise ZooError(
            f"{found.path} was written by a newer zoo (format {found.about['format']}). "
            "Try:  pip install -U positionzoo"
        )
    return found
