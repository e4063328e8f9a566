"""Perplexity by length, loss by position, what longer context is worth, and whether positions alone do harm.

All lengths read the same text: the first tokens of every document, as many as the longest length; gain scores the same
last ones of them at every length. So a difference between two lengths is one of context, but for the few tokens that
windows leave out: the first of each, and with fixed windows the rest that a length leaves which does not divide the
longest. Means weigh every token alike, unless a convention of others is asked for by its name. Intervals are over
documents, whose tokens are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import Unfit
from zoo.evaluate.reader import Reader
from zoo.evaluate.setting import Setting

WINDOWINGS = ("fixed", "sliding", "huggingface", "yarn")
BATCH = 8192
"""Tokens that are read at once where windows are short."""


def excerpts(reader: Reader, setting: Setting) -> list[Tensor]:
    """The first tokens of every document, as many as the longest length, [longest] each."""
    found = [torch.tensor(reader.tokenizer.encode(text)[: max(setting.lengths)]) for text in setting.long]
    return [tokens for tokens in found if len(tokens) == max(setting.lengths)]


def windows(total: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and number of targets of each window: tokens that no window before it had; the last may be shorter."""
    end = 0
    for start in range(0, total, stride):
        before, end = end, min(start + size, total)
        yield start, end, end - before
        if end == total:
            return


def read(reader: Reader, texts: list[Tensor], tick: Callable[[float], None] = lambda done: None) -> list[Tensor]:
    """Losses of texts, [tokens - 1] each; those of equal length are read together."""
    found: list[Tensor] = []
    for count, group in itertools.groupby(texts, len):
        for part in torch.stack(list(group)).split(max(BATCH // count, 1)):
            found += reader.losses(part).unbind()
            tick(len(found) / len(texts))
    return found


def perplexity(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """Perplexity at a length, by `setting.windowing`.

    - fixed: windows of `length` tokens beside each other, and what is left over at the end is left out; all tokens of
      a window but its first are scored. (Of one document and the longest length: one window.)
    - sliding: windows that advance by `stride`; a token is scored in the first window that holds it.
    - huggingface: the same windows and losses as the loop in transformers' documentation, which weighs the mean of a
      window by one token less than it has.
    - yarn: the token that begins a document stands before every window, or the one that ends it where there is none;
      the window is one token shorter; the mean of the windows' means (Peng et al. 2023, arXiv:2309.00071, their code).
    """
    kind, texts = setting.windowing, excerpts(reader, setting)
    stride = setting.stride or {"fixed": length, "yarn": min(256, length - 1)}.get(kind, max(length // 2, 1))
    size = length - 1 if kind == "yarn" else length
    if stride > size:
        raise Unfit(f"Windows of {size} tokens that advance by {stride} leave tokens out.   Try:  --stride {size}")
    pieces, owners, counts, weights = [], [], [], []
    for number, text in enumerate(texts):
        for start, end, targets in windows(len(text), size, stride):
            if kind == "fixed" and end - start < size:
                continue
            piece = text[start:end]
            if kind == "yarn":
                piece = torch.cat((torch.tensor([reader.tokenizer.prefix]), piece))
            if len(piece) < 2:
                continue
            pieces.append(piece)
            owners.append(number)
            counts.append(min(targets, len(piece) - 1))
            weights.append({"huggingface": targets - 1.0, "yarn": 1.0}.get(kind, float(counts[-1])))
    losses = [one[-count:] for one, count in zip(read(reader, pieces, setting.tick), counts, strict=True)]
    means = [float(one.double().mean()) for one in losses]
    nats, error = by_document(means, weights, owners)
    scored = [token for piece, count in zip(pieces, counts, strict=True) for token in piece[-count:].tolist()]
    size_of = cache(lambda token: reader.tokenizer.sizes([token])[0])
    return {
        "perplexity": math.exp(min(nats, 700.0)),
        "nats": nats,
        "bits_per_byte": sum(float(one.double().sum()) for one in losses) / math.log(2) / sum(map(size_of, scored)),
        "low": None if error is None else math.exp(min(nats - error, 700.0)),
        "high": None if error is None else math.exp(min(nats + error, 700.0)),
        "tokens": len(scored),
        "documents": len(texts),
        "windows": len(pieces),
        "stride": stride,
    }


def by_document(means: list[float], weights: list[float], owners: list[int]) -> tuple[float, float | None]:
    """Weighted mean, and half its 95 % interval with documents as the units (None for fewer than two).

    The error is that of a ratio of sums by linearisation, with Student's t: Cochran 1977, Sampling Techniques, 6.
    """
    value, weight, owner = (np.array(each) for each in (means, weights, owners))
    mean = float((value * weight).sum() / weight.sum())
    count = len(set(owners))
    if count < 2:
        return mean, None
    from scipy.stats import t

    residuals = np.bincount(owner, (value - mean) * weight)
    spread = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(weight.sum())
    return mean, float(t.ppf(0.975, count - 1)) * spread


def edges(length: int) -> list[int]:
    """Borders of the buckets of positions from 1 to `length`: octaves, and quarters of octaves from 16 on."""
    found, octave = [1, 2, 4, 8], 16
    while octave < length:
        found += [octave + quarter * octave // 4 for quarter in range(4)]
        octave *= 2
    return [edge for edge in found if edge < length] + [length]


def position(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """Loss over absolute position: one window of `length` tokens a document, in buckets [start, stop).

    A model that reads on loses less and less; one that does not shows a step where training ended.
    """
    losses = torch.stack(read(reader, [text[:length] for text in excerpts(reader, setting)], setting.tick)).double()
    cuts = edges(length)
    buckets = [
        {
            "start": start,
            "stop": stop,
            "nats": float((part := losses[:, start - 1 : stop - 1]).mean()),
            "tokens": part.numel(),
        }
        for start, stop in itertools.pairwise(cuts)
    ]
    last = losses[:, -256:]
    return {
        "buckets": buckets,
        "last": {"start": length - last.shape[1], "stop": length, "nats": float(last.mean()), "tokens": last.numel()},
        "nats": float(losses.mean()),
        "tokens": losses.numel(),
        "documents": len(losses),
    }


def gain(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """What context beyond the trained length is worth: the loss of the last tokens with as much context as at training,
    less their loss with all of it. Positive: it helps.

    At the longest length there is the loss over the context c, in tokens before the first that is scored, and the
    reach: the fewest tokens of context with which no more than `setting.tolerance` nats per token are lost against the
    best of those contexts: powers of two, that of training, and the longest. It takes for granted that between two of
    them the loss has one edge.
    """
    trained = reader.length
    if length <= trained:
        raise Unfit(f"Gain is what context beyond the trained {trained} tokens is worth, and {length} is not beyond.")
    reader.fit(length)
    last = min(setting.last, max(trained // 2, 1))
    texts = excerpts(reader, setting)

    @cache
    def with_context(context: int) -> Tensor:
        """Mean loss of the last tokens of each document."""
        cut = [text[len(text) - last - context :] for text in texts]
        return torch.stack([losses[-last:].double().mean() for losses in read(reader, cut)])

    long, short = with_context(length - last), with_context(trained - last)
    setting.tick(0.3)
    mean, error = by_document((short - long).tolist(), [1.0] * len(texts), list(range(len(texts))))
    found: dict[str, Any] = {
        "gain": mean,
        "low": None if error is None else mean - error,
        "high": None if error is None else mean + error,
        "long": float(long.mean()),
        "short": float(short.mean()),
        "scored": last,
        "tokens": last * len(texts),
        "documents": len(texts),
    }
    if length == max(n for n in setting.lengths if reader.refusal(n) is None):
        most = length - last
        ladder = sorted({1, *(2**n for n in range(1, most.bit_length()) if 2**n < most), trained - last or 1, most})
        curve = {context: float(with_context(context).mean()) for context in ladder}
        setting.tick(0.7)
        enough = min(curve.values()) + setting.tolerance
        high = next(context for context in ladder if curve[context] <= enough)
        low = max((context for context in ladder if context < high), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if float(with_context(middle).mean()) <= enough else (middle, high)
        found |= {
            "contexts": [{"context": context, "nats": nats} for context, nats in curve.items()],
            "reach": high,
            "tolerance": setting.tolerance,
        }
    return found


def offset(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """The same tokens, as many as at training, at positions that start to count later.

    A relative encoding is flat; what is not flat is an encoding that knows absolute positions, or arithmetic that
    loses them. It asks nothing of memory or ability.
    """
    size = min(reader.length, length)
    texts = torch.stack([text[:size] for text in excerpts(reader, setting)])
    starts = setting.offsets or tuple(sorted({0, *(n - size for n in setting.lengths if size < n)}))
    found: list[dict[str, Any]] = []
    for number, start in enumerate(starts):
        if reason := reader.refusal(start + size):
            found.append({"offset": start, "refused": reason})
            continue
        at = torch.arange(start, start + size)
        parts = texts.split(max(BATCH // size, 1))
        losses = torch.cat([reader.losses(part, positions=at, extent=start + size) for part in parts])
        found.append({"offset": start, "nats": float(losses.double().mean()), "tokens": losses.numel()})
        setting.tick((number + 1) / len(starts))
    if not any("nats" in item for item in found):
        raise Unfit(found[0]["refused"])
    return {"offsets": found, "length": size}
