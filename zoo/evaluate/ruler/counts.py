"""RULER's two tasks of counting: which words are the most frequent, in a list of English ones or a text of coded ones?

The reference shuffles every sample with one fixed seed, so that its words stand at the same places in all of them;
here each sample has its own order.
"""

from __future__ import annotations

import itertools
import math
import random
import string

from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit
from zoo.evaluate.ruler.needles import Names
from zoo.evaluate.ruler.sample import FULL, Draft
from zoo.evaluate.words import PAIRS, WORDS

COMMON_TOKENS = 120
CODED_TOKENS = 50
ANSWERS = 10


def listed(rng: random.Random, common: list[str], others: list[str], often: int, seldom: int) -> str:
    """The numbered list with its task and question."""
    words = common * often + others * seldom
    rng.shuffle(words)
    return (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
        + numbered(words)
        + f"\nQuestion: What are the {ANSWERS} most common words in the above list?"
        + f" Answer: The top {ANSWERS} words that appear most often in the list are:"
    )


def numbered(words: list[str]) -> str:
    """'1. one 2. two'."""
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


def common(rng: random.Random, tokenizer: Tokenizer, length: int) -> Draft:
    """Common words: ten of them stand 30 times in the list and all others 3 times; below 4096 tokens 6 times and once.

    After an example with 40 words, 10 and 3 times; below 4096 tokens with 20, 3 times and once. Its units are the
    different words. Where the zoo's words do not fill the length, all words of the list are adjective-noun pairs.
    """
    shown, often, seldom, more, less = (40, 30, 3, 10, 3) if length >= FULL else (20, 6, 1, 3, 1)
    words = rng.sample(WORDS, len(WORDS))
    shot, words = words[:shown], words[shown:]
    first = f"{listed(rng, shot[:ANSWERS], shot[ANSWERS:], more, less)} {numbered(shot[:ANSWERS])}\n"
    names, order = Names(rng), rng.random()

    def build(units: int) -> str:
        while len(words) < units:
            words.append(names.draw("words"))
        return first + listed(random.Random(order), words[:ANSWERS], words[ANSWERS:units], often, seldom)

    most = len(words)
    if len(tokenizer.encode(build(most))) + COMMON_TOKENS <= length:
        words, most = [names.draw("words") for _ in range(ANSWERS)], PAIRS // 4
    answers = words[:ANSWERS]
    return Draft(build, answers, numbered(answers), least=2 * ANSWERS, most=most)


def occurrences(units: int, ranks: int) -> list[int]:
    """How often the word of each rank occurs among so many: units / rank^2 / zeta(2), rounded down."""
    return [int(units / rank**2 / (math.pi**2 / 6)) for rank in range(1, ranks + 1)]


def told(counts: list[int]) -> bool:
    """Whether ranks 2 to 4 are the most frequent after rank 1: rank 4 is there, and more often than rank 5."""
    return counts[3] > (counts[4] if len(counts) > 4 else 0)


def coded(rng: random.Random, length: int) -> Draft:
    """Frequent words: words of 6 random letters, as often as Zipf's law with exponent 2 has it, the first one a '...'.

    There is a rank for each 50 tokens of the length, and the answers are those of ranks 2 to 4. Its units are words.
    At few words, rounding may make ranks 4 and 5 equally frequent; such numbers of words are passed over.
    """
    ranks = length // 50
    if ranks < 4:
        raise Unfit(f"It has a word for each 50 tokens and asks for ranks 2 to 4; {length} tokens make {ranks} ranks.")
    words = ["..."]
    while len(words) < ranks:
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in words:
            words.append(word)
    order = rng.random()

    def build(units: int) -> str:
        while not told(counts := occurrences(units, ranks)):
            units -= 1
        text = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
        random.Random(order).shuffle(text)
        return (
            "Read the following coded text and track the frequency of each coded word. "
            f"Find the three most frequently appeared coded words. {' '.join(text)}"
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
            "What are the three most frequently appeared words in the above coded text?"
            " Answer: According to the coded text above, the three most frequently appeared words are:"
        )

    least = next(units for units in itertools.count(1) if told(occurrences(units, ranks)))
    return Draft(build, words[1:4], ", ".join(words[1:4]), least)
