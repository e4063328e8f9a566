"""Text of a wanted number of tokens: how much of it fits, and where a sentence can be put into it.

Token counts do not add up over the borders of texts, so the size is searched with the tokenizer at hand on the whole
prompt. The search is an interpolation between a size that fits and one that does not; each step is checked by
counting, at most a few dozen are needed, and where nothing fits it says so instead of trying for ever.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence

GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The filler of Mohtashami & Jaggi 2023 (arXiv:2305.16300), which RULER (arXiv:2404.06654) uses too."""

END = re.compile(r"""[.!?]["'”’)\]]*(?=\s+[^\sa-z]|\s*\Z)|\n(?=\s*\n)""")
"""Where a sentence ends: after its mark and closing quotes, if no small letter follows; or at a blank line."""


def fill(cost: Callable[[int], int], room: int, least: int = 0, most: int | None = None) -> int | None:
    """How many units fit: the count's cost is within `room`, and that of one more is not, or is not allowed.

    Args:
        cost: Tokens of the prompt with so many units. Where it falls now and then as units are added (tokens merge),
            the answer still fits, but a greater one may too.
        room: Tokens at most.
        least, most: Limits of the count. By default at most a thousand units a token.

    Returns:
        None where not even the least fits.
    """
    most = max(least, 1000 * room) if most is None else most
    low, spent = least, cost(least)
    if spent > room:
        return None
    high, above, step = most + 1, 0, 16
    while low < most and high > most:
        tried = min(most, low + step)
        if (tokens := cost(tried)) > room:
            high, above = tried, tokens
            break
        rate = max(tokens - spent, 0) / (tried - low)
        ahead = int(1.01 * (room - tokens) / rate) + 1 if rate else 64 * step
        low, spent, step = tried, tokens, max(1, min(ahead, 64 * step))
    for turn in itertools.count():
        if high - low <= 1 or high > most:
            return low
        middle = (low + high) // 2
        if turn % 3 < 2:
            middle = low + int((high - low) * (room - spent + 0.5) / (above - spent))
        middle = min(max(middle, low + 1), high - 1)
        if (tokens := cost(middle)) > room:
            high, above = middle, tokens
        else:
            low, spent = middle, tokens
    raise AssertionError


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    ends = [match.end() for match in END.finditer(text)]
    parts = [text[start:stop].strip() for start, stop in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [part for part in parts if part]


def between(text: str, depth: float) -> int:
    """Where to put a sentence that should stand at a depth from 0 to 1, in characters from the start of a text.

    At the end of the last sentence that is over by then (as in Kamradt 2023, LLMTest_NeedleInAHaystack), or at the
    start; for depth 1 at the end of the text. A text in which no sentence ends is parted at the last white space.
    """
    place = int(depth * len(text))
    if place >= len(text):
        return len(text)
    ends = [match.end() for match in END.finditer(text)]
    if not ends:
        return max(text.rfind(" ", 0, place), 0)
    return max((end for end in ends if end <= place), default=0)


def insert(text: str, needles: Sequence[tuple[float, str]]) -> str:
    """The text with each needle at its depth, between two sentences; needles at one place keep their order."""
    places = sorted(((between(text, depth), number) for number, (depth, _) in enumerate(needles)), reverse=True)
    for place, number in places:
        before, after = text[:place].rstrip(), text[place:].lstrip()
        text = " ".join(part for part in (before, needles[number][1], after) if part)
    return text


class Essay:
    """The words of texts one after the other, from the start again when they end; read only as far as needed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.words: list[str] = []
        self.left = iter(texts)

    def take(self, count: int) -> str | None:
        """The first `count` words, joined by spaces; None where there are no words."""
        while len(self.words) < max(count, 1) and (text := next(self.left, None)) is not None:
            self.words += text.split()
        if not self.words:
            return None
        rounds = -(-count // len(self.words))
        return " ".join((self.words * rounds)[:count])
