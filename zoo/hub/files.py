"""The weights of a Hugging Face folder: one file, or shards with an index; safetensors, or what torch.save wrote."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.checkpoints.archive import Archive
from zoo.checkpoints.stored import Stored
from zoo.checkpoints.tensors import header
from zoo.errors import ZooError, listing
from zoo.hub import families
from zoo.hub.config import Config

SUFFIXES = (".safetensors", ".bin")
INDEX = ".index.json"
KINDS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, or of their index where they are in shards; the first that is there counts."""


def weights(path: Path) -> dict[str, Stored]:
    """Where our tensors lie in a folder, by our names."""
    return families.network(Config.read(path)).layout.ours(stored(path), path)


def stored(path: Path) -> dict[str, Stored]:
    """Where the tensors of a folder lie, by their names there.

    Raises ZooError where there are none, a shard is missing, or index and shard disagree.
    """
    for kind in KINDS:
        if (path / kind).is_file():
            return opened(path / kind)
        if (path / f"{kind}{INDEX}").is_file():
            return sharded(path / f"{kind}{INDEX}")
    raise ZooError(f"{path} holds no weights: neither {listing(KINDS)} nor an index of shards.")


def sharded(path: Path) -> dict[str, Stored]:
    """Tensors of all files that an index names."""
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        files = sorted({path.parent / str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is damaged: {type(error).__name__}: {str(error)[:160]}.") from None
    if strange := [file.name for file in files if file.parent != path.parent]:
        raise ZooError(f"{path} names the file {strange[0]} outside its folder.")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ZooError(f"{path.parent} is not complete: {path.name} names {listing(missing[:3])}, and it is not there.")
    found: dict[str, Stored] = {}
    for file in files:
        held = opened(file)
        promised = {name for name, place in places.items() if place == file.name}
        if apart := sorted(promised ^ held.keys()):
            said = "and it is not there" if apart[0] in promised else "and the index does not say so"
            where = "should hold" if apart[0] in promised else "holds"
            raise ZooError(f"{path} and its shard disagree: {file.name} {where} {apart[0]}, {said}.")
        found |= held
    return found


def opened(path: Path) -> dict[str, Stored]:
    """Tensors of one file; a pickled one is opened only as far as it holds tensors and plain containers."""
    if path.suffix == ".safetensors":
        return header(path)
    archive = Archive(path)
    if not isinstance(archive.content, dict):
        raise ZooError(f"{path} holds no tensors by name.")
    return {name: archive.stored(tensor) for name, tensor in archive.content.items()}
