"""RULER's variable tracking: a number is handed from name to name in lines of noise; which names have it?

After one worked example with shorter names, which is new in every sample. RULER's example takes 500 tokens; here it
takes at most an eighth of the length and 500, and no noise at all where even that is too little.
"""

from __future__ import annotations

import random
import string

from zoo.data.tokenizer import Tokenizer
from zoo.evaluate.haystack import GARBAGE, fill
from zoo.evaluate.ruler.needles import scatter
from zoo.evaluate.ruler.sample import Draft

TOKENS = 30
HOPS = 4
SHOT = 500


def chain(rng: random.Random, letters: int) -> tuple[str, list[str], list[str]]:
    """A number of 5 digits, the names that it is handed to, and the lines that hand it on."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    value = str(rng.randint(10000, 99999))
    lines = [f"VAR {name} = {given}" for name, given in zip(names, [value, *(f"VAR {n}" for n in names)], strict=False)]
    return value, names, lines


def ask(lines: list[str], value: str) -> str:
    """The lines with their task and question."""
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        + "\n".join(lines)
        + f"\nQuestion: Find all variables that are assigned the value {value} in the text above."
        + f" Answer: According to the chain(s) of variable assignment in the text above, {HOPS + 1} variables are "
        + f"assigned the value {value}, they are:"
    )


def draft(rng: random.Random, tokenizer: Tokenizer, length: int) -> Draft:
    """One question of variable tracking: lines of noise are its units."""
    shown, given, shot = chain(rng, 3)
    value, names, lines = chain(rng, 5)
    while value == shown:
        value, names, lines = chain(rng, 5)
    places, others = rng.random(), rng.random()

    def example(units: int) -> str:
        noisy = scatter(random.Random(others), [GARBAGE] * units, shot)
        return f"{ask(noisy, shown)} {' '.join(given)}\n"

    units = fill(lambda units: len(tokenizer.encode(example(units))), min(SHOT, length // 8))
    first = example(units or 0)
    return Draft(
        lambda units: first + ask(scatter(random.Random(places), [GARBAGE] * units, lines), value),
        names,
        " ".join(names),
        least=1,
    )
