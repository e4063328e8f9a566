"""The KV cache: what a decoder keeps of the tokens that it has read.

Keys are kept rotated, except for encodings on the Logits rung, whose rotation is None and which therefore cache plain
keys by themselves. Buffers are allocated once for the whole request and written in place.
"""

from __future__ import annotations

from torch import Tensor

from zoo.errors import ZooError


class Cache:
    """Keys, values and encoding state of every layer for one request.

    Args:
        capacity: Tokens that it will hold at most: the request's extent, declared once.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[int, dict[str, Tensor]] = {}

    def state(self, layer: int) -> dict[str, Tensor]:
        """Where the encoding of a layer keeps what it needs of earlier tokens."""
        return self.states.setdefault(layer, {})

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [batch, kv_heads, tokens, width] of new tokens and return those of all tokens so far."""
        stop = self.length + k.shape[2]
        if stop > self.capacity:
            raise ZooError(f"The cache was opened for {self.capacity} tokens, and the request now has {stop}.")
        if layer not in self.buffers:
            shape = (*k.shape[:2], self.capacity)
            self.buffers[layer] = k.new_empty(*shape, k.shape[3]), v.new_empty(*shape, v.shape[3])
        keys, values = self.buffers[layer]
        keys.narrow(2, self.length, k.shape[2]).copy_(k)
        values.narrow(2, self.length, k.shape[2]).copy_(v)
        return keys.narrow(2, 0, stop), values.narrow(2, 0, stop)

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has stored."""
        self.length += tokens
