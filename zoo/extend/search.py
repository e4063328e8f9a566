"""A search for the numbers of an extension, over text, within a budget that is said before it starts.

An evolution without generations: the best few are the parents, each pass over the documents judges one child of two of
them, and a child that is better takes the place of the worst. What the extension has without a search is judged first
and can only be replaced by something better on these documents, so the result is never worse on them.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zoo import plugins
from zoo.errors import Unfit, ZooError, listing
from zoo.evaluate.perplexity import read
from zoo.evaluate.reader import Reader
from zoo.evaluate.retrieval import hidden
from zoo.evaluate.texts import Documents
from zoo.extend.family import Family, Text, affordable, text
from zoo.extend.methods import GROUP, owned
from zoo.extend.rewrite import Plan
from zoo.extension import Searched
from zoo.lengths import short

Kind = Literal["perplexity", "needle"]
KINDS: tuple[str, ...] = get_args(Kind)
"""What a search makes small: the loss of all tokens, or of those that repeat what was hidden far back."""
DOCUMENTS = 8
"""Documents of a pass at most."""
PASSES = 64
"""Passes that a budget is to hold, before a pass has more than one document."""
PARENTS = 8
"""How many are kept."""
TRIES = 20
"""Children that were judged before are drawn anew so often."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        arguments: The method's own, as found.
        facts: For a description and for JSON.
        said: In a sentence.
        left: Documents for measuring the result, where it shares files with the search.
    """

    arguments: dict[str, Any]
    facts: dict[str, Any]
    said: str
    left: Documents | None


def evolve(
    subject: Searched, loss: Callable[[list[float]], float], passes: int, rng: random.Random
) -> tuple[list[float], float, float]:
    """The best numbers, their loss, and that of the first seed.

    Args:
        subject: Says where to start and how to vary.
        loss: To make small; one that is no number is as bad as can be.
        passes: How often it may be asked, once or more.
        rng: Origin of every draw.
    """
    judged: dict[tuple[float, ...], float] = {}

    def judge(numbers: list[float]) -> None:
        found = loss(numbers)
        judged[tuple(numbers)] = found if math.isfinite(found) else math.inf

    for seed in subject.seeds():
        if len(judged) < passes and tuple(seed) not in judged:
            judge(seed)
    start = next(iter(judged.values()))
    while len(judged) < passes:
        parents = sorted(judged, key=lambda numbers: judged[numbers])[:PARENTS]
        for _ in range(TRIES):
            one, other = (list(parents[min(rng.randrange(len(parents)) for _ in range(2))]) for _ in range(2))
            child = subject.child(one, other, rng)
            if tuple(child) not in judged:
                judge(child)
                break
        else:
            break  # nothing new is left
    best = min(judged, key=lambda numbers: judged[numbers])
    return list(best), judged[best], start


def search(
    planned: Plan,
    kind: Kind,
    *,
    budget: int,
    seed: int = 0,
    files: list[str] | None = None,
    measured: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Found:
    """Search for what a plan's method leaves open.

    Args:
        planned: The method with what it has without a search.
        kind: What to make small.
        budget: Tokens that may be read.
        seed: Origin of every draw.
        files: Texts to read (default: what the checkpoint's run validated on).
        measured: The result will be measured on the same files.
        say: Told what will be read before it is.
    """
    subject, to, method = searched(planned), planned.step["to"], planned.step["method"]
    affordable(budget, len(subject.seeds()) * to, 1, f"A search that begins with {len(subject.seeds())} passes")
    most = min(DOCUMENTS, max(budget // (PASSES * to), 1))
    family = Family(planned.source.path)
    documents = text(family, files, to, most, measured)
    pieces = losses(family.untouched, documents, to, kind, seed)
    each = sum(len(tokens) for tokens, _ in pieces)
    passes = budget // each
    say(
        f"search for {method} by {kind}, seed {seed}: {passes} passes over {documents} of {short(to)} tokens: "
        f"{passes * each} tokens (--budget {budget}), the best {PARENTS} of them are parents"
    )

    def loss(numbers: list[float]) -> float:
        about = copy.deepcopy(planned.about)
        extension = about["network"]["init_args"]["position"]["init_args"]["extension"]
        extension["init_args"] |= subject.arguments(numbers)
        try:
            return judged(family.child(replace(planned, about=about), method), pieces)
        except Unfit:
            return math.inf

    numbers, best, start = evolve(subject, loss, passes, random.Random(seed))
    if not math.isfinite(best):
        raise ZooError(f"{method} gives no losses that are numbers on {documents}.")
    facts = {"kind": kind, "seed": seed, "passes": passes, "tokens": passes * each, "text": documents.facts()}
    worth = {"start": start if math.isfinite(start) else None, "best": best}
    what = "per token" if kind == "perplexity" else "per token of the answers"
    said = f"search: {best:.4f} nats {what}, {start:.4f} without it"
    return Found(subject.arguments(numbers), {**facts, **worth}, said, documents.left)


def searched(planned: Plan) -> Searched:
    """What a plan's method has to search for; a sentence where that is nothing."""
    for each in getattr(planned.after.trunk.position, "extensions", []):
        if isinstance(each, Searched):
            return each
    encoding = planned.before.trunk.position
    able = [name for name in owned(type(encoding).__name__) if issubclass(plugins.load(GROUP, name), Searched)]
    raise ZooError(
        f"{planned.step['method']} has nothing to search for. Methods of {type(encoding).__name__} that have: "
        f"{listing(able)}."
    )


def losses(reader: Reader, documents: Text, to: int, kind: Kind, seed: int) -> list[tuple[Tensor, int]]:
    """Texts in tokens, and how many of their last ones count.

    With needles each document hides a number, the deeper the later the document stands, and is asked for it: the loss
    of the answer's tokens is what LongRoPE2's search makes small (Shang et al. 2025, arXiv:2502.20082).
    """
    if kind == "perplexity":
        whole = [reader.tokenizer.encode(each)[:to] for each in documents.used.texts]
        return [(torch.tensor(tokens), to - 1) for tokens in whole]
    found = []
    for number, each in enumerate(documents.used.texts):
        depth = number / max(len(documents.used.texts) - 1, 1)
        rng = random.Random(f"{seed} {number}")
        prompt, values, _ = hidden(reader.tokenizer, to, depth, rng, each, 1)
        answer = reader.tokenizer.encode(f" {values[0]}")
        found.append((torch.tensor([*prompt, *answer]), len(answer)))
    return found


def judged(reader: Reader, pieces: list[tuple[Tensor, int]]) -> float:
    """Mean loss, in nats, of the tokens that count."""
    found = read(reader, [tokens for tokens, _ in pieces])
    last = [one[-count:].double() for one, (_, count) in zip(found, pieces, strict=True)]
    return float(torch.cat(last).mean())
