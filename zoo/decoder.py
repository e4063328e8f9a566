"""The decoder language model: tokens in, logits out, with whatever position encoding and kernel it is given.

Wide enough in its options to hold Llama, Qwen, Mistral, OLMo2, GPT-NeoX and GPT-2. Hidden states and logits are two
steps, so that a loss or an evaluation over many tokens never holds all logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.cache import Cache
from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo.layers import Linear
from zoo.trunk import Trunk

if TYPE_CHECKING:
    from zoo.scale.sequence import Slice


class Decoder(nn.Module):
    """A causal Transformer over tokens.

    Args:
        vocabulary: Number of token ids.
        length: Tokens of a sequence at first training; it never changes afterwards.
        reach: Tokens that it has been made to read since, as by an extension (default: its length).
        tied: One matrix embeds tokens and reads them out.
        head_bias: A bias on the read-out.
        window: A token sees only this many tokens back, itself included (default: all).
        sinks: The first tokens of a sequence, which the window does not hide (StreamingLLM, arXiv:2309.17453).
        **trunk: The blocks, the position encoding and the kernel.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int = 1024,
        reach: int | None = None,
        tied: bool = True,
        head_bias: bool = False,
        window: int | None = None,
        sinks: int = 0,
        **trunk: Any,
    ) -> None:
        super().__init__()
        if reach is not None and reach < length:
            raise ZooError(f"A model reads what it was trained on, {length} tokens, and a reach of {reach} is less.")
        if window is not None and window < 1:
            raise ZooError(f"A window holds at least the token itself: 1 or more, and got {window}.")
        if sinks < 0 or (sinks and window is None):
            raise ZooError(
                f"sinks {sinks} says how many first tokens a window spares, 0 or more, and the window is {window}."
                "   Try:  --model.window 256 --model.sinks 4"
            )
        self.trunk = Trunk(length=(length,), prefix=0, causal=True, **trunk)
        dim, std = self.trunk.geometry.dim, trunk.get("std", 0.02)
        self.length, self.reach, self.window, self.sinks = length, reach or length, window, sinks
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=std)
        self.head = Linear(dim, vocabulary, bias=head_bias)
        if tied:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=std)

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """Logits [batch, tokens, vocabulary]; `context` as in `hidden`."""
        return self.head(self.hidden(tokens, **context))

    def hidden(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
        cache: Cache | None = None,
        extent: int | None = None,
        positions: Tensor | None = None,
        parallel: Slice | None = None,
    ) -> Tensor:
        """Hidden states [batch, tokens, dim] after the last norm.

        Args:
            tokens: Ids, [batch, tokens]; with a cache, the tokens after those that it holds.
            documents: [batch, tokens], numbers rising from 0: tokens see their own document only, and positions start
                anew in each. Not together with a cache.
            padding: [batch], tokens of padding to the left of each row, which have no position and are not seen.
            cache: Of earlier tokens.
            extent: Final length of the request (default: the cache's capacity, or the tokens at hand).
            positions: [tokens] or [batch, tokens] of those in the cache and those at hand, whole numbers below `extent`
                (default: counted from 0, after the padding, anew in each document).
            parallel: Which run of the tokens is this process's, where several share each sequence; of that run are the
                hidden states. All else is told of the whole. Not together with a cache.
        """
        if documents is not None and self.sinks:
            raise ZooError("The sinks of packed documents would be those of the first one. Leave sinks at 0 here.")
        if positions is not None and extent is None:
            raise ZooError("Positions that are given need an extent too, a number above all of them.")
        if parallel is not None and cache is not None:
            raise ZooError("Processes that share a sequence keep no cache: generation runs on one process.")
        past, count = cache.length if cache else 0, tokens.shape[1]
        extent = extent or (cache.capacity if cache else count)
        index = torch.arange(past + count, device=tokens.device)
        keys = index.float()
        if positions is not None:
            keys = positions.float()
        elif documents is not None:
            keys = restart(documents).float()
        elif padding is not None:
            keys = (index - padding[:, None]).clamp(min=0).float()
        mask = Mask(
            causal=True, offset=past, window=self.window, documents=documents, padding=padding, sinks=self.sinks
        )
        keys = keys[..., None]
        queries = keys[..., past:, :]
        if parallel is not None:
            tokens, queries = parallel.tokens(tokens), parallel.tokens(queries, -2)
        return self.trunk(self.embedding(tokens), queries, keys, extent, mask, cache, parallel)

    @torch.no_grad()
    def read(
        self, tokens: Tensor, *, positions: Tensor | None = None, extent: int | None = None, rows: int = 512
    ) -> Tensor:
        """`hidden` for long texts and no gradient, in memory for little more than the result.

        Args:
            tokens: Ids, [batch, tokens].
            positions: [tokens] or [batch, tokens], whole numbers below `extent` (default: counted from 0).
            extent: Final length of the request (default: the tokens at hand).
            rows: Tokens at a time.
        """
        if positions is not None and extent is None:
            raise ZooError("Positions that are given need an extent too, a number above all of them.")
        count = tokens.shape[1]
        at = torch.arange(count, device=tokens.device) if positions is None else positions
        mask = Mask(causal=True, window=self.window, sinks=self.sinks)
        return self.trunk.read(self.embedding(tokens), at.float()[..., None], extent or count, mask, rows)

    @torch.no_grad()
    def refusal(self, tokens: int) -> str | None:
        """Why its encoding cannot read so many tokens, as a table that ends cannot; None where it can."""
        last = torch.full((1, 1), float(tokens - 1), device=self.embedding.weight.device)
        hidden = last.new_zeros(1, 1, self.trunk.geometry.dim)
        try:
            for position in self.trunk.positions:
                position(last, last, tokens, hidden if position.content else None)
        except ZooError as error:
            return str(error)
        return None


def restart(documents: Tensor) -> Tensor:
    """Positions [batch, tokens] that start at 0 with each document."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    fresh = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return index - torch.where(fresh, index, 0).cummax(1).values
