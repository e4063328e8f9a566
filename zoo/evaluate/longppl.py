"""LongPPL: perplexity of the tokens for which a strong model needs the context (Fang et al. 2024, arXiv:2410.23771).

Most tokens follow from their neighbours, and their losses hide what happens to the few that do not. An evaluator finds
those few: tokens that it loses more than 2 nats on where it sees the near context only, and less than 2 with all of it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from zoo.errors import Unfit
from zoo.evaluate.perplexity import excerpts, windows
from zoo.evaluate.reader import Reader
from zoo.evaluate.setting import Setting

GAIN, LOSS = 2.0, 2.0
"""Nats by which a key token profits at least, and that it costs at most with the whole context."""


def near(length: int) -> tuple[int, int]:
    """Tokens of the near context, and by how many it moves on: 4096 and 1024, and less for short texts."""
    context = min(4096, max(length // 4, 2))
    return context, max(context // 4, 1)


def key_tokens(evaluator: Reader, tokens: Tensor) -> Tensor:
    """Which tokens of a text [n] need the long context, bool [n]; the first cannot be known."""
    size, step = near(len(tokens))
    whole = evaluator.losses(tokens[None])[0]
    cuts = windows(len(tokens), size, step)
    short = torch.cat([evaluator.losses(tokens[None, start:end])[0][-targets:] for start, end, targets in cuts])
    key = (short - whole > GAIN) & (whole < LOSS)
    key[: size - 1] = False  # both contexts are the same there
    return torch.cat((torch.zeros(1, dtype=torch.bool), key))


def spans(reader: Reader, tokens: list[int]) -> list[int]:
    """Where each token ends, in bytes."""
    return list(itertools.accumulate(reader.tokenizer.sizes(tokens)))


def longppl(reader: Reader, length: int, setting: Setting, evaluator: Reader) -> dict[str, Any]:
    """Perplexity of the key tokens, which the evaluator finds in the first `length` of its tokens of every document.

    Where the tokenizers differ, a token counts that shares a byte with a key token.
    """
    reader.fit(length)
    evaluator.fit(length)
    total, count, read = 0.0, 0, 0
    texts = [text[:length] for text in excerpts(evaluator, setting)]
    for number, theirs in enumerate(texts):
        key = key_tokens(evaluator, theirs)
        ends = spans(evaluator, theirs.tolist())
        marked = torch.zeros(ends[-1], dtype=torch.bool)
        for index in key.nonzero().flatten().tolist():
            marked[ends[index - 1] : ends[index]] = True
        if reader.tokenizer.digest == evaluator.tokenizer.digest:
            own = theirs
        else:
            own = torch.tensor(reader.tokenizer.encode(setting.long[number]))
            own = own[: sum(end <= ends[-1] for end in spans(reader, own.tolist()))]
        stops = spans(reader, own.tolist())
        counts = torch.tensor([bool(marked[a:b].any()) for a, b in itertools.pairwise(stops)])
        losses = reader.losses(own[None])[0].double()
        total, count, read = total + float(losses[counts].sum()), count + int(counts.sum()), read + len(losses)
        setting.tick((number + 1) / len(texts))
    if not count:
        raise Unfit(f"The evaluator {evaluator.name} finds no token that needs more than {near(length)[0]} tokens.")
    nats = total / count
    return {"longppl": math.exp(min(nats, 700.0)), "nats": nats, "key": count, "tokens": read, "near": near(length)[0]}
