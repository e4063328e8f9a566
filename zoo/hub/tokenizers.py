"""What a Hugging Face folder says of its tokenizer, as our checkpoints describe one; no library is asked.

Commands that look at no text read folders too, and wait for no library.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.limits import read_json

FILE, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
SPECIAL = "special_tokens_map.json"
ENDS = ("<|endoftext|>", "</s>")
"""What ends a document where nothing says so."""


def read(path: Path, vocabulary: int) -> dict[str, Any] | None:
    """The description of a folder's tokenizer, which `zoo.hub.foreign` restores; None where it has none.

    Raises ZooError where it is damaged, nothing ends a document, or it gives numbers that the model does not have.

    Args:
        path: The folder.
        vocabulary: Numbers that the model has.
    """
    if not (path / FILE).is_file():
        return None
    name = path.resolve().name
    try:
        said = read_json(path / FILE)
        text = (path / FILE).read_text(encoding="utf-8")
        own = said["model"]["vocab"]  # of a unigram a list of pieces with their scores
        numbers = dict(own) if isinstance(own, dict) else {piece: number for number, (piece, _) in enumerate(own)}
        numbers |= {token["content"]: token["id"] for token in said.get("added_tokens") or ()}
        size = max(numbers.values()) + 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ZooError(f"The tokenizer {name} is damaged: {type(error).__name__}: {str(error)[:160]}.") from None
    if size > vocabulary:
        raise ZooError(f"{path / FILE} does not belong to the model: it has {size} tokens, and the model {vocabulary}.")
    told = ending(path)
    end = told if isinstance(told, int) else next((numbers[each] for each in (told, *ENDS) if each in numbers), None)
    if end is None:
        raise ZooError(f"Nothing in the tokenizer {name} is known to end a document: its eos_token is not told.")
    # All commands wait for this, so it is not packed as tightly as it could be.
    packed = base64.b64encode(zlib.compress(text.encode(), 3)).decode()
    start = beginning(path, numbers)
    return {"name": name, "kind": "tokenizers", "packed": packed, "end": end} | (
        {} if start is None else {"start": start}
    )


def ending(path: Path) -> str | int | None:
    """What ends a document: by its text, or by its number."""
    said = keys(path / SETTINGS).get("eos_token")
    if isinstance(said, dict):
        said = said.get("content")
    number = keys(path / CONFIG).get("eos_token_id")
    if isinstance(number, list):
        number = number[0] if number else None
    return said if isinstance(said, str) else number


def beginning(path: Path, numbers: Mapping[str, int]) -> int | None:
    """The number of what begins a document, as transformers finds it; None where no file of the folder says so.

    A token that tokenizer.json itself puts before every text is found where that file is opened.
    """
    for name in (SETTINGS, SPECIAL):
        said = keys(path / name)
        if "bos_token" in said:
            token = said["bos_token"]
            token = token.get("content") if isinstance(token, dict) else token
            return numbers.get(token) if isinstance(token, str) else None
    return None


def keys(path: Path) -> dict[str, Any]:
    """What a file says; nothing where it is not there."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ZooError(f"{path} is damaged: it holds no keys and values.")
    return found
