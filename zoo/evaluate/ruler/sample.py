"""From a task's rule to a prompt of the wanted length: as many units of haystack as fit beside the answer.

`length` counts the prompt and the tokens left for the answer, of which RULER fixes how many. Beside a prompt of a few
hundred tokens that would be half of it, so that below 4096 tokens the answer gets twice what it needs and 8 more, and
not more than RULER gives. An answer that takes more tokens than RULER gives (in bytes) gets what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit
from zoo.evaluate.haystack import fill

FULL = 4096
"""Tokens from which on a task is as RULER has it; it was made for 4096 and more."""


@dataclass(frozen=True)
class Sample:
    """One question: the prompt, the references that its score looks for, and the most tokens of the answer."""

    prompt: str
    answers: list[str]
    tokens: int


@dataclass(frozen=True)
class Draft:
    """One question whose haystack has no size yet.

    Args:
        build: The prompt with so many units of haystack.
        answers: References.
        written: The answer as a model would write it, for its tokens.
        least, most: Units.
    """

    build: Callable[[int], str]
    answers: list[str]
    written: str
    least: int = 0
    most: int | None = None


def budget(tokenizer: Tokenizer, written: str, official: int, length: int) -> int:
    """Tokens left for an answer that is `written` like this."""
    need = len(tokenizer.encode(f" {written}"))
    return max(need, min(official, 2 * need + 8) if length < FULL else official)


def fitted(draft: Draft, tokenizer: Tokenizer, length: int, official: int) -> Sample:
    """The draft with the most haystack that fits `length`, or `Unfit`."""
    tokens = budget(tokenizer, draft.written, official, length)

    def cost(units: int) -> int:
        return len(tokenizer.encode(draft.build(units)))

    units = fill(cost, length - tokens, draft.least, draft.most)
    if units is None:
        need = cost(draft.least) + tokens
        raise Unfit(f"It takes at least {need} tokens, {tokens} of them for the answer, and the length is {length}.")
    return Sample(draft.build(units), draft.answers, tokens)
