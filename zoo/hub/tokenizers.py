"""The tokenizer of a Hugging Face folder, by their library `tokenizers`, with the interface of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.hub.foreign import Foreign

FILE, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"


def read(path: Path, vocabulary: int) -> Foreign | None:
    """The tokenizer of a folder; None where it has none.

    Raises ZooError where it is damaged, or gives numbers that the model does not have.

    Args:
        path: The folder.
        vocabulary: Numbers that the model has.
    """
    if not (path / FILE).is_file():
        return None
    text = (path / FILE).read_text(encoding="utf-8")
    found = Foreign(path.resolve().name, text, end=end(path))
    if found.vocabulary > vocabulary:
        raise ZooError(
            f"{path / FILE} does not belong to the model: it has {found.vocabulary} tokens, and the model {vocabulary}."
        )
    return found


def end(path: Path) -> str | int | None:
    """What ends a document: by its text, or by its number."""
    said = keys(path / SETTINGS).get("eos_token")
    if isinstance(said, dict):
        said = said.get("content")
    number = keys(path / CONFIG).get("eos_token_id")
    if isinstance(number, list):
        number = number[0] if number else None
    return said if isinstance(said, str) else number


def keys(path: Path) -> dict[str, Any]:
    """What a file says; nothing where it is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ZooError(f"{path} is damaged: {str(error)[:160]}.") from None
    return found if isinstance(found, dict) else {}
