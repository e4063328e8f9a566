"""What checkpoints are called in tables and pictures: as briefly as tells one from the other."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.errors import ZooError

NOISE = {"checkpoints", "lightning_logs", "last", "model", "runs"}
"""Folders and files that all runs have."""


def names(paths: list[str]) -> list[str]:
    """A short name for each checkpoint: the end of its path, without what all runs have, that tells it from others."""
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ZooError(f"A checkpoint is named twice: {', '.join(paths)}.")
    places = [Path(os.path.abspath(path.removesuffix(".ckpt"))).parts[1:] for path in paths]
    for versions in (False, True):
        told = [
            [part for part in place if part not in NOISE and (versions or not part.startswith("version_"))]
            for place in places
        ]
        for count in range(1, max(map(len, told)) + 1):
            found = ["/".join(part[-count:]) for part in told]
            if len(set(found)) == len(found) and all(found):
                return found
    return [str(Path(path)) for path in paths]
