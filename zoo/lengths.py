"""Lengths as people write them: 512, 1k, 32k, 1m, where k is 1024."""

from __future__ import annotations

import re

from zoo.errors import ZooError

UNITS = {"": 1, "k": 2**10, "m": 2**20}


def length(word: str) -> int:
    """The number of tokens that a word such as 32k stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", word.strip())
    value = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    if match is None or value < 1 or value != int(value):
        raise ZooError(f"{word!r} is no length. Lengths are written 512, 1k (1024), 32k, 1m.")
    return int(value)


def lengths(words: str) -> tuple[int, ...]:
    """The numbers of a list such as 512,1k,2k, rising and each once."""
    return tuple(sorted({length(word) for word in words.split(",") if word.strip()}))


def short(tokens: int) -> str:
    """1024 as 1k; a number that is no multiple of a unit as itself."""
    for unit in ("m", "k"):
        if tokens and tokens % UNITS[unit] == 0:
            return f"{tokens // UNITS[unit]}{unit}"
    return str(tokens)
