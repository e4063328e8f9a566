"""RULER: thirteen synthetic tasks of retrieval, tracing, counting and answering, at any length that they fit into.

Rules and scores: Hsieh et al. 2024 (arXiv:2404.06654); the prompts are those of its appendix, since scores depend on
them. Everything is made on the spot from a seed, the zoo's own words and the documents at hand. A task that does not
fit is reported with what it would take, a task whose data are not at hand as absent; neither counts as 0.

Departures, all where the reference leaves something to chance or was made for 4096 tokens and more: the search for a
size ends where nothing fits; samples differ in their order (it shuffles with one fixed seed); keys and values are all
different; tokens for the answer are fewer at short lengths (see `ruler.sample`); prompts end without a space, so that
an answer may start with a token that has one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit, ZooError, listing, near
from zoo.evaluate.haystack import Essay
from zoo.evaluate.intervals import wilson
from zoo.evaluate.ruler import chains, counts, documents, needles
from zoo.evaluate.ruler.sample import Draft, Sample, fitted

if TYPE_CHECKING:
    from zoo.evaluate.reader import Reader
    from zoo.evaluate.setting import Setting

TASKS = (*needles.KINDS, "vt", "cwe", "fwe", *documents.FILES)
TOKENS = {
    **dict.fromkeys(needles.KINDS, needles.TOKENS),
    "vt": chains.TOKENS,
    "cwe": counts.COMMON_TOKENS,
    "fwe": counts.CODED_TOKENS,
    **dict.fromkeys(documents.FILES, documents.TOKENS),
}
"""Tokens that RULER gives to the answer."""

CONTROL = re.compile(r"[\x00-\x1f]")


def samples(
    task: str,
    tokenizer: Tokenizer,
    length: int,
    count: int,
    seed: int,
    texts: Sequence[str],
    *,
    squad: str | None = None,
    hotpot: str | None = None,
) -> list[Sample]:
    """Questions of a task: prompt and room for the answer fill `length` tokens and never exceed it.

    Args:
        task: One of `TASKS`.
        length: Tokens of prompt and answer.
        count: Questions; each depends on the seed, the task, the length and its number only.
        texts: Documents for the essays.
        squad, hotpot: Files that qa_1 and qa_2 need.
    """
    known(task)
    essay, path = Essay(texts), {"qa_1": squad, "qa_2": hotpot}.get(task)
    if task in documents.FILES and path is None:
        raise ZooError(absence(task))
    made = []
    for number in range(count):
        rng = random.Random(f"{seed} ruler {task} {length} {number}")
        made.append(fitted(_draft(task, rng, tokenizer, length, essay, path), tokenizer, length, TOKENS[task]))
    return made


def _draft(task: str, rng: random.Random, tokenizer: Tokenizer, length: int, essay: Essay, path: str | None) -> Draft:
    if task == "vt":
        return chains.draft(rng, tokenizer, length)
    if task == "cwe":
        return counts.common(rng, tokenizer, length)
    if task == "fwe":
        return counts.coded(rng, length)
    return needles.draft(task, rng, essay) if path is None else documents.draft(task, rng, path)


def known(task: str) -> None:
    """Raise ZooError where RULER has no such task."""
    if task not in TASKS:
        close = f"   Did you mean {listing(near(task, TASKS))}?" if near(task, TASKS) else ""
        raise ZooError(f"RULER has no task {task}.{close}\n  Its tasks: {listing(TASKS)}.")


def check(setting: Setting) -> None:
    """Raise ZooError where a task is unknown or its file cannot be read, before anything is measured."""
    for task in setting.tasks:
        known(task)
    for task, path in (("qa_1", setting.squad), ("qa_2", setting.hotpot)):
        if path is not None and task in (setting.tasks or TASKS):
            documents.read(task, path)


def absence(task: str) -> str:
    """Why a task of documents cannot be made without its file."""
    name, setting = documents.FILES[task]
    return f"It is made of {name}, which is not part of the zoo.   Try:  --{setting} FILE"


def score(task: str, text: str, answers: Sequence[str]) -> float:
    """The share of an answer that is right, from 0 to 1: references found in the text, whatever their capitals.

    RULER's string_match_all; for qa_1 and qa_2 string_match_part, for which one of the references is enough.
    """
    said = CONTROL.sub("\n", text.strip()).strip().lower()
    found = [answer.lower() in said for answer in answers]
    return float(any(found)) if task in documents.FILES else sum(found) / len(found)


def ruler(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """Scores of RULER's tasks in percent, their mean over those that were counted, and 95 % intervals.

    The intervals are Wilson's throughout. A sample of most tasks is right or wrong; where it is a share of several
    answers its spread is at most that of right or wrong, and the interval if anything too wide.
    """
    if (reason := reader.refusal(length)) is not None:
        raise Unfit(reason)
    given = {"qa_1": setting.squad, "qa_2": setting.hotpot}
    results: list[dict[str, Any]] = []
    for task in setting.tasks or TASKS:
        if task in given and given[task] is None:
            results.append({"task": task, "absent": absence(task)})
            continue
        try:
            made = samples(
                task,
                reader.tokenizer,
                length,
                setting.samples,
                setting.seed,
                setting.texts,
                squad=setting.squad,
                hotpot=setting.hotpot,
            )
        except Unfit as reason:
            results.append({"task": task, "unfit": str(reason)})
            continue
        right = sum(_answered(reader, task, sample) for sample in made)
        low, high = wilson(right, len(made))
        results.append(
            {
                "task": task,
                "score": 100 * right / len(made),
                "samples": len(made),
                "low": 100 * low,
                "high": 100 * high,
            }
        )
    scores = [result["score"] for result in results if "score" in result]
    if not scores:
        told = "; ".join(f"{result['task']}: {result.get('unfit') or result['absent']}" for result in results)
        raise Unfit(f"No task of RULER can be made at {length} tokens. {told}")
    return {"mean": sum(scores) / len(scores), "counted": len(scores), "tasks": results}


def _answered(reader: Reader, task: str, sample: Sample) -> float:
    prompt = reader.tokenizer.encode(sample.prompt)
    # Once everything is found, nothing that follows can change the score.
    text = reader.answer(prompt, sample.tokens, stop=lambda said: score(task, said, sample.answers) == 1)
    return score(task, text, sample.answers)
