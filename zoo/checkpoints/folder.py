"""A zoo folder: config.yaml says what it is, model.safetensors holds the weights, tokenizer.json the tokenizer.

It is what a person publishes: README.md is the card. Tied weights are stored once. A folder that was made of another
one by changing a few weights keeps that one's model.safetensors as it is, often the very file; what is new or replaced
lies in position.safetensors, which the config names under `added`, and under `dropped` the weights that are no more.
One that was made of a folder of Hugging Face's keeps all of that in `hub/`, in the place of model.safetensors.
The config records the SHA-256 of each file of weights, made while it is written; only `zoo check FOLDER` compares it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo import lock
from zoo.checkpoints.description import Checkpoint
from zoo.checkpoints.stored import Listing, Stored, Weights
from zoo.checkpoints.tensors import header, pack
from zoo.errors import ZooError
from zoo.hub import files as hub
from zoo.hub import tokenizers
from zoo.limits import read_json
from zoo.strict_yaml import check_yaml

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.yaml", "model.safetensors", "tokenizer.json", "README.md"
HUB = "hub"
"""A folder of Hugging Face's, whose weights take the place of that file."""
UNRECORDED = "not recorded"
"""What stands for the checksum of a file whose bytes did not go by when it was linked."""
ADDED = "position.safetensors"
"""Weights that are not in the other file, or take the place of some that are."""


def read(path: Path) -> Checkpoint:
    """The checkpoint of a folder."""
    if (path / HUB).is_dir():
        found = listed(path)
        return Checkpoint(path, found.about, Weights(found.weights))
    about = said(path)
    try:
        weights = combined(about, *(load_file(file) for file in files(path, about)))
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    return Checkpoint(path, about, weights)


def listed(path: Path) -> Listing:
    """What a folder holds; its weights stay on the disk."""
    about = said(path)
    tied = about.get("tied", {})
    try:
        weights = combined(about, basis(path), *(header(file) for file in files(path, about)[1:]))
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    return Listing(path, about, weights, tied=tied)


def basis(path: Path) -> dict[str, Stored]:
    """Where the weights lie that a folder keeps as they were, by our names."""
    return hub.weights(path / HUB) if (path / HUB).is_dir() else header(path / WEIGHTS)


def files(path: Path, about: Mapping[str, Any]) -> list[Path]:
    """The files with weights."""
    return [path / WEIGHTS, *([path / ADDED] if about.get("added") else [])]


def combined(about: dict[str, Any], first: dict[str, Any], second: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The weights of both files by name; takes out of the description what it says of files."""
    found = first | {same: first[name] for same, name in about.pop("tied", {}).items()} | dict(second or {})
    about.pop("added", None)
    about.pop("checksums", None)
    for name in about.pop("dropped", []):
        found.pop(name, None)
    return found


def said(path: Path) -> dict[str, Any]:
    """The description of a folder, and under "tied", "added" and "dropped" what its files hold; reads no weights."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing and not (missing == [WEIGHTS] and (path / HUB).is_dir()):
        raise ZooError(f"{path} is not a zoo checkpoint folder: {' and '.join(missing)} missing.")
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
        check_yaml(text)
        about = dict(yaml.safe_load(text))
        if (path / TOKENIZER).is_file():
            about["tokenizer"] = read_json(path / TOKENIZER)
            if "model" in about["tokenizer"]:  # that of a folder which others read too
                about["tokenizer"] = tokenizers.read(path, about["network"]["init_args"]["vocabulary"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, error) from None
    if about.get("added") and not (path / ADDED).is_file():
        raise ZooError(f"{path} is damaged: {ADDED} is missing, which its {CONFIG} speaks of.")
    return about


def damaged(path: Path, error: Exception) -> ZooError:
    """What is said of a folder that cannot be read."""
    return ZooError(f"{path} is damaged: {type(error).__name__}: {str(error).splitlines()[0][:160]}.")


def write(path: str | Path, about: Mapping[str, Any], weights: Mapping[str, Tensor | Stored], card: str) -> None:
    """Write a folder; each file appears whole, the config last, so that a folder with a config is complete."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Stored] = {}
    tied: dict[str, str] = {}
    places: dict[Any, str] = {}
    for name, value in weights.items():
        stored = value if isinstance(value, Stored) else Stored.of(value)
        if stored.size and (first := places.setdefault(place(value), name)) != name:
            tied[name] = first
        else:
            kept[name] = stored
    with lock.writing(path / WEIGHTS) as beside:
        checksum = pack(beside, kept)
    describe(path, {**about, "tied": tied, "checksums": {WEIGHTS: checksum}}, card)


def recorded_checksums(path: Path) -> dict[str, str]:
    """The SHA-256 that a folder records of its files of weights, by name; those of old and foreign folders are none."""
    if not (path / CONFIG).is_file():
        return {}
    found = said(path).get("checksums")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def compare_checksums(path: Path) -> dict[str, str]:
    """Read the weights of a folder, and say of each of its files: "same", "different" or "not recorded".

    Raises ZooError where the path holds no folder with weights.
    """
    recorded, own = recorded_checksums(path), (path / CONFIG).is_file()
    whole = path if not own else path / HUB
    found = [path / name for name in (WEIGHTS, ADDED) if own and (path / name).is_file()]
    found += [file for file in hub.weight_files(whole) if file.suffix in hub.SUFFIXES] if whole.is_dir() else []
    if not found:
        raise ZooError(f"{path} holds no weights.")
    told = {}
    for file in found:
        name = str(file.relative_to(path))
        if recorded.get(name, UNRECORDED) == UNRECORDED:
            told[name] = UNRECORDED
            continue
        with file.open("rb") as opened:
            told[name] = "same" if hashlib.file_digest(opened, "sha256").hexdigest() == recorded[name] else "different"
    return told


def place(value: Tensor | Stored) -> Any:
    """What two weights have in common that are stored once."""
    return value if isinstance(value, Stored) else (value.untyped_storage().data_ptr(), int(value.storage_offset()))


def describe(path: Path, about: Mapping[str, Any], card: str) -> None:
    """Write all but the weights; what is empty of "tied", "added" and "dropped" is left out."""
    about = {key: value for key, value in about.items() if value or key not in ("tied", "added", "dropped")}
    tokenizer = about.pop("tokenizer", None)
    texts = {CARD: card, CONFIG: yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}
    if tokenizer is not None:
        texts = {TOKENIZER: json.dumps(tokenizer), **texts}
    for name, text in texts.items():
        with lock.writing(path / name) as beside:
            beside.write_text(text, encoding="utf-8")
