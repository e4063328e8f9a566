"""Linear: attention in time and memory linear in the length, because sums over keys do not depend on the query.

With positive features in place of the exponential, a causal row needs only a running sum of key features times values.
Rows are taken by chunks: within a chunk by a masked product, from all chunks before it by the state that they leave.
Sums are float32 or better, the normaliser is one more channel of the values, and a packed document starts with an
empty state. Decoding sums over the cached keys anew for each token, as the cache holds keys and not states.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zoo.bias import Bias
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Geometry


class LinearAttention(Kernel):
    """Attention with positive features instead of a softmax, linear in the length, causal or not.

    Source: Katharopoulos et al. 2020, arXiv:2006.16236. weights = phi(q) phi(k)' / (their sum over a row) with
    phi(x) = elu(x) + 1. The paper has no scale: that of a call, relative to 1 / sqrt(head_dim), multiplies q before
    phi, so that an encoding's factor is not lost, and is 1 without one. Shapes and types as in Eager; sums in float32
    or better; nothing is added to the normaliser, and a row that sees nothing gives 0.

    Serves causality, padding, and packed documents of a causal model, numbered in rising order. Refuses biases (there
    are no logits to add them to), rotations, windows, and documents of a model that is not causal.

    Raises ZooError for a chunk below 1.

    Args:
        chunk: Tokens in a chunk; memory per token grows with it, and with head_dim^2 / chunk.
    """

    form = "linear"

    def __init__(self, geometry: Geometry, *, chunk: int = 64) -> None:
        super().__init__(geometry)
        if chunk < 1:
            raise ZooError(f"A chunk of LinearAttention holds at least 1 token, and got {chunk}.")
        self.chunk = chunk

    def refuses(self, request: Request) -> list[str]:
        reasons = []
        if request.rotation:
            reasons.append(
                "LinearAttention takes elu + 1 of each channel, and of rotated channels that depends on where the "
                "tokens stand, not on their distance. Positions added to the embeddings (Sinusoidal) go with it."
            )
        if "window" in request.mask:
            reasons.append("LinearAttention keeps one sum over all keys so far, from which a window cannot be cut.")
        if "document" in request.mask and "causal" not in request.mask:
            reasons.append("LinearAttention tells packed documents apart in causal models only.")
        return reasons

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        mask = mask or Mask()
        for reason in self.refuses(Request(mask=mask.kinds)):
            raise ZooError(reason)
        with torch.autocast(q.device.type, enabled=False):
            a, b, c = self.features(q, k, v, mask, scale)
            if mask.causal:
                if mask.documents is not None and not rising(mask, mask.documents):
                    raise ZooError(
                        "LinearAttention needs packed documents numbered in rising order, and some numbers fall: a "
                        "document's sum ends where the next one begins."
                    )
                sums = chunked(a, b, c, mask, min(self.chunk, q.shape[2]))
            else:
                sums = (a.unflatten(1, (k.shape[1], -1)) @ (b.mT @ c).unsqueeze(2)).flatten(1, 2)
            return normalised(sums).to(q.dtype)

    def features(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), which is 0 for hidden keys, and v with a channel of 1."""
        q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
        q, k = phi(q * (scale * math.sqrt(self.geometry.head_dim))), phi(k)
        if mask.padding is not None:
            hidden = torch.arange(k.shape[2], device=k.device) < mask.padding.view(-1, 1, 1)
            k = k.masked_fill(hidden.unsqueeze(-1), 0.0)
        return q, k, functional.pad(v, (0, 1), value=1.0)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            a, b, c = self.features(q, k, v, Mask(), scale)
            b, c = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (b, c))
            weights = a @ b.mT
            visible = (mask or Mask()).block(slice(0, q.shape[2]), slice(0, k.shape[2]), q.device)
            if visible is not None:
                weights = weights.masked_fill(~visible, 0.0)
            return normalised(weights @ c).to(q.dtype)


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1, by exp where x < 0: expm1(x) + 1 would be rounded to nothing from x = -17 on."""
    return x.clamp(max=0).exp() + x.relu()


def normalised(sums: Tensor) -> Tensor:
    """Weighted sums of values divided by those of 1, the last channel; 0 where that is 0, as nothing is seen."""
    weight = sums[..., -1:]
    return sums[..., :-1] / weight.masked_fill(weight == 0, 1.0)


def chunked(q: Tensor, k: Tensor, v: Tensor, mask: Mask, chunk: int) -> Tensor:
    """sum (q_i k_j) v_j over j <= i + offset of the same document, [batch, heads, queries, width of v].

    Args:
        q: [batch, heads, queries, width], features.
        k: [batch, kv_heads, keys, width], features.
        v: [batch, kv_heads, keys, width of v].
        mask: Its offset and its documents count.
        chunk: Tokens in a chunk.
    """
    past, queries, count = mask.offset, q.shape[2], -(-q.shape[2] // chunk)
    stop = past + count * chunk
    old_k, old_v = k[:, :, :past], v[:, :, :past]
    # From here on [batch, kv_heads, chunks, heads of a group or 1, tokens of a chunk, width].
    k, v = (functional.pad(x, (0, 0, 0, stop - x.shape[2]))[:, :, past:] for x in (k, v))
    k, v = (x.unflatten(2, (count, 1, chunk)) for x in (k, v))
    q = functional.pad(q, (0, 0, 0, stop - past - queries)).unflatten(2, (count, chunk))
    q = q.unflatten(1, (k.shape[1], -1)).transpose(2, 3)
    seen, receiving, leaving, keep = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril(), q, k, None
    if mask.documents is not None:
        index = torch.arange(past, stop, device=q.device).clamp(max=mask.documents.shape[1] - 1)
        here = mask.documents[:, index].view(-1, 1, count, 1, chunk)
        seen = seen & (here.unsqueeze(-1) == here.unsqueeze(-2))
        # Only one document lives across an edge between chunks: that of the last token before it.
        before = mask.documents[:, (index[::chunk] - 1).clamp(min=0)].view(-1, 1, count, 1, 1)
        after = here[..., -1:]
        receiving, leaving = (x.masked_fill((here != edge).unsqueeze(-1), 0.0) for x, edge in ((q, before), (k, after)))
        old_k = old_k.masked_fill((mask.documents[:, :past] != before[:, 0, 0, 0])[:, None, :, None], 0.0)
        keep = (before == after).unsqueeze(-1)
    states = carried((old_k.mT @ old_v).unsqueeze(2), leaving.mT @ v, keep)
    sums = (q @ k.mT).masked_fill(~seen, 0.0) @ v + receiving @ states
    return sums.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :queries]


def carried(first: Tensor, parts: Tensor, keep: Tensor | None) -> Tensor:
    """What enters each chunk: `first`, then what the chunks before have added; chunks are axis 2 of all.

    Where `keep` says that the document that enters a chunk ends in it, only the chunk's own part goes on.
    """
    if keep is None and not torch.are_deterministic_algorithms_enabled():  # CUDA's cumsum is not
        return torch.cat((first.unsqueeze(2), parts[:, :, :-1]), 2).cumsum(2)
    found = [first]
    for chunk, part in enumerate(parts.unbind(2)[:-1]):
        found.append(part + (found[-1] if keep is None else found[-1].masked_fill(~keep[:, :, chunk], 0.0)))
    return torch.stack(found, 2)


def rising(mask: Mask, documents: Tensor) -> bool:
    """Whether document numbers never fall along a row; asked once per forward pass, for all layers."""
    if "rising" not in mask.memo:
        mask.memo["rising"] = bool((documents.diff() >= 0).all())
    return mask.memo["rising"]
