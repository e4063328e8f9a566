"""Which documents are trained on and which are held out: whole documents, never blocks.

Blocks of one document in both parts would let a model be examined on what surrounds its training text, and so would
copies of one document. All copies are in the part of the first of them; documents without copies are where a plain
draw puts them. Texts that are held out by name are no documents of the corpus at all.

A corpus of fewer documents than parts leaves no choice: its longest document is cut, and whoever packs the pieces
leaves a gap of one block after each cut, for the two sides of a cut know each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
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
        held: digests of texts (`digest_text`) that are held out by name; documents equal to one are left out.
    """

    def __init__(
        self,
        rows: Dataset,
        valid: float,
        test: float,
        seed: int,
        limit: int | None = None,
        held: Set[bytes] = frozenset(),
    ) -> None:
        lengths = pyarrow.compute.utf8_length(rows.with_format("arrow")[:]["text"])
        self.lengths = np.asarray(pyarrow.compute.fill_null(lengths, 0).to_numpy(), dtype=np.int64)
        self.rows = rows
        self.unread = lengths.null_count
        self.empty = int((self.lengths == 0).sum()) - self.unread
        shares = {part: share for part, share in (("valid", valid), ("test", test)) if share > 0}
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed)).numpy()
        order = order[self.lengths[order] > 0]
        if not len(order):
            raise ZooError(
                f"There is no text to train on: of {len(rows)} documents {self.unread} cannot be decoded and the "
                "others are empty."
            )
        digests = digest_rows(rows) if shares or held else None
        self.held = 0
        if digests is not None and held:
            kept = np.array([digests[index].tobytes() not in held for index in order])
            self.held = int((~kept).sum())
            order = order[kept]
        if not len(order):
            raise ZooError(
                f"There is no text to train on: all {self.held} documents are held out as well.\n"
                "  Try other files for --data.valid_files and --data.test_files, or without them --data.valid 0.05"
            )
        if limit is not None:
            order = self._within(order, limit)
        first = _first_copies(order, digests)
        distinct = order[first[order] == order]
        self.copies = len(order) - len(distinct)
        self.cut = len(distinct) <= len(shares)
        order = distinct if self.cut else order
        self.characters = int(self.lengths[order].sum())
        self.documents = len(order)
        self.members: dict[str, list[int]] = {part: [] for part in PARTS}
        self.pieces: dict[str, str] = {}
        if self.cut:
            self.members["train"] = sorted(self._pieces(order, shares).tolist())
            return
        self._draw(order, shares, self.lengths)
        if self.copies:
            self._join_copies(order, first)
            if not all(self.members[part] for part in ("train", *shares)):
                # So many copies that a part lost all its documents: the texts are drawn, each with all its copies.
                weights = np.bincount(first[order], self.lengths[order], len(rows)).astype(np.int64)
                self._draw(distinct, shares, weights)
                self._join_copies(order, first)

    def _draw(self, order: np.ndarray, shares: dict[str, float], lengths: np.ndarray) -> None:
        for number, (part, share) in enumerate(shares.items()):
            order = self._take(order, part, share * self.characters, len(shares) - number, lengths)
        self.members["train"] = sorted(order.tolist())

    def _join_copies(self, order: np.ndarray, first: np.ndarray) -> None:
        """Put every document into the part of the first document with its text."""
        parts = np.zeros(len(self.lengths), dtype=np.int8)
        for number, part in enumerate(PARTS):
            parts[self.members[part]] = number
        joined = parts[first[order]]
        self.members = {part: sorted(order[joined == number].tolist()) for number, part in enumerate(PARTS)}

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

    def _take(self, order: np.ndarray, part: str, wanted: float, needed: int, lengths: np.ndarray) -> np.ndarray:
        """Documents for one part, as many as fit its share and at least one; `needed` others must be left."""
        left = wanted
        chosen: list[Any] = []
        for index in order:
            if len(order) - len(chosen) > needed and lengths[index] <= left:
                left -= lengths[index]
                chosen.append(index)
        if not chosen:
            chosen = [order[np.argmin(lengths[order])]]
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


DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])


def digest_text(text: str) -> bytes:
    """16 bytes that are the same for the same text, and tell documents apart."""
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def digest_rows(rows: Dataset) -> np.ndarray:
    """The digests of all texts in the column `text`, [documents] of `DIGEST`; of documents without text, of ''."""
    found = bytearray()
    for chunk in rows.with_format("arrow").iter(1000):
        for text in chunk["text"].to_pylist():
            found += digest_text(text or "")
    return np.frombuffer(bytes(found), dtype=DIGEST)


def _first_copies(order: np.ndarray, digests: np.ndarray | None) -> np.ndarray:
    """For each document in `order` the number of the first in the corpus with its text; -1 for other documents."""
    numbers = np.sort(order)
    first = np.full(int(numbers[-1]) + 1, -1)
    if digests is None:
        first[numbers] = numbers
        return first
    _, places, inverse = np.unique(digests[numbers], return_index=True, return_inverse=True)
    first[numbers] = numbers[places[inverse]]
    return first


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
