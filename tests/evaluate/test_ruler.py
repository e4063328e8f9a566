"""RULER: lengths, seeds, documents and scores of all tasks, and what happens where a task cannot be made."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken.registry

from zoo.data import tokenizer as tokenizers
from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit, ZooError
from zoo.evaluate.haystack import GARBAGE
from zoo.evaluate.intervals import wilson
from zoo.evaluate.ruler import TASKS, TOKENS, Sample, ruler, samples, score
from zoo.evaluate.setting import Setting

TEXT = [
    "The mill stood by the river. Its wheel had not turned for years! Who would mend it? " * 9,
    "No miller lived there now, and the roof let in the rain. Birds nested under the beams. " * 9,
]
NEEDLES = [task for task in TASKS if task.startswith("niah")]


@pytest.fixture(scope="module", params=["bytes", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    if request.param == "bytes":
        yield Tokenizer("bytes")
    elif request.param == "bpe":
        yield tokenizers.train([*TEXT, GARBAGE, Path(__file__).read_text()], 700)
    else:
        if "ZOO_SHARED" not in os.environ:
            pytest.skip("ZOO_SHARED is not set: GPT-2's tokenizer is not at hand")
        cache = tmp_path_factory.mktemp("tiktoken")
        shutil.copytree(f"{os.environ['ZOO_SHARED']}/data/tokenizers/tiktoken_cache", cache, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
            patch.setattr(tiktoken.registry, "ENCODINGS", {})
            yield tokenizers.load("gpt2")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """SQuAD and HotpotQA in their own formats, small."""
    articles = []
    for article in range(3):
        paragraphs: list[dict[str, Any]] = []
        for place in range(4):
            context = f"Article {article} says in paragraph {place} that the answer is code{article}{place}. " * 2
            good = {"question": f"What is said in {article}/{place}?", "is_impossible": False}
            bad = {"question": "Nobody knows this?", "is_impossible": True, "answers": []}
            answers = [{"text": f"code{article}{place}"}, {"text": f"code{article}{place}"}, {"text": "the code"}]
            paragraphs.append({"context": context, "qas": [good | {"answers": answers}, bad]})
        articles.append({"title": str(article), "paragraphs": paragraphs})
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    asked = [
        {
            "question": f"Which word joins {n}?",
            "answer": f"Word{n}",
            "supporting_facts": [[f"Gold {n} a", 0], [f"Gold {n} b", 0]],
            "context": [
                [f"{title} {n} {part}", [f"{title} {n} {part} it is. ", f"Word{n} too."]]
                for title in ("Gold", "Other")
                for part in "ab"
            ],
        }
        for n in range(5)
    ]
    (tmp_path / "hotpot.json").write_text(json.dumps(asked))
    return {"squad": str(tmp_path / "squad.json"), "hotpot": str(tmp_path / "hotpot.json")}


def made(task: str, length: int = 4096, count: int = 6, seed: int = 0, **files: str) -> list[Sample]:
    return samples(task, Tokenizer("bytes"), length, count, seed, TEXT, **files)


def told(prompt: str, kind: str = "numbers") -> list[tuple[str, str]]:
    """Keys and values of the needles in a prompt."""
    found = re.findall(rf"One of the special magic {kind} for (\S+) is: (\S+)\.", prompt)
    return [(key, value) for key, value in found]


def listing(prompt: str) -> list[list[str]]:
    """The numbered lists of a prompt, worked example first."""
    lines = [line for line in prompt.split("\n") if line.startswith("1. ")]
    found = [re.findall(r"(\d+)\. (\S+)", line) for line in lines]
    assert all([int(number) for number, _ in words] == list(range(1, len(words) + 1)) for words in found)
    return [[word for _, word in words] for words in found]


# All tasks


@pytest.mark.parametrize("task", TASKS)
def test_length_is_kept_and_filled(task: str, tokenizer: Tokenizer, files: dict[str, str]) -> None:
    fitting = []
    for length in [*range(200, 4000, 271), 4096, 9000]:
        try:
            found, reason = samples(task, tokenizer, length, 2, 0, TEXT, **files), ""  # type: ignore[arg-type]
        except Unfit as error:
            found, reason = [], str(error)
        if not found:
            assert not fitting or length == 4096  # what fits a length fits a longer one, but at 4096 tasks grow
            assert str(length) in reason
            continue
        fitting.append(length)
        for sample in found:
            used = len(tokenizer.encode(sample.prompt)) + sample.tokens
            assert used <= length
            if task != "qa_1" and task != "qa_2":
                assert used > length - 130
            assert sample.answers
            written = (" " if task == "vt" else ", ").join(sample.answers)
            assert len(tokenizer.encode(f" {written}")) <= sample.tokens or task.startswith("qa")
            if length >= 4096 and tokenizer.name == "gpt2":
                assert sample.tokens == TOKENS[task]
            assert not sample.prompt.endswith(" ")
    assert 9000 in fitting
    assert tokenizer.name == "bytes" or 1826 in fitting


@pytest.mark.parametrize("task", TASKS)
def test_equal_seeds_equal_samples(task: str, files: dict[str, str]) -> None:
    first = made(task, 7000, **files)
    assert first == made(task, 7000, **files)
    assert first[:2] == made(task, 7000, count=2, **files)
    assert len({sample.prompt for sample in first}) == len(first)
    assert first != made(task, 7000, seed=1, **files)
    assert {sample.prompt for sample in first}.isdisjoint(sample.prompt for sample in made(task, 7001, **files))


@pytest.mark.parametrize("task", TASKS)
def test_too_short_is_said_and_ends(task: str, files: dict[str, str]) -> None:
    for length in (1, 40, 199):
        with pytest.raises(Unfit, match=f"{length}"):
            made(task, length, **files)


def test_what_it_takes_is_what_it_takes() -> None:
    for task in NEEDLES:
        with pytest.raises(Unfit) as caught:
            made(task, 200, count=1)
        takes = int(re.findall("at least ([0-9]+) tokens", str(caught.value))[0])
        assert abs(len(made(task, takes + 12, count=1)[0].prompt) - takes) < 100


def test_answers_get_fewer_tokens_below_4096_and_never_too_few() -> None:
    assert [sample.tokens for sample in made("niah_single_1", 1000, 2)] == [24, 24]  # 2 x 8 bytes and 8
    assert [sample.tokens for sample in made("niah_single_1", 4095, 1)] == [24]
    assert [sample.tokens for sample in made("niah_single_1", 4096, 1)] == [128]
    assert TOKENS["vt"] == made("vt", 4096, 1)[0].tokens  # five names, five spaces: just enough in bytes
    assert made("niah_multikey_3", 4095, 1)[0].tokens == 2 * 37 + 8
    assert {**dict.fromkeys(NEEDLES, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32} == TOKENS


def test_unknown_task() -> None:
    with pytest.raises(ZooError, match=r"no task nia_single_1\. +Did you mean niah_single_1"):
        made("nia_single_1")


# Documents


def parts(prompt: str) -> list[str]:
    text = prompt.split("The following are given documents.\n\n")[1].split("\n\nAnswer the question based")[0]
    found = re.findall(r"Document (\d+):\n(.*?)(?=\n\nDocument|\Z)", text, re.DOTALL)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [document for _, document in found]


def test_squad(files: dict[str, str]) -> None:
    places = set()
    for sample in made("qa_1", 1000, 12, **files):
        article, place = re.findall(r"Question: What is said in (\d)/(\d)\? Answer:$", sample.prompt)[0]
        assert sample.answers == [f"code{article}{place}", "the code"]
        documents = parts(sample.prompt)
        gold = [n for n, document in enumerate(documents) if sample.answers[0] in document]
        assert len(gold) == 1
        assert len(set(documents)) == len(documents)
        own = [document for document in documents if document.startswith(f"Article {article}")]
        assert len(own) == min(len(documents), 4)  # the same article first, then any
        places.add((gold[0], len(documents)))
    assert len(places) > 2
    everything = made("qa_1", 5000, 1, **files)[0]
    assert len(parts(everything.prompt)) == 12  # all documents there are, however much room


def test_hotpot(files: dict[str, str]) -> None:
    sizes = set()
    for length in (450, 550, 620, 700, 2000):
        for sample in made("qa_2", length, 4, **files):
            (number,) = re.findall(r"Question: Which word joins (\d)\? Answer:$", sample.prompt)
            assert sample.answers == [f"Word{number}"]
            titles = [document.split("\n")[0] for document in parts(sample.prompt)]
            assert {f"Gold {number} a", f"Gold {number} b"} <= set(titles)
            if len(titles) <= 4:
                assert all(title.split()[1] == number for title in titles)
            sizes.add(len(titles))
    assert {2, 20} <= sizes


@pytest.mark.parametrize("content", ["{", "[]", '{"data": 3}', '{"data": []}', '[{"question": "?"}]'])
@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_strange_files(task: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    odd = str(tmp_path / "odd.json")
    with pytest.raises(ZooError, match=r"odd.json given as (squad|hotpot)"):
        made(task, squad=odd, hotpot=odd)
    with pytest.raises(ZooError, match="missing"):
        made(task, squad="missing", hotpot="missing")
    with pytest.raises(ZooError, match=r"--(squad|hotpot) FILE"):
        made(task)


# Scores


@pytest.mark.parametrize(
    ("task", "said", "answers", "expected"),
    [
        ("niah_multivalue", "1234567, 7654321", ["1234567", "7654321"], 1.0),
        ("niah_multivalue", "12345678", ["1234567", "7654321"], 0.5),
        ("niah_single_1", "", ["1234567"], 0.0),
        ("niah_single_1", "1234 567", ["1234567"], 0.0),
        ("vt", " abcde\x00FGHIJ\x1f ", ["ABCDE", "FGHIJ", "KLMNO"], 2 / 3),
        ("cwe", "1. River 2. STONE", ["river", "stone", "lamp", "gate"], 0.5),
        ("cwe", "riv\ner", ["river"], 0.0),
        ("niah_single_3", "A\x07B", ["a\nb"], 1.0),
        ("qa_1", "it was Paris", ["London", "paris"], 1.0),
        ("qa_2", "Rome", ["London", "Paris"], 0.0),
    ],
)
def test_scores(task: str, said: str, answers: list[str], expected: float) -> None:
    assert score(task, said, answers) == pytest.approx(expected)


class Fake:
    """A reader that answers with a function of the prompt, one token after the other."""

    def __init__(self, answers: Callable[[str], str], most: int = 10**9) -> None:
        self.answers, self.tokenizer, self.most = answers, Tokenizer("bytes"), most
        self.said: list[str] = []
        self.asked: list[int] = []

    def refusal(self, tokens: int) -> str | None:
        return None if tokens <= self.most else f"The table ends at {self.most}."

    def answer(self, prompt: list[int], tokens: int, *, stop: Callable[[str], bool] | None = None) -> str:
        self.asked.append(len(prompt) + tokens)
        full = self.answers(self.tokenizer.decode(prompt))[:tokens]
        ends = (n for n in range(1, len(full) + 1) if stop is not None and stop(full[:n]))
        self.said.append(full[: next(ends, len(full))])
        return self.said[-1]


def solver(prompt: str) -> str:
    """Reads needles, chains and word counts as a program would."""
    last = prompt[prompt.rindex("\nWhat" if "special magic" in prompt else "\nQuestion") :]
    if "special magic" in prompt:
        kind = "uuids" if "magic uuid" in last else "numbers"
        return " " + ", ".join(value for key, value in told(prompt, kind) if key in last) + ". And more"
    if "VAR" in prompt:
        value = re.findall(r"assigned the value (\d+)", last)[0]
        names = [value]
        for name, given in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", prompt):
            names += [name] * (given == names[-1])
        return " " + " ".join(names[1:])
    if "numbered list" in prompt:
        counts = Counter(listing(prompt)[-1])
        return " " + " ".join(f"{n}. {word}" for n, (word, _) in enumerate(counts.most_common(10), 1))
    counts = Counter(re.findall(r"\b[a-z]{6}\b(?= |$)", prompt.split("\n")[0].split("coded words. ")[1]))
    return " " + ", ".join(word for word, _ in counts.most_common(3))


def measure(reader: Fake, length: int = 2500, **settings: Any) -> dict[str, Any]:
    return ruler(reader, length, Setting(**{"samples": 3, "texts": TEXT, **settings}))  # type: ignore[arg-type]


def test_a_solver_has_all_and_a_mute_nothing() -> None:
    reader = Fake(solver)
    value = measure(reader)
    assert [result["task"] for result in value["tasks"]] == list(TASKS)
    assert (value["mean"], value["counted"]) == (100.0, 11)
    low, high = wilson(3, 3)
    assert value["tasks"][0] == {
        "task": "niah_single_1", "score": 100.0, "samples": 3, "low": 100 * low, "high": 100 * high
    }  # fmt: skip
    assert all("SQuAD" in result["absent"] or "Hotpot" in result["absent"] for result in value["tasks"][11:])
    assert all("score" not in result for result in value["tasks"][11:])
    assert max(reader.asked) <= 2500
    assert not any("more" in said for said in reader.said)  # stopped when all was said
    mute = measure(Fake(lambda prompt: ""))
    assert (mute["mean"], mute["counted"]) == (0.0, 11)
    assert mute["tasks"][3]["high"] == 100 * wilson(0, 3)[1]
    json.dumps(value, allow_nan=False)


def test_parts_of_an_answer_count() -> None:
    value = measure(Fake(lambda prompt: solver(prompt).split(",")[0]), tasks=("niah_multivalue", "niah_single_1"))
    assert [result["score"] for result in value["tasks"]] == [25.0, 100.0]
    assert value["mean"] == 62.5
    low, high = wilson(0.75, 3)
    assert (value["tasks"][0]["low"], value["tasks"][0]["high"]) == (100 * low, 100 * high)


def test_tasks_with_their_files(files: dict[str, str]) -> None:
    said = Fake(lambda prompt: " code00 code01 Word1" if "said in" in prompt else " Word1 Word2 Word3 Word4 Word0")
    value = measure(said, tasks=("qa_1", "qa_2"), samples=4, **files)
    assert value["counted"] == 2
    assert value["tasks"][1]["score"] == 100.0
    assert value["tasks"][0]["score"] in (0, 25, 50, 75, 100)


def test_what_does_not_fit_is_no_zero() -> None:
    value = measure(Fake(solver), 600)
    by_task = {result["task"]: result for result in value["tasks"]}
    assert "at least" in by_task["cwe"]["unfit"]
    assert "score" not in by_task["cwe"]
    assert by_task["niah_single_1"]["score"] == 100
    assert value["mean"] == 100
    assert value["counted"] == sum("score" in result for result in value["tasks"]) < 11
    with pytest.raises(Unfit, match=r"be made at 64 tokens\. niah_single_1: It takes at least"):
        measure(Fake(solver), 64)
    with pytest.raises(Unfit, match="ends at 100"):
        measure(Fake(solver, most=100))
    with pytest.raises(ZooError, match="no task niah"):
        measure(Fake(solver), tasks=("niah",))
