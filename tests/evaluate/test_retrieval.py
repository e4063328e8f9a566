"""Passkey and needle: what the prompts are, how long they are, and that the scores are those of known readers."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken.registry
import torch
from torch.nn import functional

from zoo import plugins
from zoo.data import tokenizer as tokenizers
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import Unfit, ZooError
from zoo.evaluate.haystack import GARBAGE, Essay, between, fill, insert, sentences
from zoo.evaluate.intervals import wilson
from zoo.evaluate.reader import Reader
from zoo.evaluate.retrieval import ANSWER, hidden, needle, passkey, question
from zoo.evaluate.setting import Setting

TEXT = (
    'The harbour was quiet in the morning. "Where is the ship?" asked the boy! Nobody knew. It had left at night, '
    "when the wind turned, and left no word.\n\nYears went by. The boy grew up and built boats of his own, small "
    "ones first (nobody bought them). Then he built larger ones. "
)


@pytest.fixture(scope="module", params=["bytes", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    if request.param == "bytes":
        yield Tokenizer("bytes")
    elif request.param == "bpe":
        yield tokenizers.train([TEXT, GARBAGE, Path(__file__).read_text()], 500)
    else:
        if "ZOO_SHARED" not in os.environ:
            pytest.skip("ZOO_SHARED is not set: GPT-2's tokenizer is not at hand")
        cache = tmp_path_factory.mktemp("tiktoken")
        shutil.copytree(f"{os.environ['ZOO_SHARED']}/data/tokenizers/tiktoken_cache", cache, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
            patch.setattr(tiktoken.registry, "ENCODINGS", {})
            yield tokenizers.load("gpt2")


class Fake:
    """A reader that answers with a function of the prompt, one token after the other."""

    def __init__(self, answers: Callable[[str], str], tokenizer: Tokenizer | None = None, most: int = 10**9) -> None:
        self.answers, self.tokenizer, self.most = answers, tokenizer or Tokenizer("bytes"), most
        self.prompts: list[str] = []
        self.asked: list[int] = []
        self.said: list[str] = []

    def refusal(self, tokens: int) -> str | None:
        return None if tokens <= self.most else f"The table ends at {self.most}."

    def answer(self, prompt: list[int], tokens: int, *, stop: Callable[[str], bool] | None = None) -> str:
        self.prompts.append(self.tokenizer.decode(prompt))
        self.asked.append(len(prompt) + tokens)
        ids = self.tokenizer.encode(self.answers(self.prompts[-1]))[:tokens]
        counts = range(1, len(ids) + 1)
        ends = (n for n in counts if stop is not None and stop(self.tokenizer.decode(ids[:n])))
        self.said.append(self.tokenizer.decode(ids[: next(ends, len(ids))]))
        return self.said[-1]


def solver(prompt: str) -> str:
    found = re.search(r"The pass key is (\d+)\. Remember", prompt)
    assert found
    return f" {found[1]}. The grass is green."


def measure(reader: Fake, length: int = 600, **settings: Any) -> dict[str, Any]:
    return passkey(reader, length, Setting(**{"samples": 2, **settings}))  # type: ignore[arg-type]


# Filling


@pytest.mark.parametrize("room", [0, 1, 7, 100, 5000, 10**6])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0, 24.6])
@pytest.mark.parametrize("least", [0, 3])
def test_fill_finds_the_last_that_fits(room: int, rate: float, least: int) -> None:
    calls = []

    def cost(count: int) -> int:
        calls.append(count)
        return 5 + int(rate * count)

    fits = [count for count in (least, int((room - 5) / rate)) if count >= least and 5 + int(rate * count) <= room]
    best = max(fits, default=None)
    if best is not None:
        while 5 + int(rate * (best + 1)) <= room:
            best += 1
    assert fill(cost, room, least) == best
    assert len(calls) <= 40


def test_fill_ends_whatever_the_cost() -> None:
    assert fill(lambda count: 3, 2) is None
    assert fill(lambda count: 3, 3, most=50) == 50
    assert fill(lambda count: 3, 3) == 3000  # costs nothing: the limit
    assert fill(lambda count: 0, 0) == 0
    assert fill(lambda count: 1, 5, least=4, most=4) == 4
    rng = random.Random(0)
    noise = [rng.randint(-3, 3) for _ in range(3000)]
    found = fill(lambda count: count + noise[count], 1000, most=2999)
    assert found is not None
    assert found + noise[found] <= 1000 < found + 1 + noise[found + 1]


def test_sentences() -> None:
    found = sentences(TEXT)
    assert found[:3] == ["The harbour was quiet in the morning.", '"Where is the ship?" asked the boy!', "Nobody knew."]
    assert " ".join(found).split() == TEXT.split()
    assert len(found) == 7
    assert sentences("No end, at 3.5 or e.g.that") == ["No end, at 3.5 or e.g.that"]
    assert sentences("a heading\n\nmore") == ["a heading", "more"]
    assert sentences(" \n ") == []


def test_between_sentences() -> None:
    text = "One two. Three four. Five six."
    assert [between(text, depth) for depth in (0, 0.1, 0.5, 0.9, 1)] == [0, 0, 8, 20, 30]
    assert between("words that never end in a mark", 0.5) == 10
    assert between("word", 0.5) == 0
    assert insert(text, [(0.5, "A."), (1, "Z.")]) == "One two. A. Three four. Five six. Z."
    assert insert(text, [(0.3, "A."), (0.5, "B."), (0.0, "C.")]) == "C. One two. A. B. Three four. Five six."
    assert insert("", [(0.5, "A."), (0.5, "B.")]) == "A. B."


def test_essay_goes_round() -> None:
    essay = Essay(iter(["a b", " ", "c"]))
    assert [essay.take(count) for count in (0, 2, 3, 8)] == ["", "a b", "a b c", "a b c a b c a b"]
    assert essay.take(1) == "a"
    assert Essay([" ", ""]).take(3) is None


# The passkey


def test_the_papers_prompt() -> None:
    bytes_ = Tokenizer("bytes")
    ids, key = question(bytes_, 1000, 0.25, random.Random(3))
    lines = bytes_.decode(ids).split("\n")
    assert len(lines) == 5
    assert lines[0] == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there."
    )
    assert lines[2] == f"The pass key is {key}. Remember it. {key} is the pass key."
    assert lines[4] == "What is the pass key? The pass key is"
    endless = " ".join([GARBAGE] * 20)
    assert endless.startswith(lines[1])
    assert endless.startswith(lines[3])
    assert len(lines[1]) == round(0.25 * (len(lines[1]) + len(lines[3])))
    assert len(ids) + ANSWER == 1000  # bytes fill a length to the last


def test_keys_are_the_papers() -> None:
    keys = [int(question(Tokenizer("bytes"), 300, 0.5, random.Random(seed))[1]) for seed in range(400)]
    assert 1 <= min(keys) < 1000
    assert 49000 < max(keys) <= 50000
    short = {int(question(Tokenizer("bytes"), 300, 0.5, random.Random(seed), 1)[1]) for seed in range(200)}
    assert short == set(range(1, 10))
    for digits in (0, ANSWER):
        with pytest.raises(ZooError, match="1 to 9 digits"):
            question(Tokenizer("bytes"), 300, 0.5, random.Random(0), digits)


def test_fills_and_never_exceeds(tokenizer: Tokenizer) -> None:
    lengths = [*range(270, 300), 511, 512, 1000, 2049]
    for trial, length in enumerate(lengths):
        ids, _ = question(tokenizer, length, trial % 5 / 4, random.Random(trial))
        assert length - 3 <= len(ids) + ANSWER <= length


def test_a_prompt_that_does_not_fit_says_what_it_takes(tokenizer: Tokenizer) -> None:
    with pytest.raises(Unfit, match="takes") as caught:
        question(tokenizer, 20, 0.5, random.Random(5))
    bare = int(re.findall(r"takes (\d+) tokens", str(caught.value))[0])
    ids, _ = question(tokenizer, bare + ANSWER, 0.5, random.Random(5))
    assert len(ids) == bare
    with pytest.raises(Unfit):
        question(tokenizer, bare + ANSWER - 1, 0.5, random.Random(5))


def test_equal_seeds_equal_prompts() -> None:
    def prompts(**settings: Any) -> list[str]:
        reader = Fake(solver)
        measure(reader, **settings)
        return reader.prompts

    first = prompts(depths=(0.0, 1.0))
    assert first == prompts(depths=(0.0, 1.0))
    assert len(set(first)) == 4
    assert first[2:] == prompts(depths=(1.0,))  # a cell does not depend on other cells
    assert first[:2] == prompts(depths=(0.0,), samples=3)[:2]
    assert not set(first) & set(prompts(depths=(0.0, 1.0), seed=1))


def test_a_solver_has_all_and_a_mute_nothing(tokenizer: Tokenizer) -> None:
    value = measure(Fake(solver, tokenizer), 512, samples=3)
    assert (value["right"], value["trials"]) == (15, 15)
    assert (value["low"], value["high"]) == wilson(15, 15)
    assert [cell["depth"] for cell in value["depths"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all((cell["right"], cell["trials"]) == (3, 3) for cell in value["depths"])
    assert all((cell["low"], cell["high"]) == wilson(3, 3) for cell in value["depths"])
    mute = measure(Fake(lambda prompt: "", tokenizer), 512, samples=3)
    assert (mute["right"], mute["low"], mute["high"]) == (0, *wilson(0, 15))


@pytest.mark.parametrize(
    ("says", "share"),
    [
        (lambda prompt: solver(prompt) + " 7", 1),  # what follows the first number does not matter
        (lambda prompt: " 7" + solver(prompt), 0),
        (lambda prompt: solver(prompt).replace(".", "0"), 0),
        (lambda prompt: " is" + solver(prompt), 1),
        (lambda prompt: " " * ANSWER + solver(prompt), 0),  # said too late
        (lambda prompt: solver(prompt).replace(" ", " 0"), 0),
    ],
)
def test_the_first_number_counts(says: Callable[[str], str], share: int) -> None:
    value = measure(Fake(says), depths=(0.5,), samples=4, digits=3)
    assert value["right"] == 4 * share


def test_stops_after_the_first_number() -> None:
    reader = Fake(solver)
    measure(reader, depths=(0.0,), samples=1)
    assert re.fullmatch(r" \d+\.", reader.said[0])


def test_nothing_is_cut() -> None:
    reader = Fake(solver, most=500)
    with pytest.raises(Unfit, match="ends at 500"):
        measure(reader, 501)
    assert not reader.prompts
    with pytest.raises(Unfit, match="bare prompt takes 2"):
        measure(reader, 128)
    measure(reader, 500)
    assert max(reader.asked) == 500


@pytest.mark.parametrize("depths", [(), (0.5, 1.1), (-0.1,)])
def test_depths_are_shares(depths: tuple[float, ...]) -> None:
    with pytest.raises(ZooError, match="from 0 to 1"):
        measure(Fake(solver), depths=depths)


# Needles


def finder(prompt: str, most: int = 99) -> str:
    asked = prompt[prompt.rindex("\n") :]
    told = re.findall(r"magic numbers for ([\w-]+) is: (\d{7})\.", prompt)
    return " " + ", ".join([value for key, value in told if key in asked][:most])


def seek(reader: Fake, length: int = 1500, **settings: Any) -> dict[str, Any]:
    setting = Setting(**{"samples": 2, "texts": [TEXT * 3, TEXT.upper()], **settings})
    return needle(reader, length, setting)  # type: ignore[arg-type]


def test_needles_stand_between_sentences() -> None:
    bytes_ = Tokenizer("bytes")
    lines = {sentence.lower() for sentence in sentences(TEXT)}
    for depth in (0.0, 0.3, 0.6, 1.0):
        ids, values, tokens = hidden(bytes_, 3000, depth, random.Random(str(depth)), f"{TEXT}\n\n" * 4, 1)
        assert len(ids) + tokens <= 3000 <= len(ids) + tokens + 3
        haystack = bytes_.decode(ids).split("\n", 1)[1].rsplit("\n", 1)[0]
        found = sentences(haystack)
        (place,) = [place for place, line in enumerate(found) if line.startswith("One of the special")]
        assert re.fullmatch(rf"One of the special magic numbers for [\w-]+ is: {values[0]}\.", found[place])
        assert bytes_.decode(ids).count(values[0]) == 1
        assert {line.lower() for line in found[:place] + found[place + 1 : -2]} <= lines
        assert len(" ".join(found[:place])) / len(" ".join(found)) == pytest.approx(depth, abs=0.06)


def test_several_needles_are_spread_and_all_asked_for() -> None:
    reader = Fake(finder)
    value = seek(reader, 3000, needles=3, depths=(0.4,), samples=3)
    assert (value["needles"], value["right"], value["trials"], value["score"]) == (3, 3, 3, 1.0)
    for prompt in reader.prompts:
        places = [match.start() / len(prompt) for match in re.finditer("One of the special", prompt)]
        assert len(places) == 3
        assert places == pytest.approx([0.4, 0.6, 0.8], abs=0.08)
        assert prompt.startswith("Some special magic numbers are hidden within the following text.")
        assert re.search(r"\nWhat are all the special magic numbers for [\w-]+, [\w-]+, and [\w-]+ ment", prompt)


def test_part_of_the_needles_is_a_part_of_the_score() -> None:
    value = seek(Fake(lambda prompt: finder(prompt, 1)), 2000, needles=2, depths=(0.0, 1.0))
    assert (value["right"], value["trials"], value["score"]) == (0, 4, 0.5)
    assert (value["low"], value["high"]) == wilson(0, 4)
    assert [cell["score"] for cell in value["depths"]] == [0.5, 0.5]
    assert seek(Fake(lambda prompt: "nothing"))["score"] == 0


def test_another_stretch_in_each_trial(tokenizer: Tokenizer) -> None:
    reader = Fake(finder, tokenizer)
    value = seek(reader, 700, depths=(0.5,), samples=6)
    assert value["right"] == 6
    assert len({prompt.split("\n")[1][:20] for prompt in reader.prompts}) > 3
    assert all(697 <= asked <= 700 for asked in reader.asked)
    again = Fake(finder, tokenizer)
    assert (seek(again, 700, depths=(0.5,), samples=6), again.prompts) == (value, reader.prompts)


def test_a_haystack_without_sentences() -> None:
    reader = Fake(finder)
    assert seek(reader, 900, texts=["word " * 40], depths=(0.5,))["right"] == 2
    assert 0.3 < reader.prompts[0].index("One of") / len(reader.prompts[0]) < 0.6


def test_no_haystack_and_no_room() -> None:
    with pytest.raises(Unfit, match="none was given"):
        seek(Fake(finder), texts=["  "])
    with pytest.raises(Unfit, match="Needles without a haystack take"):
        seek(Fake(finder), 200)
    with pytest.raises(Unfit, match="ends at 100"):
        seek(Fake(finder, most=100))
    with pytest.raises(ZooError, match="1 needle or more"):
        seek(Fake(finder), needles=0)


# A model


def reader_of(model: Decoder, tokenizer: Tokenizer) -> Reader:
    checkpoint = SimpleNamespace(network=model.eval, about={"tokenizer": tokenizer.describe()}, path="here")
    return Reader(checkpoint, "tiny")  # type: ignore[arg-type]


def test_a_model_trained_on_the_passkey_finds_it() -> None:
    """One layer is enough: the end of the prompt looks for a number, and a number is one token here."""
    length, digits, batch = 96, 2, 32
    plain, rng = Tokenizer("bytes"), random.Random(1)
    shown = plain.decode(question(plain, 600, 0.5, rng, digits)[0])
    tokenizer = tokenizers.train([shown, *(f" {key}" for key in range(1, 100))] * 2, 600)
    assert all(len(tokenizer.encode(f" {key}")) == 1 for key in range(1, 100))
    torch.manual_seed(0)
    position = plugins.load("zoo.positions", "NoPE")
    model = Decoder(vocabulary=tokenizer.vocabulary, length=length, dim=64, layers=1, heads=4, position=position)
    setting = Setting(samples=10, digits=digits, seed=7)
    before = passkey(reader_of(model, tokenizer), length, setting)
    assert before["right"] <= 2
    assert before["high"] < 0.14

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for step in range(600):
        rows = [question(tokenizer, length, rng.random(), rng, digits) for _ in range(batch)]
        ids = torch.full((batch, length), tokenizer.end)
        for row, (prompt, _) in zip(ids, rows, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        last = torch.tensor([len(prompt) - 1 for prompt, _ in rows])
        keys = torch.tensor([tokenizer.encode(f" {key}")[0] for _, key in rows])
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 50)
        logits = model.head(model.hidden(ids)[torch.arange(batch), last])
        loss = functional.cross_entropy(logits, keys)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < 0.01:
            break
    after = passkey(reader_of(model, tokenizer), length, setting)
    assert (after["right"], after["trials"], after["high"]) == (50, 50, 1.0)
    assert after["low"] == wilson(50, 50)[0] > 0.92
