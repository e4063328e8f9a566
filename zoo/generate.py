"""Sampling from a decoder with a KV cache: read the prompt once, then one token a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import Tensor

from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError

MOST = 2**24
"""Tokens of one request at most: more than any cache holds."""


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Next ids [batch] from logits [batch, vocabulary].

    Temperature 0 takes the likeliest id. Otherwise it is drawn from the smallest set of ids that holds `top_p` of the
    probability (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if bool(logits.isnan().any()):
        raise ZooError("The model's logits are no numbers: its weights are damaged, or its numbers are too large.")
    if temperature < 1e-6:  # so little that the division would leave the range of float32
        return logits.argmax(-1)
    weights = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = weights.sort(-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        weights = torch.zeros_like(weights).scatter(-1, order, ranked.masked_fill(outside, 0.0))
    return torch.multinomial(weights, 1, generator=generator).squeeze(-1)


@torch.inference_mode()
def stream(
    model: Decoder,
    prompt: Tensor,
    tokens: int,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int | None = None,
    padding: Tensor | None = None,
    end: int | None = None,
) -> Iterator[Tensor]:
    """New ids [batch] one after the other.

    Args:
        model: The decoder.
        prompt: Ids [batch, tokens], at least one and no more than the model's reach.
        tokens: How many to add at most; fewer if every row has reached `end`.
        temperature: 0 is greedy.
        top_p: Probability mass to draw from, above 0 and at most 1.
        seed: Of the draws (default: torch's own generator).
        padding: [batch], tokens of left padding.
        end: Id that ends a row.

    An encoding that looks at the extent of a request reads each row by itself, so that none depends on its neighbours.
    """
    if prompt.shape[1] < 1:
        raise ZooError("The prompt is empty; generation needs at least one token to start from.")
    if prompt.shape[1] > model.reach:
        raise ZooError(
            f"The prompt has {prompt.shape[1]} tokens, and the model was trained on {model.length}"
            f"{f' and extended to {model.reach}' * (model.reach > model.length)}. Shorten it, or try:  zoo extend CKPT"
        )
    if not 1 <= tokens <= MOST or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise ZooError(
            f"Generation takes tokens from 1 to {MOST}, temperature >= 0 and top_p above 0 and at most 1; "
            f"got {tokens}, {temperature} and {top_p}."
        )
    if seed is not None and not 0 <= seed < 2**63:
        raise ZooError(f"A seed is a whole number from 0 to 2^63 - 1, and got {seed}.")
    if padding is not None and model.trunk.position.dynamic and len(prompt) > 1:
        rows = [
            stream(
                model,
                row[None, int(left) :],
                tokens,
                temperature=temperature,
                top_p=top_p,
                seed=None if seed is None else seed + number,
                end=end,
            )
            for number, (row, left) in enumerate(zip(prompt, padding, strict=True))
        ]
        over = prompt.new_full((1,), 0 if end is None else end)
        yield from (torch.cat(step) for step in zip_longest(*rows, fillvalue=over))
        return
    generator = None if seed is None else torch.Generator(prompt.device).manual_seed(seed)
    cache = Cache(prompt.shape[1] + tokens)
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    new = prompt
    for _ in range(tokens):
        hidden = model.hidden(new, cache=cache, padding=padding)
        ids = choose(model.head(hidden[:, -1]), temperature, top_p, generator)
        if end is not None:
            done |= ids == end
        yield ids
        if end is not None and bool(done.all()):
            return
        new = ids[:, None]


def generate(model: Decoder, prompt: Tensor, tokens: int, **options: object) -> Tensor:
    """The new ids, [batch, at most tokens]; options as in `stream`."""
    return torch.stack(list(stream(model, prompt, tokens, **options)), 1)  # type: ignore[arg-type]
