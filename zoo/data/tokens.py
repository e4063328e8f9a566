"""Tokenised text on disk, and the blocks that a model is fed from it.

One part of a corpus becomes one folder: the numbers of all documents end to end, each document closed by the
tokenizer's end, in a flat memory-mapped array, beside the place where each document starts. The folder is named after
what it was made from, written under another name and renamed when whole, so that a second run finds it, a killed run
leaves nothing that looks finished, and two runs at once do no harm.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Dataset as Items

from zoo import lock
from zoo.data.positions import Placement
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError

SMALL = 2_000_000  # characters below which starting processes costs more than they save


def tokenise(rows: Dataset, tokenizer: Tokenizer, folder: Path, about: Mapping[str, Any], workers: int) -> None:
    """Write the documents' numbers into a folder, all at once; if another run was faster, leave its work."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock.remove_left_overs(folder.parent)
    work = lock.part_path(folder)
    work.mkdir()
    try:
        with lock.showing_life(work):
            _write(rows, tokenizer, work, about, workers, folder.name)
        try:
            work.rename(folder)
        except OSError:
            if not (folder / "about.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _encode(batch: dict[str, list[str]], tokenizer: Tokenizer, dtype: str) -> dict[str, list[np.ndarray]]:
    return {"tokens": [np.array([*tokenizer.encode(text), tokenizer.end], dtype=dtype) for text in batch["text"]]}


def _write(rows: Dataset, tokenizer: Tokenizer, work: Path, about: Mapping[str, Any], workers: int, key: str) -> None:
    dtype = "uint16" if tokenizer.vocabulary <= 2**16 else "uint32"
    size = rows.data.nbytes if len(rows) else 0
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    several = workers > 0 and size > SMALL and processes > 1 and len(rows) > 1
    encoded = rows.map(
        _encode,
        fn_kwargs={"tokenizer": tokenizer, "dtype": dtype},
        batched=True,
        batch_size=32,
        writer_batch_size=32,
        remove_columns=rows.column_names,
        num_proc=min(processes, len(rows)) if several else None,
        new_fingerprint=key.replace(".", "-"),
        cache_file_name=str(work / "rows.arrow"),
        desc=f"Tokenising ({about.get('part', 'text')})",
    )
    column = encoded.data.column("tokens")
    starts = np.zeros(len(encoded) + 1, dtype=np.int64)
    done = 0
    for chunk in column.chunks:
        starts[done + 1 : done + 1 + len(chunk)] = np.asarray(chunk.value_lengths())
        done += len(chunk)
    starts = starts.cumsum()
    flat = np.lib.format.open_memmap(work / "tokens.npy", mode="w+", dtype=dtype, shape=(int(starts[-1]),))
    done = 0
    for chunk in column.chunks:
        numbers = chunk.flatten().to_numpy(zero_copy_only=False)
        flat[done : done + len(numbers)] = numbers
        done += len(numbers)
    flat.flush()
    del flat, column, encoded
    np.save(work / "starts.npy", starts)
    for rest in work.glob("*.arrow"):
        rest.unlink()
    told = {**about, "documents": len(starts) - 1, "tokens": int(starts[-1]), "tokenizer": tokenizer.name}
    (work / "about.json").write_text(json.dumps(told, indent=1))


class Stored:
    """A folder of tokenised documents, opened where it is used: worker processes map the file anew.

    Args:
        folder: as `tokenise` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        except (OSError, ValueError) as error:
            raise ZooError(f"The cached tokens in {folder} are damaged: {error}.   Remove that folder.") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "about": self.about}

    @cached_property
    def tokens(self) -> np.ndarray:
        """Every number, end to end."""
        return np.load(self.folder / "tokens.npy", mmap_mode="r")

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each document starts, and the end of the last."""
        return np.load(self.folder / "starts.npy")


class Blocks(Items[dict[str, Tensor]]):
    """Blocks of `length + 1` tokens, each beginning with the last token of the one before it.

    So every token but the first is predicted exactly once. An item holds `tokens`, int64 [length + 1], and
    `documents`, int32 [length + 1]: 0 up to and with the first end, then 1, and so on; -1 where the item's number is
    below 0 and its text does not count. With a placement an item also
    holds `positions`, int64 [length], and its text may skip tokens.

    Args:
        stored: tokenised documents.
        length: tokens that a model reads at once.
        gap: tokens left out at the start.
        placement: of a block's tokens, anew in each epoch; None: they are neighbours and count from 0.
    """

    def __init__(self, stored: Stored, length: int, gap: int = 0, placement: Placement | None = None) -> None:
        self.stored, self.length, self.gap, self.placement = stored, length, gap, placement

    def __len__(self) -> int:
        return max(0, (self.stored.about["tokens"] - self.gap - 1) // self.length)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        start = self.gap + number % len(self) * self.length
        starts, taken, more = self.stored.starts, np.arange(self.length + 1), {}
        if self.placement is not None:
            last = start + self.length
            room = int(starts[np.searchsorted(starts, last, side="right")]) - last - 1
            taken, positions = self.placement(number, room)
            more["positions"] = torch.from_numpy(positions)
        owners = np.searchsorted(starts, start + taken, side="right")
        owners = owners - owners[0] if number >= 0 else np.full_like(owners, -1)
        return {
            "tokens": torch.from_numpy(self.stored.tokens[start + taken].astype(np.int64)),
            "documents": torch.from_numpy(owners.astype(np.int32)),
            **more,
        }
