"""Can it find one sentence in a long text? The passkey in garbage, and needles in a haystack of real text.

Both read a whole prompt that fills the wanted length to a character, and look for numbers in the greedy answer, so that
nothing needs a judge. Necessary, not sufficient: a model may find a single needle everywhere and still fail at
everything harder.
"""

from __future__ import annotations

import random
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit, ZooError
from zoo.evaluate.haystack import END, GARBAGE, fill, insert
from zoo.evaluate.intervals import wilson
from zoo.evaluate.ruler import score
from zoo.evaluate.ruler.needles import TOKENS, Names, frame
from zoo.evaluate.ruler.needles import needle as sentence
from zoo.evaluate.ruler.sample import budget

if TYPE_CHECKING:
    from zoo.evaluate.reader import Reader
    from zoo.evaluate.setting import Setting

ANSWER = 10
"""Tokens of a passkey's answer at most."""


def passkey(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """Passkey retrieval (Mohtashami & Jaggi 2023, arXiv:2305.16300): right where the first number said is the key.

    For each of `setting.depths`, `setting.samples` keys from 1 to 50000, or of at most `setting.digits` digits. Prompt
    and 10 tokens of answer fill `length`. Garbage is counted in characters, and the depth is the share of it that
    stands before the key; the paper draws the depth instead.
    """
    cells = []
    for depth in _depths(reader, length, setting):
        right = 0
        for trial in range(setting.samples):
            prompt, key = question(
                reader.tokenizer, length, depth, _rng(setting, "passkey", length, depth, trial), setting.digits
            )
            said = reader.answer(prompt, ANSWER, stop=lambda text: re.search("[0-9][^0-9]", text) is not None)
            first = re.search("[0-9]+", said)
            right += first is not None and first.group() == key
        cells.append(_cell(right, setting.samples, depth=depth))
    return {**_total(cells), "depths": cells}


def question(
    tokenizer: Tokenizer, length: int, depth: float, rng: random.Random, digits: int | None = None
) -> tuple[list[int], str]:
    """One prompt, as token ids, and its key."""
    if digits is not None and not 1 <= digits < ANSWER:
        raise ZooError(f"A passkey has 1 to {ANSWER - 1} digits, and {digits} were asked for.")
    key = rng.randint(1, 50000 if digits is None else 10**digits - 1)

    def ids(characters: int) -> list[int]:
        before = round(depth * characters)
        garbage = f"{GARBAGE} " * (characters // len(GARBAGE) + 1)
        lines = [
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
            "I will quiz you about the important information there.",
            garbage[:before],
            f"The pass key is {key}. Remember it. {key} is the pass key.",
            garbage[: characters - before],
            "What is the pass key? The pass key is",
        ]
        return tokenizer.encode("\n".join(lines))

    characters = fill(lambda count: len(ids(count)), length - ANSWER)
    if characters is None:
        raise Unfit(
            f"The passkey's bare prompt takes {len(ids(0))} tokens and its answer {ANSWER}; the length is {length}."
        )
    return ids(characters), str(key)


def needle(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """Needles in a haystack (after Kamradt 2023), over a grid of depths, with numbers in place of a judge.

    The haystack is a stretch of `setting.texts`, another one in each trial. The first of `setting.needles` stands at
    the depth, at the end of a sentence, the others evenly from there to the end; all are asked for at once, in the
    words of RULER's needle tasks. A trial is right when every number is found; `score` is the share of numbers found.
    """
    if setting.needles < 1:
        raise ZooError(f"A haystack holds 1 needle or more, and {setting.needles} were asked for.")
    depths, text = _depths(reader, length, setting), "\n\n".join(setting.texts)
    if not text.strip():
        raise Unfit("Needles are hidden in a text, and none was given.")
    cells = []
    for depth in depths:
        found = []
        for trial in range(setting.samples):
            rng = _rng(setting, "needle", length, depth, trial)
            prompt, answers, tokens = hidden(reader.tokenizer, length, depth, rng, text, setting.needles)
            said = reader.answer(prompt, tokens, stop=partial(_complete, answers))
            found.append(score("needle", said, answers))
        right = sum(share == 1 for share in found)
        cells.append(_cell(right, setting.samples, depth=depth) | {"score": sum(found) / len(found)})
    mean = sum(cell["score"] for cell in cells) / len(cells)
    return {**_total(cells), "score": mean, "needles": setting.needles, "depths": cells}


def hidden(
    tokenizer: Tokenizer, length: int, depth: float, rng: random.Random, text: str, needles: int
) -> tuple[list[int], list[str], int]:
    """One prompt, as token ids, the numbers that it hides, and the tokens left for the answer."""
    names = Names(rng)
    keys = [names.draw("words") for _ in range(needles)]
    values = [names.draw("numbers") for _ in range(needles)]
    lines = [
        (depth + number * (1 - depth) / needles, sentence(key, value))
        for number, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    before, after = frame(keys, "numbers", needles == 1)
    tokens = budget(tokenizer, ", ".join(values), TOKENS, length)
    end = END.search(text, rng.randrange(len(text)))
    start = end.end() if end else 0

    def ids(characters: int) -> list[int]:
        hay, rounds = text[start : start + characters], -(-characters // len(text))
        if len(hay) < characters:
            hay = (text[start:] + "\n\n" + f"{text}\n\n" * rounds)[:characters]
        return tokenizer.encode(before + insert(hay.strip(), lines) + after)

    characters = fill(lambda count: len(ids(count)), length - tokens)
    if characters is None:
        raise Unfit(
            f"Needles without a haystack take {len(ids(0))} tokens and the answer {tokens}; the length is {length}."
        )
    return ids(characters), values, tokens


def _complete(answers: list[str], said: str) -> bool:
    return score("needle", said, answers) == 1


def _depths(reader: Reader, length: int, setting: Setting) -> tuple[float, ...]:
    """The depths, after a look at whether there is anything to measure."""
    if (reason := reader.refusal(length)) is not None:
        raise Unfit(reason)
    if not setting.depths or not all(0 <= depth <= 1 for depth in setting.depths):
        raise ZooError(f"Depths are shares of the text from 0 to 1, at least one, and got {list(setting.depths)}.")
    return setting.depths


def _rng(setting: Setting, *cell: object) -> random.Random:
    return random.Random(" ".join(map(str, (setting.seed, *cell))))


def _cell(right: int, trials: int, **place: float) -> dict[str, Any]:
    low, high = wilson(right, trials)
    return {**place, "right": right, "trials": trials, "low": low, "high": high}


def _total(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return _cell(sum(cell["right"] for cell in cells), sum(cell["trials"] for cell in cells))
