"""A folder of Hugging Face: config.json, weights in one file or in shards, and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.checkpoints.description import FORMAT, Checkpoint, owners
from zoo.checkpoints.stored import Listing, Weights
from zoo.hub import families, tokenizers
from zoo.hub.config import CONFIG, Config
from zoo.hub.files import stored


def holds(path: Path) -> bool:
    """Whether a folder is one of Hugging Face's."""
    return (path / CONFIG).is_file() and not (path / "config.yaml").exists()


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
    return about if tokenizer is None else {**about, "tokenizer": tokenizer}
