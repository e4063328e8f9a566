"""Lengths as people write them: 512, 1k, 32k, 1m tokens, where k is 1024; images of 384px, or of 384x512px."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zoo.errors import ZooError

UNITS = {"": 1, "k": 2**10, "m": 2**20}
MOST = 2**30
"""Tokens; more is a slip of the hand."""
SIDE = 2**15
"""Pixels, likewise."""
Size = int | list[int]
"""Tokens of a text, or height and width of an image in pixels."""


def length(word: str) -> int:
    """The number of tokens that a word such as 32k stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", word.strip())
    value = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    if match is None or not 1 <= value <= MOST or value != int(value):
        raise ZooError(f"{word!r} is no length. Lengths are written 512, 1k (1024), 32k, 1m; 1024m is the largest.")
    return int(value)


def size(word: str) -> Size:
    """The tokens that a word such as 32k stands for, or the height and width of 384px or 384x512px."""
    if not word.strip().endswith("px"):
        return length(word)
    match = re.fullmatch(r"(\d+)(?:x(\d+))?px", word.strip())
    sides = [int(match[1]), int(match[2] or match[1])] if match else [0]
    if not 1 <= min(sides) <= max(sides) <= SIDE:
        raise ZooError(
            f"{word!r} is no size of images. Sizes are written 384px, or 384x512px for height and width; {SIDE}px is "
            "the largest."
        )
    return sides


def lengths(words: str) -> tuple[int, ...]:
    """The numbers of a list such as 512,1k,2k, rising and each once."""
    found = tuple(sorted({length(word) for word in words.split(",") if word.strip()}))
    if not found:
        raise ZooError(f"There is no length in {words!r}. Lengths are written 512,1k,2k.")
    return found


def short(tokens: int | Sequence[int]) -> str:
    """1024 as 1k, a number that is no multiple of a unit as itself; height and width as 384px or 384x512px."""
    if not isinstance(tokens, int):
        return "x".join(map(str, tokens if len(set(tokens)) > 1 else tokens[:1])) + "px"
    for unit in ("m", "k"):
        if tokens and tokens % UNITS[unit] == 0:
            return f"{tokens // UNITS[unit]}{unit}"
    return str(tokens)
