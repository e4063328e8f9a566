"""RULER's two tasks of questions over documents, made of SQuAD's and HotpotQA's files where those are at hand.

The document that answers is among others: first those that belong to the question (SQuAD: paragraphs of the same
article; HotpotQA: its distractors), then any, all shuffled and numbered. Questions are drawn from the whole file,
where the reference takes the first ones, which are all from one article.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.evaluate.ruler.sample import Draft

TOKENS = 32
FILES = {"qa_1": ("SQuAD's dev-v2.0.json", "squad"), "qa_2": ("HotpotQA's hotpot_dev_distractor_v1.json", "hotpot")}


@dataclass(frozen=True)
class Question:
    """A question, its right answers, and numbers of the documents that hold the answer, and of its distractors."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@lru_cache(maxsize=4)
def read(task: str, path: str) -> tuple[list[str], list[Question]]:
    """All documents, all different, and the questions that they answer."""
    name, setting = FILES[task]
    try:
        content = json.loads(Path(path).read_bytes())
        documents, questions = (_squad if task == "qa_1" else _hotpot)(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ZooError(f"The file {path} given as {setting} cannot be read as {name}: {error!r}.") from error
    if not questions:
        raise ZooError(f"The file {path} given as {setting} holds no question with an answer.")
    return documents, questions


def _squad(content: Any) -> tuple[list[str], list[Question]]:
    """Of Rajpurkar et al. 2018 (arXiv:1806.03822), without the questions that have no answer."""
    articles = [article["paragraphs"] for article in content["data"]]
    order: dict[str, int] = {}
    questions = []
    for paragraphs in articles:
        places = [order.setdefault(paragraph["context"], len(order)) for paragraph in paragraphs]
        for place, paragraph in zip(places, paragraphs, strict=True):
            near = tuple(dict.fromkeys(other for other in places if other != place))
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                if not asked.get("is_impossible", False) and answers:
                    questions.append(Question(asked["question"], answers, (place,), near))
    return list(order), questions


def _hotpot(content: Any) -> tuple[list[str], list[Question]]:
    """Of Yang et al. 2018 (arXiv:1809.09600), the setting with distractors."""
    order: dict[str, int] = {}
    questions = []
    for asked in content:
        needed = {title for title, _ in asked["supporting_facts"]}
        places = {}
        for title, lines in asked["context"]:
            document = f"{title}\n{''.join(lines)}"
            places[title] = order.setdefault(document, len(order))
        gold = tuple(place for title, place in places.items() if title in needed)
        near = tuple(place for title, place in places.items() if title not in needed)
        if gold:
            questions.append(Question(asked["question"], (asked["answer"],), gold, near))
    return list(order), questions


def draft(task: str, rng: random.Random, path: str) -> Draft:
    """One question over documents: documents beside those that answer are its units."""
    documents, questions = read(task, path)
    question = rng.choice(questions)
    near = rng.sample(question.near, len(question.near))
    known, order = {*question.gold, *near}, rng.random()
    others = [place for place in range(len(documents)) if place not in known]
    rng.shuffle(others)
    beside = near + others

    def build(units: int) -> str:
        places = [*question.gold, *beside[:units]]
        random.Random(order).shuffle(places)
        text = "\n\n".join(f"Document {number}:\n{documents[place]}" for number, place in enumerate(places, 1))
        task = "Answer the question based on the given documents. "
        task += "Only give me the answer and do not output any other words."
        return f"{task}\n\nThe following are given documents.\n\n{text}\n\n{task}\n\nQuestion: {question.text} Answer:"

    longest = max(question.answers, key=len)
    return Draft(build, list(question.answers), longest, most=len(beside))
