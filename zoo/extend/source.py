"""A checkpoint that is to be extended, read without its weights: its format says where they lie.

The fingerprint, by which a child names its parent, therefore hashes three pages of each tensor and not all of it; it
tells checkpoints of different steps apart, and is the same for the same weights in any format. It is no protection
against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo import checkpoints
from zoo.checkpoints.stored import Stored

PAGE = 4096
"""Bytes at the beginning, in the middle and at the end of a tensor that the fingerprint hashes."""


@dataclass
class Source:
    """What is known of a checkpoint before anything is written.

    Args:
        path: Where it is.
        about: Its description.
        shapes: Its weights on the meta device.
        fingerprint: Of its weights.
        tied: Names of weights that a folder's file holds under another name.
        weights: Where its weights lie.
        run: What a Lightning checkpoint says beside both.
    """

    path: Path
    about: dict[str, Any]
    shapes: Mapping[str, Tensor] = field(repr=False)
    fingerprint: str
    tied: dict[str, str] = field(default_factory=dict)
    weights: Mapping[str, Stored] = field(default_factory=dict, repr=False)
    run: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Source:
    """The checkpoint at a path; a sentence where there is none, or one that is damaged."""
    found = checkpoints.listed(path)
    shapes = {name: stored.meta for name, stored in found.weights.items()}
    return Source(path, found.about, shapes, fingerprint(found.weights), found.tied, found.weights, found.kept)


def fingerprint(weights: Mapping[str, Stored]) -> str:
    """The same for the same weights under the same names."""
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights.items()):
        size = weight.size
        found.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        for start in sorted({0, max(0, size // 2 - PAGE // 2), max(0, size - PAGE)}):
            found.update(weight.page(start, PAGE))
    return found.hexdigest()
