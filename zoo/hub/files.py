"""The files of a Hugging Face folder: weights in one file or in shards, and the known ones that go with them.

Whatever is made of such a folder takes known files only, and no file is read through a link that leads elsewhere: a
file of somebody's own would be published under the name of a vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
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

COMPANIONS = (
    *("config.json", "generation_config.json", "readme.md", "license*", "notice*", "use_policy*", "copying*"),
    *("tokenizer.json", "tokenizer.model*", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("chat_template*.json", "chat_template*.jinja"),
)
"""Patterns of the known files beside the weights, in small letters."""


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a folder, and their index.

    Raises ZooError where there are none.
    """
    for kind in KINDS:
        if (path / kind).is_file():
            return [path / kind]
        if (index := path / f"{kind}{INDEX}").is_file():
            return [index, *sorted({file for _, file in shards(index)})]
    raise ZooError(f"{path} holds no weights: neither {listing(KINDS)} nor an index of shards.")


def companion_files(path: Path) -> list[Path]:
    """The known files of a folder beside its weights."""
    files = (file for file in path.iterdir() if file.is_file())
    return sorted(file for file in files if any(fnmatch(file.name.lower(), pattern) for pattern in COMPANIONS))


def list_unknown(path: Path, known: Iterable[Path]) -> list[str]:
    """Names of what a folder holds besides some files."""
    names = {file.name for file in known}
    return sorted(file.name + "/" * file.is_dir() for file in path.iterdir() if file.name not in names)


def tell_left(path: Path, known: Iterable[Path]) -> None:
    """Print what a folder holds besides the files that are taken of it."""
    if left := list_unknown(path, known):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        print(f"zoo: left behind, since they are no known files of a model: {listing(left[:5])}{more}", file=sys.stderr)


def check_links(path: Path) -> None:
    """Raise ZooError where a folder holds a link that leads out of it.

    A snapshot in the cache of Hugging Face (models--OWNER--NAME/snapshots/REVISION) may link to the `blobs` of its own
    repository.
    """
    here = path.resolve()
    roots = [here]
    if here.parent.name == "snapshots" and here.parent.parent.name.startswith("models--"):
        roots.append(here.parent.parent / "blobs")
    for entry in sorted([*here.glob("*"), *here.glob("*/*")]):  # no checkpoint is deeper
        if entry.is_symlink() and not any(root in entry.resolve().parents for root in roots):
            raise ZooError(
                f"{path} holds a link that leads out of it: {entry.relative_to(here)}. What it leads to may be "
                "anybody's file, so it is not read.   Try:  a copy of that file in its place, if it belongs there"
            )


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


def shards(path: Path) -> list[tuple[str, Path]]:
    """Each tensor that an index names, and its file."""
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        found = [(str(tensor), path.parent / str(name)) for tensor, name in places.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is damaged: {type(error).__name__}: {str(error)[:160]}.") from None
    if strange := [file.name for _, file in found if file.parent != path.parent or file.suffix not in SUFFIXES]:
        raise ZooError(f"{path} names the file {strange[0]}, which is no file of weights in its folder.")
    return found


def sharded(path: Path) -> dict[str, Stored]:
    """Tensors of all files that an index names."""
    places = shards(path)
    files = sorted({file for _, file in places})
    if missing := [file.name for file in files if not file.is_file()]:
        raise ZooError(f"{path.parent} is not complete: {path.name} names {listing(missing[:3])}, and it is not there.")
    found: dict[str, Stored] = {}
    for file in files:
        held = opened(file)
        promised = {name for name, place in places if place == file}
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
