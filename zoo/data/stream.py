"""Training from a stream: documents are tokenised as they arrive, and nothing is stored.

Each loading process reads its own shards and packs its own blocks. It sends along, with every batch, where it stood
when the next one began: the stream's own state before the document in progress, and how far into that document. These
places, one a process, are what a checkpoint keeps. Held-out documents are known by their text (`split.part_of`) and
left out wherever they turn up.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import IterableDataset as Rows
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetsError
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from zoo.data.loader import SentenceLoader, check
from zoo.data.positions import Placement
from zoo.data.split import digest_text, part_of
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError

Place = dict[str, Any]


class Packer(IterableDataset[Any]):
    """Batches of blocks from one process's share of a stream, with the items of `tokens.Blocks`.

    Args:
        rows: documents, in the column `text`.
        tokenizer: makes numbers of them.
        length: tokens that a model reads at once; blocks hold one more.
        batch: blocks per batch.
        valid: share of documents left out for validation.
        test: share of documents left out for tests.
        seed: origin of that choice.
        limit: characters after which to stop, which `Stream` shares out; None reads to the end.
        placement: of a block's tokens; what it skips is not read again. None: they are neighbours and count from 0.
        held: digests of texts (`split.digest_text`) that are held out by name; documents equal to one are left out.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: Tokenizer,
        length: int,
        batch: int,
        valid: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        limit: int | None = None,
        placement: Placement | None = None,
        held: Set[bytes] = frozenset(),
    ) -> None:
        self.held = held
        self.rows, self.tokenizer, self.length, self.batch = rows, tokenizer, length, batch
        self.placement, self.first, self.stream = placement, 0, 0
        self.valid, self.test, self.seed, self.limit = valid, test, seed, limit
        self.places: dict[int, Place] = {}
        self.next = 0
        self.equal = self.empty = 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor] | None, Place]]:
        info = get_worker_info()
        worker = info.id if info else 0
        self.stream = self.first + worker
        if worker < self.next:
            # Processes are asked in turn, from the first: those that had their turn before the checkpoint pass.
            yield worker, None, self.places.get(worker, {})
        blocks: list[dict[str, Tensor]] = []
        for block, place in self._blocks(self.places.get(worker, {})):
            blocks.append(block)
            if len(blocks) == self.batch:
                yield worker, {name: torch.stack([b[name] for b in blocks]) for name in blocks[0]}, place
                blocks = []
        yield worker, None, {"equal": self.equal, "empty": self.empty}

    def _blocks(self, place: Place) -> Iterator[tuple[dict[str, Tensor], Place]]:
        """Blocks, each with the place of the one after it."""
        held: deque[tuple[Place, np.ndarray]] = deque()
        offset, ready = place.get("offset", 0), -place.get("offset", 0)
        count = place.get("blocks", 0)
        for before, numbers in self._documents(place):
            held.append((before, numbers))
            ready += len(numbers)
            while ready > self.length:
                flat = np.concatenate([numbers for _, numbers in held])
                owner = np.repeat(np.arange(len(held)), [len(numbers) for _, numbers in held])
                taken, more = np.arange(self.length + 1), {}
                if self.placement is not None:  # the last document is held whole, and with it all that may be skipped
                    last = owner[offset + self.length]
                    room = int(np.searchsorted(owner, last, side="right")) - offset - self.length - 1
                    taken, positions = self.placement(count, room, self.stream)
                    more["positions"] = torch.from_numpy(positions)
                owner = owner[offset + taken]
                block = {
                    "tokens": torch.from_numpy(flat[offset + taken]),
                    "documents": torch.from_numpy((owner - owner[0]).astype(np.int32)),
                    **more,
                }
                offset, ready, count = offset + int(taken[-1]), ready - int(taken[-1]), count + 1
                while offset >= len(held[0][1]):
                    offset -= len(held.popleft()[1])
                yield block, {**held[0][0], "offset": offset, "blocks": count}

    def _documents(self, place: Place) -> Iterator[tuple[Place, np.ndarray]]:
        """Documents to train on, each with the place before it."""
        rows, read, before = copy.deepcopy(self.rows), place.get("read", 0), place.get("rows")
        if before:
            rows.load_state_dict(before)
        self.equal, self.empty = place.get("equal", 0), place.get("empty", 0)
        for text in read_texts(rows):
            here = {"rows": before, "read": read, "equal": self.equal, "empty": self.empty}
            before = rows.state_dict()
            if self.limit is not None and read >= self.limit:
                return
            if not text:
                self.empty += 1
                continue
            read += len(text)
            if self.held and digest_text(text) in self.held:
                self.equal += 1
            elif part_of(text, self.valid, self.test, self.seed) == "train":
                yield here, np.array([*self.tokenizer.encode(text), self.tokenizer.end], dtype=np.int64)


def read_texts(rows: Iterable[dict[str, Any]]) -> Iterator[str | None]:
    """The texts of a stream, one after the other; None for a row without text.

    Raises ZooError where a value is no text, or the stream breaks off.
    """
    try:
        for number, row in enumerate(rows, 1):
            text = row["text"]
            if text is not None and not isinstance(text, str):
                raise ZooError(f"The stream holds {type(text).__name__}, not text, in the row {number} that was read.")
            yield text
    except (pyarrow.ArrowException, DatasetsError, EOFError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ZooError(f"The stream of documents broke off: {reason}") from error


class Stream(SentenceLoader):
    """The loader of a stream, whose place can be stored and taken up again. It has no length.

    Args:
        rows: documents, in the column `text`, of all processes.
        pack: makes a `Packer` of this process's documents.
        workers: processes that load; no more than there are shards. 0 loads in this one.
        rank: which of the training processes this is.
        world: how many there are.
        finished: the trainer's count of batches finished in this epoch; None counts those handed out.
    """

    def __init__(
        self,
        rows: Rows,
        pack: Callable[[Rows], Packer],
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        finished: Callable[[], int] | None = None,
    ) -> None:
        self.shards = rows.num_shards
        rows = split_dataset_by_node(rows, rank=rank, world_size=world)
        self.packer = pack(rows)
        self.rank, self.world, self.finished = rank, world, finished
        self.workers = min(workers, rows.num_shards)
        self.packer.first = rank * max(1, self.workers)
        if self.packer.limit is not None:
            self.packer.limit //= world * max(1, self.workers)
        self.past: deque[dict[str, Any]] = deque([{"batches": 0, "next": 0, "places": {}}], maxlen=4)
        self.restored = False
        super().__init__(
            self.packer,
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.restored:
            self.past.append({"batches": 0, "next": 0, "places": {}})
        self.restored = False
        last = self.past[-1]
        self.packer.places, self.packer.next = last["places"], last["next"]
        left_out: dict[int, tuple[int, int]] = {}
        try:
            for worker, batch, place in super().__iter__():
                left_out[worker] = place.get("equal", 0), place.get("empty", 0)
                if batch is None:
                    continue
                last = {
                    "batches": last["batches"] + 1,
                    "next": (worker + 1) % max(1, self.workers),
                    "places": {**last["places"], worker: place},
                }
                self.past.append(last)
                yield batch
        finally:
            self._say_what_was_left_out(left_out)

    def _say_what_was_left_out(self, counts: dict[int, tuple[int, int]]) -> None:
        equal, empty = (sum(count) for count in zip((0, 0), *counts.values(), strict=True))
        if equal or empty:
            share = f" in the first of {self.world} shares" if self.world > 1 else ""
            rank_zero_info(
                f"Stream: left out{share} so far: {equal} documents equal to held-out ones, {empty} without text"
            )

    def _here(self) -> dict[str, Any]:
        packer = self.packer
        return {
            "seed": packer.seed,
            "batch": packer.batch * self.world,
            "length": packer.length,
            "streams": self.world * max(1, self.workers),
        }

    def state_dict(self) -> dict[str, Any]:
        """The places of all processes of all ranks: a checkpoint is written by one rank for all."""
        last = self.past[-1]
        if self.finished is not None and not self.restored:
            # Without a length, Lightning fetches one batch ahead of the one in training.
            done = self.finished()
            last = next((past for past in reversed(self.past) if past["batches"] <= done), last)
        ranks = [last]
        if self.world > 1 and torch.distributed.is_initialized():
            ranks = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(ranks, last)
            ranks = ranks[:: len(ranks) // self.world]  # processes that share sequences are at the same place
        return {**self._here(), "batches": last["batches"], "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stored place; a place in a stream that was shared otherwise is refused.

        Other processes may go on with the same streams: shards are dealt to processes and then to their workers, so
        stream `rank + world x worker` has the same shards however many processes there are, if these divide the shards.
        Every document is then read once as before; only which blocks share a batch is not what it would have been.
        """
        check({"epoch": 0, "shift": 0, **state_dict}, self._here(), self.world)
        ranks, workers = state_dict["ranks"], max(1, self.workers)
        if len(ranks) == self.world:
            self.past.append(ranks[self.rank])
        else:
            self.past.append({"batches": state_dict["batches"], "next": 0, "places": self._dealt(ranks, workers)})
        self.restored = True

    def _dealt(self, ranks: list[dict[str, Any]], workers: int) -> dict[int, Place]:
        """The places of this process's streams, which others have read so far."""
        then = len(ranks)
        if self.shards % then or self.shards % self.world or self.packer.placement is not None:
            why = (
                "skips by the number of its process"
                if self.packer.placement is not None
                else f"of {self.shards} shards is not divided by these numbers"
            )
            raise ZooError(
                f"{then} process{'es' * (then > 1)} read this stream, and now there are {self.world}; a stream that "
                f"{why} cannot change hands in mid-epoch.   Try:  --trainer.devices {then}, or --model.weights CKPT"
            )
        if self.rank == 0:
            print(
                f"zoo: {self.world} process{'es' * (self.world > 1)} go on where {then} stopped in the stream. No "
                "document is lost or read twice; which of them share a batch is new.",
                file=sys.stderr,
            )
        streams = [self.rank + self.world * worker for worker in range(workers)]
        return {worker: ranks[n % then]["places"].get(n // then, {}) for worker, n in enumerate(streams)}


def _as_is(item: Any) -> Any:
    return item
