"""Which documents are trained on and which are held out: whole documents, never blocks.

Blocks of one document in both parts would let a model be examined on what surrounds its training text. A corpus of
fewer documents than parts leaves no choice: its longest document is cut, and whoever packs the pieces leaves a gap of
one block after each cut, for the two sides of a cut know each other.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset

from zoo.errors import ZooError

PARTS = ("train", "valid", "test")


class Split:
    """The parts of a corpus, by document.

    Args:
        rows: documents, in the column `text`.
        valid: share of the characters to validate on.
        test: share of the characters to test on.
        seed: origin of the choice.
        limit: take no more than so many characters, in whole documents; None takes all.
    """

    def __init__(self, rows: Dataset, valid: float, test: float, seed: int, limit: int | None = None) -> None:
        lengths = pyarrow.compute.utf8_length(rows.with_format("arrow")[:]["text"])
        self.lengths = np.asarray(pyarrow.compute.fill_null(lengths, 0).to_numpy(), dtype=np.int64)
        self.rows = rows
        self.unread = lengths.null_count
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed)).numpy()
        order = order[self.lengths[order] > 0]
        if not len(order):
            raise ZooError(
                f"There is no text to train on: of {len(rows)} documents {self.unread} cannot be decoded and the "
                "others are empty."
            )
        if limit is not None:
            order = self._within(order, limit)
        self.characters = int(self.lengths[order].sum())
        self.documents = len(order)
        shares = {part: share for part, share in (("valid", valid), ("test", test)) if share > 0}
        self.cut = len(order) <= len(shares)
        self.members: dict[str, list[int]] = {part: [] for part in PARTS}
        self.pieces: dict[str, str] = {}
        if self.cut:
            order = self._pieces(order, shares)
        else:
            for part, share in shares.items():
                order = self._take(order, part, share * self.characters, len(shares) - list(shares).index(part))
        self.members["train"] = sorted(order.tolist())

    def _within(self, order: np.ndarray, limit: int) -> np.ndarray:
        left, kept = limit, []
        for index in order:
            if self.lengths[index] <= left:
                left -= self.lengths[index]
                kept.append(index)
        if not kept:
            shortest = self.lengths[order].min()
            raise ZooError(
                f"No whole document fits into --data.limit {limit}: the shortest has {shortest} characters.\n"
                f"  Try:  --data.limit {shortest}  or more."
            )
        return np.array(kept)

    def _take(self, order: np.ndarray, part: str, wanted: float, needed: int) -> np.ndarray:
        """Documents for one part, as many as fit its share and at least one; `needed` others must be left."""
        left = wanted
        chosen: list[Any] = []
        for index in order:
            if len(order) - len(chosen) > needed and self.lengths[index] <= left:
                left -= self.lengths[index]
                chosen.append(index)
        if not chosen:
            chosen = [order[np.argmin(self.lengths[order])]]
        self.members[part] = sorted(int(index) for index in chosen)
        return order[~np.isin(order, chosen)]

    def _pieces(self, order: np.ndarray, shares: dict[str, float]) -> np.ndarray:
        longest = int(order[np.argmax(self.lengths[order])])
        text = self.rows[longest]["text"]
        end = len(text)
        for part in reversed(list(shares)):
            start = _boundary(text, end - max(1, round(shares[part] * self.characters)))
            self.pieces[part] = text[start:end]
            end = start
        self.pieces["train"] = text[:end]
        return order[order != longest]

    def __getitem__(self, part: str) -> Dataset:
        """The documents of one part, in the order of the corpus."""
        chosen = self.rows.select(self.members[part])
        if not (piece := self.pieces.get(part)):
            return chosen
        texts = [*chosen["text"], piece]
        return Dataset.from_dict({"text": texts}, features=self.rows.features)


def _boundary(text: str, near: int) -> int:
    """The start of the line at or before a place; of the word, where lines are long."""
    near = max(0, near)
    for mark, reach in (("\n", 2000), (" ", 200)):
        if (found := text.rfind(mark, max(0, near - reach), near)) >= 0:
            return found + 1
    return near


def part_of(text: str, valid: float, test: float, seed: int) -> str:
    """The part of a document of a stream, which nobody can count: by its own text, whatever its place or shard."""
    number = int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), key=str(seed).encode()).digest()[:8], "big")
    place = number / 2**64
    return "valid" if place < valid else "test" if place < valid + test else "train"
