"""Files of llama.cpp's format: read as they are, tokenizer included, and written.

A file says in keys of its own what network it holds. They are put into the words of a config.json, and from there on it
is a Hugging Face folder: the same families, the same rules for what is not understood. Weights that are quantised stay
so on the disk and become float32, tensor by tensor, when they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.checkpoints.description import FORMAT, Checkpoint, owners
from zoo.checkpoints.stored import Listing, Weights
from zoo.hub.gguf import network, vocabulary
from zoo.hub.gguf.file import File
from zoo.hub.gguf.write import write

__all__ = ["listed", "read", "write"]


def read(path: Path) -> Checkpoint:
    """The checkpoint of a file; each weight is read, and dequantised, when it is asked for."""
    found = listed(path)
    return Checkpoint(path, found.about, Weights(found.weights))


def listed(path: Path) -> Listing:
    """What a file holds; its weights stay on the disk."""
    file = File.read(path)
    found = network.read(file)
    tokenizer = vocabulary.read(file, found.arguments["vocabulary"])
    node = {"class_path": "zoo.decoder.Decoder", "init_args": found.arguments}
    about: dict[str, Any] = {"format": FORMAT, "task": "LanguageModel", "network": node, "plugins": owners(node)}
    if tokenizer is not None:
        about["tokenizer"] = tokenizer.describe()
    tied = {"head.weight": "embedding.weight"} if found.arguments["tied"] else {}
    return Listing(path, about, network.weights(file, found), tied=tied)
