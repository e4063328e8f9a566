"""A folder of Hugging Face: config.json, weights in one file or in shards, and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.checkpoints import folder
from zoo.checkpoints.archive import Archive
from zoo.checkpoints.description import FORMAT, Checkpoint, owners
from zoo.checkpoints.stored import Listing, Stored, Weights
from zoo.errors import ZooError, listing
from zoo.hub import families, tokenizers
from zoo.hub.config import CONFIG, Config

INDEX = ".index.json"
KINDS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, or of their index where they are in shards; the first that is there counts."""


def holds(path: Path) -> bool:
    """Whether a folder is one of Hugging Face's."""
    return (path / CONFIG).is_file() and not (path / folder.CONFIG).exists()


def read(path: Path) -> Checkpoint:
    """The checkpoint of a folder; each weight is read when it is asked for."""
    found = listed(path)
    return Checkpoint(path, found.about, Weights(found.weights))


def listed(path: Path) -> Listing:
    """What a folder holds; its weights stay on the disk."""
    config = Config.read(path)
    network = families.network(config)
    weights = network.layout.ours(stored(path), path)
    tied = {"head.weight": "embedding.weight"} if network.arguments["tied"] else {}
    return Listing(path, describe(path, network.arguments), weights, tied=tied)


def describe(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours would say."""
    network = {"class_path": "zoo.decoder.Decoder", "init_args": arguments}
    about = {"format": FORMAT, "task": "LanguageModel", "network": network, "plugins": owners(network)}
    tokenizer = tokenizers.read(path, arguments["vocabulary"])
    return about if tokenizer is None else {**about, "tokenizer": tokenizer.describe()}


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
        return folder.header(path)
    archive = Archive(path)
    if not isinstance(archive.content, dict):
        raise ZooError(f"{path} holds no tensors by name.")
    return {name: archive.stored(tensor) for name, tensor in archive.content.items()}
