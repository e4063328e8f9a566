"""RULER's rules, one by one, read back from the prompts that were made by them."""

from __future__ import annotations

import math
import random
import re
import uuid
from collections import Counter
from itertools import pairwise

import pytest

from zoo.data import tokenizer as tokenizers
from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit
from zoo.evaluate.haystack import GARBAGE
from zoo.evaluate.ruler import Sample, samples
from zoo.evaluate.ruler.needles import scatter
from zoo.evaluate.words import ADJECTIVES, NOUNS, PAIRS, WORDS, pair

TEXT = [
    "The mill stood by the river. Its wheel had not turned for years! Who would mend it? " * 9,
    "No miller lived there now, and the roof let in the rain. Birds nested under the beams. " * 9,
]
NUMBER, KEY = r"\d{7}", r"[a-z]+-[a-z]+"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def made(task: str, length: int = 4096, count: int = 6, seed: int = 0) -> list[Sample]:
    return samples(task, Tokenizer("bytes"), length, count, seed, TEXT)


def told(prompt: str, kind: str = "numbers") -> list[tuple[str, str]]:
    """Keys and values of the needles in a prompt."""
    found = re.findall(rf"One of the special magic {kind} for (\S+) is: (\S+)\.", prompt)
    return [(key, value) for key, value in found]


def middle(prompt: str) -> str:
    """The haystack: between the first and the last line."""
    return prompt.split("\n", 1)[1].rsplit("\n", 1)[0]


# Needles


RULES = {  # haystack, key, value, needles' keys, values each, asked
    "niah_single_1": ("noise", KEY, NUMBER, 1, 1, 1),
    "niah_single_2": ("essay", KEY, NUMBER, 1, 1, 1),
    "niah_single_3": ("essay", KEY, UUID, 1, 1, 1),
    "niah_multikey_1": ("essay", KEY, NUMBER, 4, 1, 1),
    "niah_multikey_2": ("needles", KEY, NUMBER, 1, 1, 1),
    "niah_multikey_3": ("needles", UUID, UUID, 1, 1, 1),
    "niah_multivalue": ("essay", KEY, NUMBER, 1, 4, 1),
    "niah_multiquery": ("essay", KEY, NUMBER, 4, 1, 4),
}


@pytest.mark.parametrize("task", RULES)
def test_needles(task: str) -> None:
    haystack, key, value, count, each, asked = RULES[task]
    kind = "uuids" if value == UUID else "numbers"
    for sample in made(task, 5000, 5):
        needles = told(sample.prompt, kind)
        assert all(re.fullmatch(key, k) and re.fullmatch(value, v) for k, v in needles)
        assert len({v for _, v in needles}) == len(needles)
        assert len(sample.answers) == asked * each
        assert all(sample.prompt.count(answer) == 1 for answer in sample.answers)
        question = sample.prompt[sample.prompt.rindex("\n") :]
        wanted = re.findall(rf"\b{key}\b", question)
        wanted = list(dict.fromkeys(wanted))
        assert len(wanted) == asked
        assert {v for k, v in needles if k in wanted} == set(sample.answers)
        if haystack == "needles":
            assert len({k for k, _ in needles}) == len(needles) > 20
            assert all(line.startswith("One of the special") for line in middle(sample.prompt).split("\n"))
        else:
            assert len(needles) == count * each
            assert len({k for k, _ in needles}) == count
        if haystack == "noise":
            lines = middle(sample.prompt).split("\n")
            assert [line for line in lines if line != GARBAGE] == [f"One of the special magic {kind} for "
                f"{needles[0][0]} is: {needles[0][1]}."]  # fmt: skip
        if haystack == "essay":
            hay = re.sub(r"One of the special magic \w+ for \S+ is: \S+\. ?", "", middle(sample.prompt))
            words = " ".join(TEXT * 9).split()
            assert hay.split() == words[: len(hay.split())]
            before = re.findall(r"(\S+) One of the special magic \w+ for \S+ is: \S+(?= )", middle(sample.prompt))
            assert all(word[-1] in ".!?" for word in before)
        if haystack != "essay":
            assert middle(sample.prompt).count("\n") > 20


def test_uuids_are_of_version_4() -> None:
    (sample,) = made("niah_multikey_3", count=1)
    assert all(uuid.UUID(value).version == 4 for value in sample.answers)


def test_one_answer_is_asked_for_in_the_singular() -> None:
    prompt = made("niah_multikey_1", count=1)[0].prompt
    key = re.findall(KEY, prompt)[-1]
    assert prompt.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert prompt.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? "
        f"The special magic number for {key} mentioned in the provided text is"
    )
    prompt = made("niah_multivalue", count=1)[0].prompt
    key = re.findall(KEY, prompt)[-1]
    assert prompt.startswith("Some special magic numbers are hidden within")
    assert prompt.endswith(
        f"\nWhat are all the special magic numbers for {key} mentioned in the provided text? "
        f"The special magic numbers for {key} mentioned in the provided text are"
    )
    one, two, three, four = re.findall(KEY, made("niah_multiquery", count=1)[0].prompt)[-4:]
    assert f" for {one}, {two}, {three}, and {four} mentioned" in made("niah_multiquery", count=1)[0].prompt


def test_essay_depths_are_spread_over_the_text() -> None:
    depths = []
    for sample in made("niah_single_2", 6000, 200):
        depths.append(middle(sample.prompt).index("One of the special") / len(middle(sample.prompt)))
    assert min(depths) < 0.05
    assert max(depths) > 0.95
    assert 0.4 < sum(depths) / len(depths) < 0.6
    assert 20 < len({round(depth, 2) for depth in depths}) <= 60


def test_needles_need_a_text() -> None:
    for task in RULES:
        if RULES[task][0] == "essay":
            with pytest.raises(Unfit, match="no text was given"):
                samples(task, Tokenizer("bytes"), 4096, 1, 0, [" "])


# Tracing


def test_variable_tracking() -> None:
    places = set()
    shots = set()
    for sample in made("vt", 5000, 8):
        shot, real = sample.prompt.split("Memorize and track the chain(s) of variable assignment hidden in")[1:]
        for part, letters in ((shot, 3), (real, 5)):
            lines = part.split("\n\n", 1)[1].split("\nQuestion:")[0].split("\n")
            chain = [line for line in lines if line != GARBAGE]
            value = re.fullmatch(rf"VAR [A-Z]{{{letters}}} = (\d{{5}})", chain[0])
            assert value
            names = [re.fullmatch(rf"VAR ([A-Z]{{{letters}}}) = .*", line)[1] for line in chain]  # type: ignore[index]
            assert len(set(names)) == 5
            assert chain[1:] == [f"VAR {name} = VAR {given}" for given, name in pairwise(names)]
            told = (
                f"Question: Find all variables that are assigned the value {value[1]} in the text above. "
                "Answer: According to the chain(s) of variable assignment in the text above, "
                f"5 variables are assigned the value {value[1]}, they are:"
            )
            assert told in part
            if part is shot:
                assert part.endswith(f"they are: {' '.join(names)}\n")
                assert 350 < len(part) + 80 <= 500 + 90
                shots.add(part)
            else:
                assert part.endswith("they are:")
                assert names == sample.answers
                places.add(tuple(lines.index(line) for line in chain))
    assert len(places) == len(shots) == 8


# Counting


def listing(prompt: str) -> list[list[str]]:
    """The numbered lists of a prompt, worked example first."""
    lines = [line for line in prompt.split("\n") if line.startswith("1. ")]
    found = [re.findall(r"(\d+)\. (\S+)", line) for line in lines]
    assert all([int(number) for number, _ in words] == list(range(1, len(words) + 1)) for words in found)
    return [[word for _, word in words] for words in found]


@pytest.mark.parametrize(
    ("length", "often", "seldom", "shown", "more", "less"), [(4000, 6, 1, 20, 3, 1), (9000, 30, 3, 40, 10, 3)]
)
def test_common_words(length: int, often: int, seldom: int, shown: int, more: int, less: int) -> None:
    orders = []
    for sample in made("cwe", length, 4):
        shot, real = map(Counter, listing(sample.prompt))
        assert sorted(shot.values()) == [less] * (shown - 10) + [more] * 10
        assert sorted(real.values()) == [seldom] * (len(real) - 10) + [often] * 10
        assert {word for word, count in real.items() if count == often} == set(sample.answers)
        assert shot.keys().isdisjoint(real.keys())
        assert set(shot) | set(real) <= set(WORDS)
        names = [word for word, _ in shot.most_common(10)]
        given = re.findall(r"list are: (.*)\nBelow", sample.prompt)[0]
        assert {word for word, _ in shot.most_common(10)} == set(re.findall(r"\d+\. (\S+)", given)) == set(names)
        assert sample.prompt.endswith(
            "\nQuestion: What are the 10 most common words in the above list?"
            " Answer: The top 10 words that appear most often in the list are:"
        )
        assert (
            sample.prompt.count("Below is a numbered list of words. In these words, some appear more often than") == 2
        )
        orders.append([place for place, word in enumerate(listing(sample.prompt)[1]) if word in sample.answers])
    assert len({tuple(order) for order in orders}) == 4


def test_common_words_of_long_lists_are_pairs() -> None:
    (sample,) = made("cwe", 60_000, 1)
    real = Counter(listing(sample.prompt)[1])
    assert len(real) > len(WORDS) - 40
    assert all(re.fullmatch(KEY, word) for word in real)
    assert sorted(set(real.values())) == [3, 30]
    assert {word for word, count in real.items() if count == 30} == set(sample.answers)


@pytest.mark.parametrize("length", [500, 700, 1000, 4096, 20000])
def test_frequent_words(length: int) -> None:
    orders = set()
    for sample in samples("fwe", tokenizers.train(TEXT, 300), length, 4, 0, []):
        text = re.findall(r"most frequently appeared coded words\. (.*)\nQuestion", sample.prompt)[0].split()
        counts = Counter(text)
        dots = counts.pop("...")
        ranked = counts.most_common()
        assert [word for word, _ in ranked[:3]] == sample.answers
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts)
        assert len(ranked) == 3 or ranked[2][1] > ranked[3][1]  # the answer is well defined
        assert len(counts) + 1 <= length // 50
        words = round(dots * math.pi**2 / 6)  # rank 1 has words / zeta(2)
        for rank, (_, count) in enumerate(ranked, 2):
            assert count in {int((words + shift) / rank**2 / (math.pi**2 / 6)) for shift in (-1, 0, 1, 2)}
        orders.add(tuple(place for place, word in enumerate(text) if word == "..."))
        assert sample.prompt.endswith("three most frequently appeared words are:")
    assert len(orders) == 4


def test_frequent_words_need_four_ranks() -> None:
    with pytest.raises(Unfit, match="make 3 ranks"):
        made("fwe", 199)


def test_words() -> None:
    assert len(set(WORDS)) == len(WORDS) == len(ADJECTIVES) + len(NOUNS) > 900
    assert all(re.fullmatch("[a-z]{3,}", word) for word in WORDS)
    assert not [(one, other) for one in WORDS for other in WORDS if one != other and one in other]
    names = {pair(number) for number in range(PAIRS)}
    assert len(names) == PAIRS


def test_scatter_keeps_orders_and_is_even() -> None:
    rng = random.Random(0)
    seen = Counter("".join(scatter(rng, list("ab"), list("XY"))) for _ in range(3000))
    assert len(seen) == 6
    assert all(re.sub("[ab]", "", way) == "XY" and re.sub("[XY]", "", way) == "ab" for way in seen)
    assert all(count == pytest.approx(500, abs=100) for count in seen.values())
    assert scatter(rng, [], ["X"]) == ["X"]
