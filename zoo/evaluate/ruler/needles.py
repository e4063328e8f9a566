"""RULER's eight needle tasks: sentences that give magic numbers for keys, hidden in noise, in essays, or in their like.

Rules: Hsieh et al. 2024 (arXiv:2404.06654), section 3 and appendices. Keys are all different, and so are values: the
queried one is never given twice, and a value is nowhere by accident, which the reference leaves to chance.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from zoo.errors import Unfit
from zoo.evaluate.haystack import GARBAGE, Essay, sentences
from zoo.evaluate.ruler.sample import Draft
from zoo.evaluate.words import PAIRS, pair

TOKENS = 128
DEPTHS = [round(100 * place / 39) / 100 for place in range(40)]
"""Where needles may stand in an essay: 40 depths from 0 to 1 in whole percents."""


@dataclass(frozen=True)
class Kind:
    """What distinguishes the eight: haystack (noise, essay or needles), what keys and values are, and how many."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    count: int = 1
    each: int = 1
    asked: int = 1


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("essay"),
    "niah_single_3": Kind("essay", values="uuids"),
    "niah_multikey_1": Kind("essay", count=4),
    "niah_multikey_2": Kind("needles"),
    "niah_multikey_3": Kind("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Kind("essay", each=4),
    "niah_multiquery": Kind("essay", count=4, asked=4),
}


def needle(key: str, value: str, values: str = "numbers") -> str:
    """The sentence that tells a value."""
    return f"One of the special magic {values} for {key} is: {value}."


def frame(keys: list[str], values: str, single: bool) -> tuple[str, str]:
    """What stands before and after the haystack: the task, and the question with the beginning of its answer."""
    asked = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    noun = values[:-1] if single else values
    some, are, ask = ("A", "is", "What is the") if single else ("Some", "are", "What are all the")
    return (
        f"{some} special magic {noun} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {noun} afterwards.\n",
        f"\n{ask} special magic {noun} for {asked} mentioned in the provided text? "
        f"The special magic {noun} for {asked} mentioned in the provided text {are}",
    )


class Names:
    """Draws of keys and values, none of them twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.seen: set[str] = set()

    def draw(self, kind: str) -> str:
        """A number of 7 digits, a UUID of version 4, or an adjective-noun pair (kind 'words')."""
        if kind == "words" and len(self.seen) > PAIRS // 2:
            raise Unfit(f"It takes more than {PAIRS // 4} keys, and the zoo's words give {PAIRS} names at most.")
        while (drawn := self._once(kind)) in self.seen:
            pass
        self.seen.add(drawn)
        return drawn

    def _once(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.rng.randint(10**6, 10**7 - 1))
        if kind == "uuids":
            return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        return pair(self.rng.randrange(PAIRS))


def scatter(rng: random.Random, haystack: list[str], lines: list[str]) -> list[str]:
    """The lines among those of the haystack, in their order, every way of mixing them equally likely."""
    places = set(rng.sample(range(len(haystack) + len(lines)), len(lines)))
    hay, hidden = iter(haystack), iter(lines)
    return [next(hidden if place in places else hay) for place in range(len(haystack) + len(lines))]


def draft(task: str, rng: random.Random, essay: Essay) -> Draft:
    """One question of a needle task."""
    kind, names = KINDS[task], Names(rng)
    keys = [names.draw(kind.keys) for _ in range(kind.count)]
    values = [[names.draw(kind.values) for _ in range(kind.each)] for _ in keys]
    needles = [needle(key, value, kind.values) for key, own in zip(keys, values, strict=True) for value in own]
    rng.shuffle(needles)
    asked = rng.sample(range(kind.count), kind.asked)
    answers = [value for number in asked for value in values[number]]
    before, after = frame([keys[number] for number in asked], kind.values, len(answers) == 1)
    build, least = _haystack(kind, rng, needles, names, essay)
    return Draft(lambda units: before + build(units) + after, answers, ", ".join(answers), least)


def _haystack(
    kind: Kind, rng: random.Random, needles: list[str], names: Names, essay: Essay
) -> tuple[Callable[[int], str], int]:
    """The haystack of so many units with its needles, and the least units; one more unit changes nothing before it."""
    if kind.haystack == "essay":
        depths = sorted(rng.sample(DEPTHS, len(needles)))
        if essay.take(1) is None:
            raise Unfit("It hides needles in essays, and no text was given.")

        def essays(units: int) -> str:
            found = sentences(essay.take(units) or "")
            for depth, line in reversed(list(zip(depths, needles, strict=True))):
                found.insert(int(depth * len(found)), line)
            return " ".join(found)

        return essays, 0
    places, hay = rng.random(), [GARBAGE]

    def lines(units: int) -> str:
        while kind.haystack == "needles" and len(hay) <= units:
            hay.append(needle(names.draw(kind.keys), names.draw(kind.values), kind.values))
        haystack = hay[1 : units + 1] if kind.haystack == "needles" else hay * units
        return "\n".join(scatter(random.Random(places), haystack, needles))

    return lines, 1
