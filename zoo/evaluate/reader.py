"""A language model under measurement: what it loses on a text, what it answers to a prompt, how far it can read.

Every measure reads through this door, so all of them share its rules: memory grows linearly with the length, logits
exist only where they are scored, and what does not fit is refused, never cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.cache import Cache
from zoo.checkpoints import Checkpoint
from zoo.data.tokenizer import Continuation, Tokenizer
from zoo.decoder import Decoder
from zoo.errors import Unfit, ZooError
from zoo.loss import surprises

CHUNK = 512
"""Tokens whose logits are held at once, or that a prompt is read by."""


class Reader:
    """A decoder with its tokenizer.

    Args:
        checkpoint: Of a language model.
        name: What tables and pictures call it.
        device: Where it runs.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, device: str | torch.device = "cpu") -> None:
        model = checkpoint.network()
        if not isinstance(model, Decoder) or "tokenizer" not in checkpoint.about:
            raise ZooError(f"{checkpoint.path} is not a language model with a tokenizer, so it cannot read text.")
        self.name, self.device = name, torch.device(device)
        self.model = model.to(self.device)
        self.tokenizer = Tokenizer.restore(checkpoint.about["tokenizer"])
        self.refusals: dict[int, str | None] = {}

    @property
    def length(self) -> int:
        """Tokens at first training."""
        return self.model.length

    def refusal(self, tokens: int) -> str | None:
        """Why it cannot read so many tokens, as a table that ends cannot; None where it can."""
        if tokens not in self.refusals:
            self.refusals[tokens] = self.model.refusal(tokens)
        return self.refusals[tokens]

    def fit(self, tokens: int) -> None:
        """Raise Unfit where so many tokens cannot be read."""
        if reason := self.refusal(tokens):
            raise Unfit(f"{tokens} tokens cannot be read: {reason}")

    @torch.inference_mode()
    def losses(self, tokens: Tensor, *, positions: Tensor | None = None, extent: int | None = None) -> Tensor:
        """Loss in nats of every token but the first, float32 [batch, tokens - 1].

        Args:
            tokens: Ids [batch, tokens], at least two.
            positions: [tokens], whole numbers below `extent` (default: counted from 0).
            extent: What the model is told of the request's length (default: the tokens at hand).
        """
        extent = extent or tokens.shape[1]
        self.fit(extent)
        tokens = tokens.to(self.device)
        at = None if positions is None else positions[:-1].to(self.device)
        hidden = self.model.read(tokens[:, :-1], positions=at, extent=extent)
        found = hidden.new_empty(hidden.shape[:2], dtype=torch.float32)
        rows = max(CHUNK // len(tokens), 1)
        for start in range(0, hidden.shape[1], rows):
            part = slice(start, start + rows)
            found[:, part] = surprises(self.model.head(hidden[:, part]).float(), tokens[:, 1:][:, part])
        if not found.isfinite().all():
            raise Unfit(f"The model computes losses that are no numbers in texts of {tokens.shape[1]} tokens.")
        return found.cpu()

    @torch.inference_mode()
    def answer(
        self,
        prompt: list[int],
        tokens: int,
        *,
        stop: Callable[[str], bool] | None = None,
        context: list[int] | None = None,
        special: bool = True,
    ) -> str:
        """What it says greedily after a prompt.

        Args:
            prompt: Ids, at least one.
            tokens: How many to add at most; fewer where the tokenizer's end comes.
            stop: Asked after each token with the text so far; true ends the answer.
            context: Ids of the prompt that are text, which the answer continues (default: all).
            special: Whether special tokens in the answer are written out.
        """
        if not prompt:
            raise Unfit("An empty prompt cannot be answered.")
        total = len(prompt) + tokens
        self.fit(total)
        cache = Cache(total)
        ids = torch.tensor([prompt], device=self.device)
        for part in ids.split(CHUNK, 1):
            hidden = self.model.hidden(part, cache=cache)
        said: list[int] = []
        known = prompt if context is None else context
        continuation, text = Continuation(self.tokenizer, known), ""
        while True:
            logits = self.model.head(hidden[:, -1])
            if logits.isnan().any():
                raise Unfit(f"The model computes logits that are no numbers after {len(prompt) + len(said)} tokens.")
            number = int(logits.argmax(-1))
            if number == self.tokenizer.end:
                break
            said.append(number)
            text += continuation.add(number)
            if len(said) == tokens or (stop is not None and stop(text + continuation.pending())):
                break
            hidden = self.model.hidden(torch.tensor([said[-1:]], device=self.device), cache=cache)
        return self.tokenizer.decode_continuation(known, said, special=special)
