"""A zoo folder: config.yaml says what it is, model.safetensors holds the weights, tokenizer.json the tokenizer.

It is what a person publishes: README.md is the card. Tied weights are stored once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.checkpoints.description import Checkpoint
from zoo.errors import ZooError

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.yaml", "model.safetensors", "tokenizer.json", "README.md"


def read(path: Path) -> Checkpoint:
    """The checkpoint of a folder."""
    about = said(path)
    try:
        weights = load_file(path / WEIGHTS)
        weights |= {same: weights[name] for same, name in about.pop("tied", {}).items()}
    except (SafetensorError, KeyError) as error:
        raise damaged(path, error) from None
    return Checkpoint(path, about, weights)


def said(path: Path) -> dict[str, Any]:
    """The description of a folder, and under "tied" which weights it holds once for two names; reads no weights."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ZooError(f"{path} is not a zoo checkpoint folder: {' and '.join(missing)} missing.")
    try:
        about = dict(yaml.safe_load((path / CONFIG).read_text(encoding="utf-8")))
        if (path / TOKENIZER).is_file():
            about["tokenizer"] = json.loads((path / TOKENIZER).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise damaged(path, error) from None
    return about


def damaged(path: Path, error: Exception) -> ZooError:
    """What is said of a folder that cannot be read."""
    return ZooError(f"{path} is damaged: {type(error).__name__}: {str(error).splitlines()[0][:160]}.")


def write(path: str | Path, about: Mapping[str, Any], weights: Mapping[str, Tensor], card: str) -> None:
    """Write a folder; each file appears whole, the config last, so that a folder with a config is complete."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    places: dict[tuple[int, int], str] = {}
    for name, value in weights.items():
        place = value.untyped_storage().data_ptr(), int(value.storage_offset())
        if place in places and value.numel():
            tied[name] = places[place]
        else:
            places[place] = name
            kept[name] = value.detach().cpu().contiguous()
    about = dict(about)
    tokenizer = about.pop("tokenizer", None)
    if tied:
        about["tied"] = tied
    beside = path / f".{WEIGHTS}.part"
    save_file(kept, beside, metadata={"format": "pt"})
    os.replace(beside, path / WEIGHTS)
    texts = {CARD: card, CONFIG: yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}
    if tokenizer is not None:
        texts = {TOKENIZER: json.dumps(tokenizer), **texts}
    for name, text in texts.items():
        beside = path / f".{name}.part"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path / name)
